"""Transforms equal to timm's; samplers and loaders that are exact over ranks and after a resume."""

import itertools
import logging
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import ImageDataset as TimmDataset
from timm.data import create_transform, resolve_data_config
from timm.data.transforms_factory import transforms_imagenet_train
from torch import Tensor, nn
from torchvision.transforms import Compose, Normalize, ToTensor

from smt_vision.data.decode import UnreadableImage
from smt_vision.data.loaders import TrainLoader, seed_all, share_of_cores
from smt_vision.data.samplers import EvalSampler, TrainSampler
from smt_vision.data.transforms import ToNormalized
from smt_vision.tasks.classification.config import ClassificationAugment, ClassificationInput
from smt_vision.tasks.classification.data.dataset import ImageDataset
from smt_vision.tasks.classification.data.loaders import (
    ClassificationBatch,
    classification_eval_loader,
    classification_train_loader,
)
from smt_vision.tasks.classification.data.sources import open_dataset
from smt_vision.tasks.classification.data.transforms import PadCrop, eval_transform, train_transform
from smt_vision.tasks.classification.published import published_input
from tiny_run import environment
from waiting import wait_until

PLAIN = ClassificationAugment(crop="none", hflip=0.0, color_jitter=0.0, auto_augment=None, random_erasing=0.0)
SMALL = ClassificationInput(size=16, crop_pct=1.0, workers=0)

ORDER = [[9, 1, 3, 8], [7, 6, 0, 4]]  # of 10 images in batches of 4, epoch 1, seed 0


class ArrayImages(ImageDataset):
    """N images of 20 x 16 pixels of seeded noise; those in ``broken`` cannot be decoded."""

    def __init__(self, length: int, broken: Sequence[int] = (), fatal: bool = False) -> None:
        super().__init__(["even", "odd"], [i % 2 for i in range(length)], [f"{i}.png" for i in range(length)], "set/")
        self.broken_rows = frozenset(broken)
        self.fatal = fatal

    def _read(self, row: int, name: str) -> bytes | Image.Image:
        if self.fatal and torch.utils.data.get_worker_info() is not None:
            os._exit(3)
        if row in self.broken_rows:
            return b"not an image"
        pixels = np.random.default_rng(row).integers(0, 256, (16, 20, 3), dtype=np.uint8)
        return Image.fromarray(pixels)


def photo(height: int = 60, width: int = 90, channels: int = 3) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def indices(batches: list[ClassificationBatch]) -> list[int]:
    return [i for batch in batches for i in batch["index"].tolist()]


