"""Fingerprints of images: which images a model was trained, validated and calibrated on, wherever they are stored."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ..checkpoints import Checkpoint
from ..text import get_logger

log = get_logger(__name__)
Fingerprints = npt.NDArray[np.int64]

PART = 1 << 14  # bytes; of a larger file than three parts, the first, the middle and the last one are hashed
# First bytes of JPEG, PNG, GIF, JPEG 2000 and JPEG XL, of which a change of a pixel changes all that follows it. In
# formats that may be without compression, e.g. BMP, DIB, TGA, TIFF, PPM and .npy, it leaves the rest the same.
COMPRESSED = (
    *(b"\xff\xd8", b"\x89PNG", b"GIF8"),
    *(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"\0\0\0\x0cJXL ", b"\xff\x0a"),
)
THREADS = 16  # reading is bound by latency
CHUNK = 1024  # images per task of a thread
# Training images of which fingerprints are kept; a sample of a larger dataset, since they are computed before the first
# step, by up to three reads of each file.
MAX_TRAIN = 200_000
ANNOUNCED = 100_000  # images from which computing the fingerprints takes long enough to be logged
NONE: Fingerprints = np.zeros(0, dtype=np.int64)


def hash_bytes(*parts: bytes) -> int:
    """64-bit hash of the concatenated parts, as a signed integer."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest(), "little", signed=True)


def hash_content(size: int, read: Callable[[int, int], bytes]) -> int:
    """64-bit hash of the content of a file; of a large file in a format with compression, its size and three parts.

    Args:
        size: Size in bytes.
        read: ``(offset, length) -> bytes``.
    """
    first = read(0, PART)
    whole = size <= 3 * PART or not _is_compressed(first)
    offsets = range(PART, size, PART) if whole else ((size - PART) // 2, size - PART)
    return hash_bytes(str(size).encode(), first, *(read(offset, PART) for offset in offsets))


def _is_compressed(first: bytes) -> bool:
    """Whether these are the first bytes of a format with compression; WebP, AVIF and HEIF start with a length."""
    return first.startswith(COMPRESSED) or first[8:12] == b"WEBP" or first[4:8] == b"ftyp"


def hash_file(path: Path) -> int:
    """:func:`hash_content` of a file.

    Raises:
        OSError: The file cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return hash_content(os.fstat(descriptor).st_size, lambda offset, length: os.pread(descriptor, length, offset))
    finally:
        os.close(descriptor)


def map_images(function: Callable[[int], int], count: int) -> Fingerprints:
    """``function(i)`` for each image index ``i`` below ``count``, computed by several threads."""
    if count >= ANNOUNCED:
        log.info("computing the fingerprints of %s images", f"{count:,}")
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    with ThreadPoolExecutor(THREADS) as pool:
        hashed = pool.map(lambda chunk: [function(i) for i in chunk], chunks)
        return np.array([value for chunk in hashed for value in chunk], dtype=np.int64)


def hash_pixels(image: Image.Image) -> int:
    """64-bit hash of the mode, size and pixels of an image in memory."""
    return hash_bytes(f"{image.mode} {image.size} ".encode(), image.tobytes())


def hash_files(paths: Iterable[Path]) -> Fingerprints:
    """Sorted fingerprints of the content of files."""
    files = list(paths)
    return np.unique(map_images(lambda i: hash_file(files[i]), len(files)))


@dataclass(frozen=True)
class UsedImages:
    """The images that a model was trained, validated and calibrated on, as fingerprints.

    Args:
        train: Content of the training images, at most ``MAX_TRAIN`` of them, and of those that the initial weights were
            trained on.
        val: Id and content of the validation images; see :meth:`smt_vision.data.dataset.RawDataset.identities`.
        calibration: Content of the images that an 8-bit export or the temperature of a classifier was calibrated on.
        unlabeled: Content of the images that the initial weights were pretrained on without their labels.
    """

    train: Fingerprints = field(default_factory=NONE.copy)
    val: Fingerprints = field(default_factory=NONE.copy)
    calibration: Fingerprints = field(default_factory=NONE.copy)
    unlabeled: Fingerprints = field(default_factory=NONE.copy)

    def count_in(self, fingerprints: Fingerprints) -> dict[str, int]:
        """Numbers of images that the model was ``trained_on`` and ``calibrated_on`` among those with a content.

        After pretraining without labels, also those that it was ``pretrained_on`` only.
        """
        trained = np.isin(fingerprints, self.train)
        pretrained = np.isin(fingerprints, self.unlabeled) & ~trained
        return {
            "trained_on": int(trained.sum()),
            "calibrated_on": int(np.isin(fingerprints, self.calibration).sum()),
            **({"pretrained_on": int(pretrained.sum())} if len(self.unlabeled) else {}),
        }

    def to_tensors(self) -> dict[str, Tensor]:
        """The fingerprints by name, as checkpoints and exports store them."""
        return {f.name: torch.from_numpy(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Any]) -> "UsedImages":
        """The inverse of :meth:`to_tensors`.

        Raises:
            ValueError: These are not fingerprints.
        """
        names = [f.name for f in fields(cls)]
        for name, value in tensors.items() if isinstance(tensors, Mapping) else [(tensors, None)]:
            if name not in names or not isinstance(value, Tensor) or value.dtype != torch.int64 or value.ndim != 1:
                raise ValueError(f"invalid fingerprints of images {name!r}: expected 1-D int64 {', '.join(names)}")
        return cls(**{name: value.numpy() for name, value in tensors.items()})

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint | None) -> "UsedImages | None":
        """The images of a run's checkpoint; ``None`` if they are not known."""
        if checkpoint is None or checkpoint.spec is None or "images" not in checkpoint.state:
            return None
        try:
            return cls.from_tensors(checkpoint.state["images"])
        except ValueError as error:
            raise ValueError(f"{checkpoint.path}: {error}; use another checkpoint") from error

    @classmethod
    def of_initial_weights(cls, checkpoint: Checkpoint | None) -> "UsedImages | None":
        """:meth:`from_checkpoint`, for a run that starts from its weights: images of pretraining are without labels."""
        used = cls.from_checkpoint(checkpoint)
        recipe = None if checkpoint is None else checkpoint.state.get("recipe")
        if used is None or not isinstance(recipe, Mapping) or recipe.get("task") != "pretrain":
            return used
        return replace(used, train=NONE.copy(), unlabeled=np.union1d(used.unlabeled, used.train))
