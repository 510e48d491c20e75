"""The images of a run: which it has used, and whether they are the same when it is resumed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric import Fabric

from ..checkpoints import Checkpoint
from ..data.fingerprint import MAX_TRAIN, UsedImages, hash_bytes
from ..tasks.task import Training
from ..text import get_logger
from .processes import any_process, check_same_images, on_first

log = get_logger(__name__)
SAMPLED = 10_000  # training images whose content is compared when a run is resumed


class RunImages:
    """The images that a run trains and evaluates on.

    Args:
        fabric: The processes of the run.
        task: Has the images.
        data: Name of the data, for messages.

    Attributes:
        used: Fingerprints of all images that the run has used; ``None`` while they are not known, and on all processes
            but the first.

    Raises:
        ValueError: The processes opened different images.
    """

    def __init__(self, fabric: Fabric, task: Training, data: str) -> None:
        self._fabric, self._task, self._data = fabric, task, data
        self.used: UsedImages | None = None
        train, val = task.train_set, task.val_set
        self._listing = hash_bytes(train.listing(), b"\0", val.listing())
        self._val_listing = hash_bytes(val.listing())
        self._labels = train.hash_labels(), val.hash_labels()
        check_same_images(
            fabric,
            data,
            training=(len(train), hash_bytes(train.listing(), str(self._labels[0]).encode())),
            validation=(len(val), hash_bytes(val.listing(), str(self._labels[1]).encode())),
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint says about the images, on the first process."""
        assert self.used is not None
        return {
            "images": self.used.to_tensors(),
            "listing": self._listing,
            "val_listing": self._val_listing,
            "labels": list(self._labels),
        }

    def read(self) -> None:
        """Compute the fingerprints on the first process, unless they are known from a checkpoint."""

        def read() -> None:
            if self.used is None:
                self.used = self._with_initial(self._read())

        on_first(self._fabric, read, long=True)

    def compare(self, checkpoint: Checkpoint | None, folder: Path, allow_changed: bool) -> bool:
        """Compare the images of a checkpoint with those of now, on the first process; from then on, ``used`` has both.

        All validation images and a sample of the training images are compared by content, the rest by name and label.

        Args:
            checkpoint: The checkpoint, if there is one; it may not say which images the run has used.
            folder: The run's folder, for messages.
            allow_changed: Accept other images, with a warning.

        Returns:
            Whether the validation images, their order or their labels differ, so that metrics cannot be compared.

        Raises:
            ValueError: There are other images now, and this is not allowed.
        """
        differ = False

        def compare() -> None:
            nonlocal differ
            before = UsedImages.from_checkpoint(checkpoint)
            if checkpoint is not None and before is not None:
                differ = self._compare(before, checkpoint.state, folder, allow_changed)

        on_first(self._fabric, compare, long=True)
        return any_process(self._fabric, differ)[0]

    def _compare(self, before: UsedImages, state: Mapping[str, Any], folder: Path, allow_changed: bool) -> bool:
        self.used = before
        val = np.unique(self._task.val_set.identities())
        new_val = int((~np.isin(val, before.val)).sum())
        gone = len(before.val) - len(val) + new_val
        new = self._new_training_images(before)
        changes = [
            text
            for number, text in (
                (new, f"{new} training images are new"),
                (new_val, f"{new_val} validation images are new"),
                (gone, f"{gone} validation images are gone"),
                (state.get("listing", self._listing) != self._listing, "names or order of the images differ"),
                (tuple(state.get("labels", self._labels)) != self._labels, "labels differ"),
            )
            if number
        ]
        if not changes:
            return False
        if not allow_changed:
            raise ValueError(
                f"{folder}: {self._data} is not the data that this run was started with: {', '.join(changes)}. Restore "
                "it, choose another folder with --run, or accept it with --engine.allow_changed_data true"
            )
        log.warning("%s: the data have changed since the run began: %s", self._data, ", ".join(changes))
        now = self._read()
        self.used = replace(now, train=np.union1d(before.train, now.train), unlabeled=before.unlabeled)
        # Earlier checkpoints have one listing of the training and validation images.
        listings = (
            (state["val_listing"], self._val_listing)
            if "val_listing" in state
            else (state.get("listing", self._listing), self._listing)
        )
        labels = state.get("labels", self._labels)[1], self._labels[1]
        return listings[0] != listings[1] or labels[0] != labels[1] or not np.array_equal(val, before.val)

    def _new_training_images(self, before: UsedImages) -> int:
        """Number of training images, of a sample that is a part of those that a run keeps, that it has not used."""
        sample = np.unique(self._task.train_set.fingerprints(min(SAMPLED, MAX_TRAIN)))
        return int((~np.isin(sample, before.train)).sum())

    def _read(self) -> UsedImages:
        task = self._task
        val = task.val_set.fingerprints()
        used = UsedImages(np.unique(task.train_set.fingerprints(MAX_TRAIN)), np.unique(task.val_set.identities()))
        if common := int(np.isin(val, used.train).sum()):
            log.warning(
                "%s: %s%d of the %d validation images are identical to a training image; the metrics will be too high",
                self._data, "at least " if len(task.train_set) > MAX_TRAIN else "", common, len(val),
            )  # fmt: skip
        return used

    def _with_initial(self, used: UsedImages) -> UsedImages:
        """The images that a new run uses, and the training images of its initial weights where these are of a run."""
        initial = self._task.initial_images
        if initial is None:
            return used
        val = self._task.val_set.fingerprints()
        if common := int((np.isin(val, initial.train) & ~np.isin(val, used.train)).sum()):
            log.warning(
                "%s: the %s trained on %d of the %d validation images; the metrics will be too high", self._data,
                "initial weights were" if self._task.distillation is None else "initial weights, or the teacher, were",
                common, len(val),
            )  # fmt: skip
        unlabeled = np.union1d(used.unlabeled, initial.unlabeled)
        return replace(used, train=np.union1d(used.train, initial.train), unlabeled=unlabeled)