def assert_equal_batches(left: list[ClassificationBatch], right: list[ClassificationBatch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a["index"].tolist() == b["index"].tolist()
        assert a["target"].tolist() == b["target"].tolist()
        assert torch.equal(a["image"], b["image"])


# Transforms


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("channels", [1, 3])
def test_eval_transform_matches_timm(crop_mode: str, channels: int) -> None:
    given = ClassificationInput(size=32, channels=channels, crop_pct=0.9, crop_mode=crop_mode, mean=(0.4,) * channels,
                  std=(0.3,) * channels, exact=True)  # fmt: skip
    theirs = create_transform((channels, 32, 32), crop_pct=0.9, crop_mode=crop_mode, interpolation="bicubic",
                              mean=(0.4,) * channels, std=(0.3,) * channels)  # fmt: skip
    ours = eval_transform(given)(photo(channels=channels))
    assert ours.shape == (channels, 32, 32)
    assert torch.equal(ours, theirs(photo(channels=channels)))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # timm's reader leaves files open
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_image_folder_matches_timm_validation(tmp_path: Path, name: str) -> None:
    for k, (label, size) in enumerate([("cat", (300, 240)), ("cat", (90, 150)), ("dog", (33, 32))]):
        (tmp_path / "val" / label).mkdir(parents=True, exist_ok=True)
        photo(*size).save(tmp_path / "val" / label / f"{k}.jpg")
    model = timm.create_model(name)
    config = resolve_data_config({}, model=model, use_test_size=True)  # as validate.py
    theirs = TimmDataset(str(tmp_path / "val"), transform=create_transform(**config))
    loader = classification_eval_loader(
        open_dataset(str(tmp_path), "val"), replace(published_input(model), workers=0), batch_size=2
    )
    images = torch.cat([batch["image"] for batch in loader])
    targets = torch.cat([batch["target"] for batch in loader])
    assert torch.equal(images, torch.stack([image for image, _ in theirs]))
    assert targets.tolist() == [target for _, target in theirs]


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "3a", None])
@pytest.mark.parametrize("interpolation", ["bicubic", "random"])
def test_train_transform_matches_timm(policy: str | None, interpolation: str) -> None:
    augment = ClassificationAugment(auto_augment=policy, random_erasing=0.5)
    ours = train_transform(ClassificationInput(size=32, interpolation=interpolation, exact=True), augment)
    theirs = transforms_imagenet_train(
        32, auto_augment=policy, interpolation=interpolation, re_prob=0.5, re_mode="pixel", color_jitter=0.4
    )
    for i in range(20):
        seed_all(i)
        expected = theirs(photo())
        seed_all(i)
        assert torch.equal(ours(photo()), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalize_is_bit_identical_to_torchvision(channels: int) -> None:
    mean, std = (0.485, 0.456, 0.406)[:channels], (0.229, 0.224, 0.225)[:channels]
    theirs = Compose([ToTensor(), Normalize(torch.tensor(mean), torch.tensor(std))])
    ours = ToNormalized(mean, std)(photo(channels=channels))
    assert torch.equal(ours, theirs(photo(channels=channels)))
    assert ours.is_contiguous()


def test_pad_crop() -> None:
    image = photo(8, 6)
    padded = np.pad(np.asarray(image), ((2, 2), (2, 2), (0, 0)))
    windows = {padded[y : y + 8, x : x + 6].tobytes() for y in range(5) for x in range(5)}
    random.seed(0)
    drawn = {np.asarray(PadCrop(2)(image)).tobytes() for _ in range(500)}
    assert drawn == windows


@pytest.mark.parametrize("crop", ["rrc", "pad", "none"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "original", None])
def test_train_transform_shapes(crop: str, channels: int, policy: str | None) -> None:
    transform = train_transform(
        ClassificationInput(size=24, channels=channels),
        ClassificationAugment(crop=crop, auto_augment=policy, vflip=0.5, random_erasing=1.0),
    )
    for _ in range(10):
        out = transform(photo(channels=channels))
        assert out.shape == (channels, 24, 24)
        assert out.dtype == torch.float32
        assert out.isfinite().all()


def test_train_transform_without_augmentation_only_resizes() -> None:
    out = train_transform(replace(SMALL, size=60), PLAIN)(photo(60, 60))
    assert torch.equal(out, ToNormalized((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(photo(60, 60)))
    squashed = train_transform(replace(SMALL, size=30), PLAIN)(photo())
    assert torch.equal(squashed, eval_transform(replace(SMALL, size=30, crop_mode="squash"))(photo()))


def test_flips() -> None:
    image, given = photo(16, 16), replace(SMALL, mean=(0.0,) * 3, std=(1.0,) * 3)
    plain = train_transform(given, PLAIN)(image)
    assert torch.equal(train_transform(given, replace(PLAIN, hflip=1.0))(image), plain.flip(-1))
    assert torch.equal(train_transform(given, replace(PLAIN, vflip=1.0))(image), plain.flip(-2))


def test_transform_errors() -> None:
    with pytest.raises(ValueError, match=r"input\.mean.*\(0\.5, 0\.5\)"):
        eval_transform(ClassificationInput(mean=(0.5, 0.5)))
    with pytest.raises(ValueError, match=r"input\.channels.*4"):
        train_transform(ClassificationInput(channels=4), ClassificationAugment())


def test_published_input() -> None:
    found = published_input(timm.create_model("vit_tiny_patch16_224"))
    assert (found.size, found.crop_pct, found.crop_mode, found.interpolation) == (224, 0.9, "center", "bicubic")
    assert found.mean == found.std == (0.5, 0.5, 0.5)
    assert found.exact
    model = nn.Identity()
    model.pretrained_cfg = {"input_size": (3, 128, 64)}
    with pytest.raises(ValueError, match="128 x 64"):
        published_input(model)
    model.pretrained_cfg = {"crop_mode": "border"}
    with pytest.raises(ValueError, match=r"crop_mode.*'border'"):
        published_input(model)


# Samplers


@pytest.mark.parametrize("world", [1, 2, 3])
def test_training_order_over_ranks(world: int) -> None:
    samplers = [TrainSampler(103, 8, rank, world, seed=5) for rank in range(world)]
    epochs = [[list(s.batches(epoch)) for s in samplers] for epoch in (0, 1)]
    for ranks in epochs:
        assert {len(batches) for batches in ranks} == {103 // (8 * world)}
        seen = [i for batches in ranks for batch in batches for i in batch]
        assert all(len(batch) == 8 for batches in ranks for batch in batches)
        assert len(set(seen)) == len(seen) == 103 // (8 * world) * 8 * world
    assert epochs[0] != epochs[1]
    assert epochs[0][0] == list(TrainSampler(103, 8, 0, world, seed=5).batches(0))
    assert epochs[0][0] != list(TrainSampler(103, 8, 0, world, seed=6).batches(0))
    assert list(samplers[0].batches(1, start_batch=2)) == epochs[1][0][2:]


def test_training_order_known_answer() -> None:
    assert list(TrainSampler(10, 4, 0, 1, seed=0).batches(1)) == ORDER


def test_global_batch_does_not_depend_on_world_size() -> None:
    one = [set(batch) for batch in TrainSampler(64, 8, 0, 1, 0).batches(3)]
    two = zip(*(TrainSampler(64, 4, rank, 2, 0).batches(3) for rank in range(2)), strict=True)
    assert one == [set(a) | set(b) for a, b in two]


@pytest.mark.parametrize("world", [1, 2])
def test_batches_have_one_group(world: int) -> None:
    groups = np.arange(100) % 5 == 0
    ranks = [TrainSampler(100, 6 // world, rank, world, 0, groups=groups) for rank in range(world)]
    lost, orders = set(), []
    for epoch in range(30):
        batches = [[*itertools.chain(*shares)] for shares in zip(*(rank.batches(epoch) for rank in ranks), strict=True)]
        assert len(batches) == len(ranks[0]) == 16
        kinds = [set(groups[batch].tolist()) for batch in batches]
        assert sum(len(kind) == 2 for kind in kinds) <= 1
        seen = [i for batch in batches for i in batch]
        assert len(set(seen)) == len(seen) == 96
        lost |= set(range(100)) - set(seen)
        orders.append(tuple(True in kind for kind in kinds))
        assert list(ranks[0].batches(epoch, start_batch=5)) == list(ranks[0].batches(epoch))[5:]
    assert set(groups[list(lost)].tolist()) == {False, True}  # neither group always loses its last images
    assert len(set(orders)) > 25


def test_group_of_one_image_is_sampled() -> None:
    groups = np.arange(9) == 4
    seen = {i for epoch in range(20) for batch in TrainSampler(9, 4, 0, 1, 0, groups).batches(epoch) for i in batch}
    assert seen == set(range(9))


def test_dataset_smaller_than_batch() -> None:
    (batch,) = TrainSampler(5, 8, 0, 1, 0).batches(0)
    assert sorted(batch) == [0, 1, 2, 3, 4]
    shares = [list(TrainSampler(5, 8, rank, 2, 0).batches(0)) for rank in range(2)]
    assert [len(batch) for share in shares for batch in share] == [2, 2]
    with pytest.raises(ValueError, match=r"2 .*3 processes"):
        TrainSampler(2, 8, 0, 3, 0)


@pytest.mark.parametrize(("length", "world"), [(10, 1), (10, 3), (2, 4), (12, 4)])
def test_eval_sampler_covers_each_image_once(length: int, world: int) -> None:
    samplers = [EvalSampler(length, 2, rank, world) for rank in range(world)]
    batches = [list(sampler.batches()) for sampler in samplers]
    assert [len(b) for b in batches] == [len(s) for s in samplers]
    assert sorted(i for b in batches for batch in b for i in batch) == list(range(length))


# Loaders


def loader_of(
    workers: int, length: int = 22, augment: ClassificationAugment | None = None, **options: object
) -> TrainLoader:
    images = ArrayImages(length, **options)
    return classification_train_loader(
        images, replace(SMALL, workers=workers, max_unreadable=3), augment or ClassificationAugment(), 4, seed=1
    )


def test_train_batches() -> None:
    loader = loader_of(0, augment=PLAIN)
    batches = list(loader.epoch(0))
    assert loader.batches_per_epoch == len(batches) == 5
    assert len(set(indices(batches))) == 20
    for batch in batches:
        assert batch["image"].shape == (4, 3, 16, 16)
        assert batch["image"].dtype == torch.float32
        assert batch["target"].dtype == batch["index"].dtype == torch.int64
        assert batch["target"].tolist() == [i % 2 for i in batch["index"].tolist()]
        assert batch["unreadable"] == []
        raw, _, _ = loader.images.read(int(batch["index"][0]))
        assert torch.equal(batch["image"][0], train_transform(SMALL, PLAIN)(raw))


def test_batches_do_not_depend_on_workers_and_resume_exactly() -> None:
    full = loader_of(0)
    first, second = list(full.epoch(0)), list(full.epoch(1))
    assert not torch.equal(first[0]["image"], second[0]["image"])
    for workers in (0, 2):
        loader = loader_of(workers)
        assert_equal_batches(list(loader.epoch(1, start_batch=2)), second[2:])
        part = loader.epoch(0)  # abandoned after two batches
        assert_equal_batches([next(part), next(part)], first[:2])
        assert_equal_batches(list(loader.epoch(1)), second)
        assert list(loader.epoch(0, start_batch=5)) == []
        loader.close()


def test_global_generators_are_restored() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))

    for workers in (0, 1):
        seed_all(3)
        expected = [draw(), draw()]
        loader = loader_of(workers)
        seed_all(3)
        seen = [draw()]
        list(loader.epoch(0))
        seen.append(draw())
        loader.close()
        assert seen == expected


def test_dataset_can_be_pickled() -> None:  # for platforms without fork
    dataset = loader_of(0)._loader.dataset
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(dataset[0, 7]["image"], copy[0, 7]["image"])


def test_every_generator_is_reseeded_per_image() -> None:
    def three(image: Image.Image) -> Tensor:
        return torch.tensor([random.random(), np.random.random(), float(torch.rand(()))]).reshape(3, 1, 1)

    loader = loader_of(0)
    loader._loader.dataset.transform = lambda image, target, name: {"image": three(image), "target": target}
    draws = torch.cat([batch["image"].flatten() for epoch in range(2) for batch in loader.epoch(epoch)])
    assert len(draws.unique()) == 2 * 20 * 3


@pytest.mark.parametrize("workers", [0, 1])
def test_training_replaces_unreadable_images_and_warns_once(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    loader = loader_of(workers, length=20, broken=(3, 4, 11))
    for epoch in range(2):
        batches = list(loader.epoch(epoch))
        assert [len(batch["target"]) for batch in batches] == [4] * 5
        seen = indices(batches)
        assert {3, 4, 11}.isdisjoint(seen)
        assert seen.count(5) == 3  # for itself, 3 and 4
        assert seen.count(12) == 2
    loader.close()
    assert sorted(message.split(":")[0] for message in loader.unreadable) == ["set/11.png", "set/3.png", "set/4.png"]
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 3
    assert "1 of at most 3: set/" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_drops_unreadable_images(workers: int) -> None:
    given = replace(SMALL, workers=workers, max_unreadable=3)
    loader = classification_eval_loader(ArrayImages(10, broken=(1, 4, 5)), given, batch_size=2)
    for _ in range(2):
        batches = list(loader)
        assert indices(batches) == [0, 2, 3, 6, 7, 8, 9]
    assert len(loader) == 5  # the batch of images 4 and 5 is empty and skipped
    assert len(loader.unreadable) == 3
    loader.close()


def test_an_error_of_the_storage_is_one_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: ArrayImages, row: int, name: str) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(ArrayImages, "_read", read)
    loader = classification_eval_loader(ArrayImages(3), SMALL, 2)
    assert not list(loader)
    assert loader.unreadable[0] == "set/0.png: [Errno 5] Input/output error"


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_unreadable_images(workers: int) -> None:
    message = r"^[4-9] .*max_unreadable=3: set/\d+\.png: .*; set/.*; set/.* \.\.\..*input\.max_unreadable"
    loader = loader_of(workers, length=20, broken=range(9))
    with pytest.raises(UnreadableImage, match=message):
        list(loader.epoch(0))
    loader.close()
    loader = loader_of(workers, length=20, broken=range(20))
    with pytest.raises(UnreadableImage, match="max_unreadable=3"):
        list(loader.epoch(0))
    loader.close()
    strict = classification_eval_loader(
        ArrayImages(10, broken=(7,)), replace(SMALL, workers=workers, max_unreadable=0), batch_size=4
    )
    with pytest.raises(UnreadableImage, match=r"^1 .*max_unreadable=0: set/7\.png"):
        list(strict)
    strict.close()


def test_dead_worker() -> None:
    loader = loader_of(1, fatal=True)
    with pytest.raises(RuntimeError, match=r"memory.*input\.workers \(now 1\)"):
        list(loader.epoch(0))
    loader.close()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_end_with_a_training_process_that_is_killed(method: str) -> None:
    code = f"""
import multiprocessing, time
if __name__ == "__main__":
    multiprocessing.set_start_method("{method}")
    from test_loaders import ArrayImages, SMALL, classification_eval_loader, replace
    loader = classification_eval_loader(ArrayImages(8), replace(SMALL, workers=1), 2)
    batches = iter(loader)
    next(batches)
    print(*(worker.pid for worker in loader._loader._iterator._workers), flush=True)
    time.sleep(60)
"""
    env = {**environment(), "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes: dict[str, Any] = dict(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with subprocess.Popen([sys.executable, "-c", code], env=env, **pipes) as process:
        assert process.stdout is not None
        worker = Path(f"/proc/{int(process.stdout.readline())}/cmdline")
        assert worker.exists()
        process.kill()
    wait_until(lambda: not worker.exists() or not worker.read_bytes())  # a zombie has no command line


def test_workers_are_limited_to_batches_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert loader_of(64, length=4000)._loader.num_workers == cores
    assert loader_of(64, length=4)._loader.num_workers == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert loader_of(64, length=4000)._loader.num_workers == 1
    assert loader_of(0, length=4000)._loader.num_workers == 0


def test_cores_are_shared_by_the_processes_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)  # a run in this process sets it
    assert share_of_cores() == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert share_of_cores() == 4
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")
    monkeypatch.setenv("SLURM_NTASKS", "1")  # a shell in a job, in which the processes are started otherwise
    assert share_of_cores() == 4
    monkeypatch.setenv("SLURM_NTASKS", "8")  # SLURM has started the processes, four per machine
    assert share_of_cores() == 12
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")  # one torchrun per task
    assert share_of_cores() == 4


def test_eval_batches_over_ranks_cover_the_dataset() -> None:
    images = ArrayImages(11)
    parts = [list(classification_eval_loader(images, SMALL, batch_size=3, rank=rank, world=3)) for rank in range(3)]
    assert sorted(i for part in parts for i in indices(part)) == list(range(11))


def test_grayscale_input_from_color_files() -> None:
    given = replace(SMALL, channels=1, mean=(0.5,), std=(0.5,))
    (batch,) = classification_train_loader(ArrayImages(6), given, ClassificationAugment(), 6, seed=0).epoch(0)
    assert batch["image"].shape == (6, 1, 16, 16)
    images = ArrayImages(6)
    (batch,) = classification_eval_loader(images, given, 6)
    gray = [eval_transform(given)(images.read(i)[0].convert("L")) for i in range(6)]
    assert torch.equal(batch["image"], torch.stack(gray))


def test_augmentation_depends_on_seed_epoch_and_index() -> None:
    batches = list(loader_of(0).epoch(0))
    position = indices(batches).index(7)
    image = batches[position // 4]["image"][position % 4]
    seed_all(1, 0, 7)
    raw, _, _ = ArrayImages(22).read(7)
    assert torch.equal(image, train_transform(SMALL, ClassificationAugment())(raw))


def test_cifar10_batches(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = shared / "data" / "cifar10.tar.gz"
    if not source.is_file():
        pytest.skip("no CIFAR-10 among the shared files")
    monkeypatch.setenv("SMT_CACHE_DIR", str(tmp_path))
    images = open_dataset(str(source), "train")
    given = ClassificationInput(
        size=32, crop_pct=1.0, mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616), workers=1
    )
    loader = classification_train_loader(images, given, replace(PLAIN, hflip=0.5), 128, seed=0)
    assert loader.batches_per_epoch == 390
    batches = [batch for batch, _ in zip(loader.epoch(0), range(8), strict=False)]
    loader.close()
    pixels = torch.cat([batch["image"] for batch in batches])
    # Normalized by the published statistics of the dataset.
    assert pixels.mean().abs() < 0.05
    assert abs(pixels.std() - 1) < 0.05
    assert torch.cat([batch["target"] for batch in batches]).bincount(minlength=10).min() > 70
