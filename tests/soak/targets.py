"""Everything that reads a file or a value from outside: how a valid example is made, and how it is read."""

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import datasets
import numpy as np
import timm
import torch
import torchmetrics.classification  # noqa: F401  otherwise imported by the first evaluation, and counted as growth
import yaml
from PIL import Image

from dense_sets import coco_content, write_coco, write_cvat, write_voc, write_yolo, yolo_content
from drawn_sets import scenes_recipe, shapes_recipe, write_scenes, write_shapes
from smt_vision import RECIPES, checkpoints, cli, load
from smt_vision.convert import convert_file
from smt_vision.data.decode import MAX_PIXELS, decode, decode_input
from smt_vision.data.files import is_image
from smt_vision.data.label_maps import decode_labels, decode_mask
from smt_vision.deploy.exported import MANIFEST, load_used_images, sha256
from smt_vision.engine import loop
from smt_vision.engine.log import read_log
from smt_vision.engine.loggers import read_ids
from smt_vision.model.official import to_official
from smt_vision.recipe import Recipe
from smt_vision.study.results import read_results
from smt_vision.study.studies import STUDIES
from smt_vision.study.throughput import read_throughput
from smt_vision.tasks.classification.config import ClassificationInput
from smt_vision.tasks.classification.data.sources import open_dataset
from smt_vision.tasks.classification.data.transforms import eval_transform
from smt_vision.tasks.detection.config import DetectConfig, DetectionAugment
from smt_vision.tasks.detection.data.sources import open_detection
from smt_vision.tasks.detection.data.transforms import DetectionTransform
from smt_vision.tasks.detection.results import coco_ids
from smt_vision.tasks.segmentation.config import SegmentConfig
from smt_vision.tasks.segmentation.data.sources import open_segmentation
from study_results import made_up_result
from tiny_run import COLORS, tiny, write_images, write_split

from .mutations import (
    VALUES,
    Mutator,
    compressed,
    mutate_bytes,
    mutate_json,
    mutate_json_lines,
    mutate_png,
    mutate_safetensors,
    mutate_state,
    mutate_tar,
    mutate_text,
    mutate_yaml,
    mutate_zip,
)

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
MEAN, STD = (0.5,) * 3, (0.25,) * 3


@dataclass(frozen=True)
class Example:
    """A folder's files, of which one is foreign.

    Args:
        files: Content by relative path.
        foreign: The file that is mutated.
    """

    files: Mapping[str, bytes]
    foreign: str


@dataclass(frozen=True)
class Target:
    """A reader.

    Args:
        name: Name of the target.
        area: Whose the reader is: ``data``, ``weights``, ``recipe``, ``engine``, ``study`` or ``cli``.
        examples: Valid examples; the argument is a folder for files that stay.
        read: Reads the file at a path, and uses what is in it as the package does.
        mutators: What may become of the foreign file.
        share: Share of the inputs, relative to the other targets.
        memory: Largest growth of the resident memory while one input is read, in MiB.
    """

    name: str
    area: str
    examples: Callable[[Path], Iterable[Example]]
    read: Callable[[Path], object]
    mutators: Sequence[Mutator]
    share: int = 10
    memory: int = 256


# --- images


def _images(folder: Path) -> Iterable[Example]:
    gradient = np.add.outer(np.arange(17) * 5, np.arange(24) * 5).astype(np.uint8)
    color = Image.merge(
        "RGB", [Image.fromarray(gradient), Image.fromarray(255 - gradient), Image.new("L", (24, 17), 9)]
    )
    suffixes = {format: suffix for suffix, format in Image.registered_extensions().items() if is_image(f"a{suffix}")}
    for format, suffix in sorted(suffixes.items()):
        for mode in ("RGB", "RGBA", "L", "P", "1", "I;16", "CMYK"):
            out = io.BytesIO()
            try:
                (color.convert("L").convert("I").convert(mode) if mode == "I;16" else color.convert(mode)).save(
                    out, format
                )
            except (OSError, KeyError, ValueError):  # the format does not have this mode
                continue
            yield Example({f"image{suffix}": out.getvalue()}, f"image{suffix}")
    variants: tuple[tuple[str, Any], ...] = (
        (".tif", dict(compression="tiff_deflate")), (".tif", dict(compression="tiff_lzw")),
        (".tif", dict(compression="packbits")), (".tif", dict(compression="jpeg")), (".jpg", dict(progressive=True)),
        (".jpg", dict(exif=_exif())), (".png", dict(exif=_exif())), (".webp", dict(exif=_exif(), lossless=True)),
    )  # fmt: skip
    for suffix, options in variants:
        out = io.BytesIO()
        color.save(out, Image.registered_extensions()[suffix], **options)
        yield Example({f"image{suffix}": out.getvalue()}, f"image{suffix}")


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    return exif


def _read_image(path: Path) -> None:
    image = decode(path, 3, name=str(path))
    assert image.mode == "RGB"
    assert image.width * image.height <= MAX_PIXELS
    if _is_one_in(3, path) or max(image.size) > 1000:
        gray = decode(path.read_bytes(), 1, name=str(path))
        assert gray.mode == "L"
        assert gray.size == image.size
        assert eval_transform(ClassificationInput(size=64, mean=MEAN, std=STD))(image).shape == (3, 64, 64)


def _is_one_in(count: int, path: Path) -> bool:
    """Whether a file is one of those that a slower part of a reader is run on; always the same for the same content."""
    return path.stat().st_size % count == 0


def _label_maps(folder: Path) -> Iterable[Example]:
    labels = np.arange(24 * 17).reshape(17, 24) % 3
    for suffix, kind in (
        (".png", "uint8"),
        (".png", "uint16"),
        (".tif", "int32"),
        (".tif", "float32"),
        (".bmp", "uint8"),
        (".tif", "uint8"),
    ):
        out = io.BytesIO()
        Image.fromarray(labels.astype(kind)).save(out, Image.registered_extensions()[suffix])
        yield Example({f"labels{suffix}": out.getvalue()}, f"labels{suffix}")
    for mode in ("1", "P", "LA", "RGB"):
        out = io.BytesIO()
        Image.fromarray((labels > 0).astype(np.uint8) * 255).convert(mode).save(out, "PNG")
        yield Example({f"mask-{mode}.png": out.getvalue()}, f"mask-{mode}.png")


def _read_label_map(path: Path) -> None:
    values = decode_labels(path, name=str(path))
    assert values.ndim == 2
    assert values.dtype.kind in "iu"


def _read_mask(path: Path) -> None:
    assert decode_mask(path, name=str(path)).dtype == np.uint8


# --- datasets


def _files(folder: Path, *foreign: str) -> Iterable[Example]:
    """Examples of a folder's files, one for each that is foreign."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return [Example(files, name) for name in foreign]


def _coco(folder: Path) -> Iterable[Example]:
    name = "annotations/instances_train.json"
    yield from _files(write_coco(folder / "coco"), name)
    yield from _files(write_shapes(folder / "shapes"), name)


def _voc(folder: Path) -> Iterable[Example]:
    objects = {"a": [("dog", (2, 3, 20, 25), 0), ("cat", (5, 5, 30, 28), 1)], "b": [("cat", (1, 1, 40, 30), 0)]}
    return _files(write_voc(folder / "voc", objects), "Annotations/a.xml", "ImageSets/Main/train.txt")


def _yolo_config(folder: Path) -> Iterable[Example]:
    yield from _files(write_yolo(folder / "yolo"), "data.yaml")
    (folder / "yolo" / "train.txt").write_text("images/train/a.png\nimages/train/b.png\n")
    text = "names:\n  0: dog\n  1: bottle\nnc: 2\npath: .\ntrain: [train.txt]\nval: ../images/train\ntest:\n"
    (folder / "yolo" / "data.yaml").write_text(text)
    yield from _files(folder / "yolo", "data.yaml")


def _yolo_text(folder: Path) -> Iterable[Example]:
    root = write_yolo(folder / "yolo")
    yield from _files(root, "labels/train/a.txt")
    yield from _files(write_yolo(folder / "boxes", polygons=False), "labels/train/a.txt")
    (root / "data.yaml").unlink()
    (root / "obj.data").write_text("classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    (root / "obj.names").write_text("dog\nbottle\n")
    (root / "train.txt").write_text("data/images/train/a.png\ndata/images/train/b.png\n")
    yield from _files(root, "obj.data", "obj.names", "train.txt")


def _cvat(folder: Path) -> Iterable[Example]:
    for polygons in (True, False):
        root = write_cvat(folder / f"cvat{polygons}", yolo_content(), polygons, "Train" if polygons else "")
        yield from _files(root, "annotations.xml")


def _read_detection(path: Path) -> None:
    root = path.parent
    while root.name != "case":
        root = root.parent
    images = open_detection(str(root), "train")
    if images.has_masks:
        images.require_masks()
    config = DetectConfig(head="mask_rcnn" if images.has_masks else "faster_rcnn", short_side=32, long_side=64)
    transform = DetectionTransform(ClassificationInput(mean=MEAN, std=STD), config, DetectionAugment())
    evaluation = DetectionTransform(ClassificationInput(mean=MEAN, std=STD), config, None)
    for i in range(min(len(images), 8)):
        raw, target, name = images.read(i)
        for each in (transform, evaluation):
            each(decode(raw, 3, name=name), target, name)
    images.ground_truth()


def _annotations(folder: Path) -> Iterable[Example]:
    content = coco_content()
    del content["annotations"]
    return [Example({"annotations.json": json.dumps(content).encode()}, "annotations.json")]


def _read_annotations(path: Path) -> None:
    coco_ids(path, [path.parent / "a.png", path.parent / "b.png"], ["bottle", "dog"])


def _segmentation(folder: Path) -> Iterable[Example]:
    root = write_scenes(folder / "scenes")
    labels = next(path for path in sorted(root.rglob("*.png")) if "label" in str(path.relative_to(root).parent).lower()
                  or "annotation" in str(path) or "mask" in str(path))  # fmt: skip
    yield from _files(root, "classes.json", str(labels.relative_to(root)))
    shutil.copytree(root, folder / "ade", ignore=lambda *_: ["classes.json"])
    (folder / "ade" / "objectInfo150.txt").write_text("Idx\tName\n1\tsky, heaven\n2\troad\n3\tcar\n")
    yield from _files(folder / "ade", "objectInfo150.txt")


def _read_segmentation(path: Path) -> None:
    root = path.parent
    while root.name != "case":
        root = root.parent
    images = open_segmentation(str(root), "train", SegmentConfig())
    for i in range(len(images)):
        images.read(i)


def _packed(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def _tars(folder: Path) -> Iterable[Example]:
    root = write_images(folder / "folders", COLORS, [3, 3, 3])
    images = {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.png"))}
    tar = _packed(images)
    yield Example({"set.tar": tar}, "set.tar")
    samples: dict[str, bytes] = {}
    for i, (name, content) in enumerate(images.items()):
        target = sorted(COLORS).index(name.split("/")[0])
        samples[f"{i:03}.png"] = content
        if i % 2:
            samples[f"{i:03}.cls"] = str(target).encode()
        else:
            samples[f"{i:03}.json"] = json.dumps({"label": target, "width": 36}).encode()
    names = "\n".join(sorted(COLORS)).encode()
    yield Example({"shards/set-0.tar": _packed(samples), "shards/classes.txt": names}, "shards/set-0.tar")


def _shard_classes(folder: Path) -> Iterable[Example]:
    *_, shards = _tars(folder)
    return [Example(shards.files, "shards/classes.txt")]


def _compressed_tars(folder: Path) -> Iterable[Example]:
    plain, *_ = _tars(folder)
    for suffix, compress in ((".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)):
        yield Example({f"set.tar{suffix}": compress(plain.files["set.tar"])}, f"set.tar{suffix}")


def _unpack(content: bytes) -> bytes:
    return {b"\x1f": gzip, b"B": bz2, b"\xfd": lzma}[content[:1]].decompress(content)  # type: ignore[attr-defined]


def _pack_as_before(content: bytes, rng: Random) -> bytes:
    """Mutate what is inside, with the same compression."""
    module = {b"\x1f": gzip, b"B": bz2, b"\xfd": lzma}[content[:1]]
    return compressed(mutate_tar, module.compress, _unpack)(content, rng)  # type: ignore[attr-defined]


def _read_tar(path: Path) -> None:
    source = path.parent if path.parent.name == "shards" else path
    cache = path.parent / "cache"
    with patch.dict(os.environ, SMT_CACHE_DIR=str(cache)):
        try:
            for split in ("train", "val"):
                images = open_dataset(str(source), split, val_fraction=0.4, allow_damaged=_is_one_in(2, path))
                for i in range(min(len(images), 20)):
                    images.read(i)
                images.fingerprints()
        finally:
            shutil.rmtree(cache, ignore_errors=True)


def _hub(folder: Path) -> Iterable[Example]:
    """A folder as the Hugging Face Hub has it: images in a Parquet file."""
    images = [path.read_bytes() for path in sorted(write_images(folder / "hub", COLORS, [3, 3, 3]).rglob("*.png"))]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=sorted(COLORS)))
    rows = {"image": [{"bytes": content, "path": None} for content in images], "label": [i % 3 for i in range(9)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    yield Example({"set/train.parquet": (folder / "train.parquet").read_bytes()}, "set/train.parquet")


def _read_hub(path: Path) -> None:
    cache = path.parent.parent / "cache"
    try:
        with (
            patch.object(datasets.config, "HF_DATASETS_CACHE", cache),
            patch.object(datasets.config, "HF_HUB_OFFLINE", True),
        ):
            images = open_dataset(f"hfds/{path.parent}", "train", val_fraction=0.4)
            for i in range(min(len(images), 9)):
                images.read(i)
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def _label_files(folder: Path) -> Iterable[Example]:
    root = write_images(folder / "labeled", COLORS, [3, 3, 3])
    names = [str(path.relative_to(root)) for path in sorted(root.rglob("*.png"))]
    images = {name: (root / name).read_bytes() for name in names}
    single = [name.split("/")[0] for name in names]
    several = ["|".join(sorted(COLORS)[: i % 4]) for i in range(len(names))]
    splits = ["val" if i % 3 == 0 else "train" for i in range(len(names))]
    rows = list(zip(names, splits, single, several, strict=True))
    lines = {
        "labels.csv": ["path,split,label", *(f"{p},{s},{label}" for p, s, label, _ in rows)],
        "quoted.csv": ["image,tags", *(f'"{p}","{tags}"' for p, _, _, tags in rows)],
        "labels.tsv": ["path\tlabel", *(f"{p}\t{label}" for p, _, label, _ in rows)],
        "flags.csv": ["file_name,a,b", *(f"{p},{i % 2},{i // 4}" for i, (p, *_) in enumerate(rows))],
        "metadata.jsonl": [json.dumps({"file_name": p, "labels": tags.split("|")}) for p, _, _, tags in rows if tags],
    }
    for name, content in lines.items():
        yield Example({**images, name: "\n".join(content).encode() + b"\n"}, name)


def _parquet_labels(folder: Path) -> Iterable[Example]:
    import pyarrow
    from pyarrow import parquet

    first, *_ = _label_files(folder)
    names = [name for name in first.files if name.endswith(".png")]
    images = {name: first.files[name] for name in names}
    for compression in ("none", "snappy", "zstd"):
        for values in ([n.split("/")[0] for n in names], [i % 3 for i in range(len(names))], [["a", "b"]] * len(names)):
            out = io.BytesIO()
            parquet.write_table(pyarrow.table({"path": names, "label": values}), out, compression=compression)
            yield Example({**images, "labels.parquet": out.getvalue()}, "labels.parquet")


def _read_label_file(path: Path) -> None:
    multi_label = _is_one_in(2, path)
    for split in ("train", "val"):
        images = open_dataset(str(path), split, val_fraction=0.4, multi_label=multi_label)
        for i in range(min(len(images), 5)):
            images.read(i)
        assert images.multi_label == multi_label


def _bands(folder: Path) -> Iterable[Example]:
    import tifffile

    pixels = np.random.default_rng(0).integers(0, 1000, (17, 24, 5)).astype(np.uint16)
    for order in ("C", "F"):
        out = io.BytesIO()
        np.save(out, np.asarray(pixels, order=order))  # type: ignore[call-overload]
        yield Example({"image.npy": out.getvalue()}, "image.npy")
    for options in (
        dict(planarconfig="contig"), dict(planarconfig="separate"), dict(compression="zlib"), dict(tile=(16, 16)),
        dict(bigtiff=True), dict(byteorder=">"), {},
    ):  # fmt: skip
        out = io.BytesIO()
        bands = pixels if options.get("planarconfig") == "contig" else pixels.transpose(2, 0, 1)
        tifffile.imwrite(out, bands, photometric="minisblack", **options)  # type: ignore[arg-type]
        yield Example({"image.tif": out.getvalue()}, "image.tif")


def _read_bands(path: Path) -> None:
    input = ClassificationInput(channels=5, size=64, mean=(0.5,) * 5, std=(0.25,) * 5)
    pixels = decode_input(path, input, name=str(path))
    assert isinstance(pixels, torch.Tensor)
    assert len(pixels) == 5
    if _is_one_in(3, path):
        assert eval_transform(input)(pixels).shape == (5, 64, 64)


# --- weights


def _models(folder: Path) -> Iterable[Example]:
    for name in ("classify.pt", "detect.pt", "segment.pt"):
        yield from (Example({name: (GOLDEN / name).read_bytes()}, name),)
        state = checkpoints.load(GOLDEN / name).state
        checkpoints.save(state, folder / f"new-{name}")
        yield Example({name: (folder / f"new-{name}").read_bytes()}, name)


def _safetensors(folder: Path) -> Iterable[Example]:
    yield Example({"classify.safetensors": (GOLDEN / "classify.safetensors").read_bytes()}, "classify.safetensors")
    state = checkpoints.load(GOLDEN / "detect.pt")
    checkpoints.save({"spec": state.spec, "model": state.weights}, folder / "detect.safetensors")
    yield Example({"detect.safetensors": (folder / "detect.safetensors").read_bytes()}, "detect.safetensors")


def _read_model(path: Path) -> None:
    load(path)


def _state_dicts(folder: Path) -> Iterable[Example]:
    """Weights as the release, timm and Lightning store them."""
    state = {name: tensor.half() for name, tensor in timm.create_model("smt_atto").state_dict().items()}
    for name, content in (
        ("release.pth", {"model": to_official(state)}),
        ("timm.pth.tar", {"state_dict": state, "epoch": 3, "arch": "smt_atto"}),
        ("lightning.ckpt", {"state_dict": {f"net.{k}": v for k, v in state.items()}, "hyper_parameters": {"lr": 0.1}}),
    ):
        out = io.BytesIO()
        torch.save(content, out, _use_new_zipfile_serialization=name != "release.pth")
        yield Example({name: out.getvalue()}, name)


def _mutate_pth(content: bytes, rng: Random) -> bytes:
    """A PyTorch file of either format: the pickle in it, the zip around it, or the values."""
    mutators = (mutate_state, mutate_zip, mutate_bytes) if content.startswith(b"PK") else (mutate_state, mutate_bytes)
    return rng.choice(mutators)(content, rng)


def _read_state_dict(path: Path) -> None:
    target = path.with_name("converted.safetensors")
    try:
        convert_file(path, target)
    finally:
        target.unlink(missing_ok=True)


def _export(folder: Path) -> Iterable[Example]:
    shutil.copytree(GOLDEN / "classify-onnx", folder / "export")
    return _files(folder / "export", MANIFEST)


def _read_export(path: Path) -> None:
    load(path.parent)


def _used_images(folder: Path) -> Iterable[Example]:
    from safetensors.torch import save

    tensors = {name: torch.arange(5) for name in ("train", "val", "calibration")}
    return [Example({"images.safetensors": save(tensors)}, "images.safetensors")]


def _onnx(folder: Path) -> Iterable[Example]:
    shutil.copytree(GOLDEN / "classify-onnx", folder / "onnx")
    return _files(folder / "onnx", "model.onnx")


def _read_onnx(path: Path) -> None:
    """An export that was changed together with the checksum in its manifest."""
    manifest = json.loads((GOLDEN / "classify-onnx" / MANIFEST).read_text())
    manifest["files"]["model.onnx"] = sha256(path)
    (path.parent / MANIFEST).write_text(json.dumps(manifest))
    load(path.parent)


# --- runs


class _Read(Exception):
    """Ends a command once its recipe is read."""


def _only_read(recipe: Recipe, *_: Any, **__: Any) -> None:
    assert type(recipe).from_dict(recipe.to_dict()) == recipe
    raise _Read


class RefusedOption(ValueError):
    """A parser's error, which names the option or field."""


def run_command(words: Sequence[str]) -> None:
    """``smt`` in this process, where errors pass that :func:`smt_vision.cli.main` would turn into a line.

    Raises:
        RefusedOption: The parser refused the words; the message is what it wrote.
    """
    errors = io.StringIO()
    module = cli._module(words[0])
    with redirect_stderr(errors), redirect_stdout(io.StringIO()), patch.object(loop, "train", _only_read):
        try:
            module.run(module.build_parser(list(words[1:])).parse_args(list(words[1:])))
        except _Read:
            pass
        except SystemExit as end:
            text = errors.getvalue()
            assert end.code == 2, f"exit code {end.code}"  # noqa: PT017
            assert "Traceback" not in text
            raise RefusedOption(text) from None


def _recipes(folder: Path) -> Iterable[Example]:
    names = ("quickstart", "finetune", *[name for name in RECIPES if RECIPES[name].task != "classify"][:4])
    for name in names:
        text = yaml.safe_dump(RECIPES[name].to_dict(), sort_keys=False)
        yield Example({"run/recipe.yaml": text.encode()}, "run/recipe.yaml")
    yield Example({"run/recipe.yaml": (GOLDEN / "recipe.yaml").read_bytes()}, "run/recipe.yaml")


def _read_recipe(path: Path) -> None:
    run_command(["train", "--resume", str(path.parent)])


def _configs(folder: Path) -> Iterable[Example]:
    *examples, _ = _recipes(folder)  # without that of an earlier version
    for example in examples:
        yield Example({"config.yaml": example.files["run/recipe.yaml"]}, "config.yaml")
    yield Example({"config.yaml": b"epochs: 3\noptim:\n  lr: 1e-3\ninput: {size: 96}\n"}, "config.yaml")


def _read_config(path: Path) -> None:
    task = next((t for t in ("detect", "segment") if f"task: {t}".encode() in path.read_bytes()), "classify")
    name = next(name for name, recipe in RECIPES.items() if recipe.task == task)
    try:
        run_command(["train", name, "--config", str(path)])
    except RefusedOption as error:  # of a field in the file
        raise ValueError(f"{path}: {error}") from None


def _log(folder: Path) -> Iterable[Example]:
    lines: list[dict[str, Any]] = []
    for step in range(1, 7):
        lines.append(dict(kind="train", time=1.5, step=step, epoch=step / 3, loss=1.0, lr=1e-3, images_per_s=9.0))
        if step % 3 == 0:
            lines.append(dict(kind="eval", time=2.5, step=step, epoch=step // 3, top1=50.0, loss="nan"))
    lines[4:4] = [dict(kind="note", time=2.0, message="a note"), dict(kind="resume", time=2.0, step=2)]
    return [Example({"run/log.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode()}, "run/log.jsonl")]


def _read_log(path: Path) -> None:
    from smt_vision.pictures.training import curves

    lines = read_log(path.parent)
    if _is_one_in(50, path):
        curves(lines, path.parent / "curves.png", "name", metric="top1", label="top-1", loss_label="loss")


def _ids(folder: Path) -> Iterable[Example]:
    return [Example({"run/loggers.json": b'{"wandb": "1f3a", "mlflow": "9c2e"}'}, "run/loggers.json")]


def _run_folder(folder: Path) -> Iterable[Example]:
    """A run that has done one step of two."""
    data, shapes, scenes = (folder / name for name in ("colored", "shapes", "scenes"))
    write_split(data, train=2, val=1)
    write_shapes(shapes)
    write_scenes(scenes)
    recipes = {
        "classify": tiny(data, epochs=2, batch_size=3, engine=dict(ema=0.9, loggers=())),
        "detect": shapes_recipe(shapes, epochs=2, loggers=()),
        "segment": scenes_recipe(scenes),
    }
    for name, recipe in recipes.items():
        run = folder / "runs" / name
        loop.train(recipe, run, display=False, max_steps=1)
        files = {f"run/{path.name}": path.read_bytes() for path in sorted(run.iterdir()) if path.is_file()}
        yield Example(files, "run/last.pt")


def _read_run(path: Path) -> None:
    recipe = yaml.safe_load((path.parent / "recipe.yaml").read_text())
    from smt_vision.tasks import read_recipe

    try:
        loop.train(read_recipe(recipe), path.parent, display=False, max_steps=2)
    except FloatingPointError as error:  # documented: the state was finite, and the weights after a step were not
        raise ValueError(f"{path}: {error}") from None


# --- studies


def _results(folder: Path) -> Iterable[Example]:
    study = next(iter(STUDIES.values()))
    results = [made_up_result(cell, 50.0 + i) for i, cell in zip(range(4), study.cells(), strict=False)]
    text = "".join(json.dumps(asdict(result)) + "\n" for result in results)
    return [Example({"results.jsonl": text.encode()}, "results.jsonl")]


def _read_results(path: Path) -> None:
    for result in read_results([path]).values():
        assert all(isinstance(value, float | int) for value in (*result.by_epoch, *result.epochs, result.value))
        assert isinstance(result.key, str)
        assert isinstance(result.metric, str)


def _throughput(folder: Path) -> Iterable[Example]:
    content = {"conditions": {"batch_size": 32, "device": "cpu"}, "images_per_s": {"smt_atto": 12.5, "smt_pico": 7.25}}
    return [Example({"throughput.json": json.dumps(content).encode()}, "throughput.json")]


def _read_throughput(path: Path) -> None:
    speeds = read_throughput(path.parent)["images_per_s"]
    assert all(isinstance(name, str) and isinstance(value, float | int) for name, value in speeds.items())


# --- values on the command line


def _command_lines(folder: Path) -> Iterable[Example]:
    write_images(folder / "pictures", COLORS, [1, 1, 1])
    picture = str(next((folder / "pictures").rglob("*.png")))
    model = str(GOLDEN / "classify.pt")
    commands = [["train", name] for name in ("quickstart", *(n for n in RECIPES if RECIPES[n].task != "classify"))]
    for words in commands:
        recipe = RECIPES[words[1]]
        for group, kind in {"": type(recipe), **recipe.groups()}.items():
            owner = getattr(recipe, group) if group else recipe
            for name in kind.__dataclass_fields__:  # type: ignore[attr-defined]
                if name not in recipe.groups():
                    yield _line(
                        [*words, f"--{group}.{name}" if group else f"--{name}", json.dumps(getattr(owner, name))]
                    )
        yield _line([*words, "--max_steps", "3"])
    for options in (["--top_k", "2"], ["--batch_size", "2"], ["--input.size", "32"], ["--input.crop_pct", "1.0"],
                    ["--input.interpolation", "bicubic"], ["--device", "cpu"], ["--out", str(folder / "out")],
                    ["--input.mean", "[0.5, 0.5, 0.5]"], ["--input.crop_mode", "center"]):  # fmt: skip
        yield _line(["predict", model, picture, *options])
    yield _line(["info", model, "--input.size", "32"])
    yield _line(["recipes", "quickstart"])


def _line(words: list[str]) -> Example:
    return Example({"words.json": json.dumps(words).encode()}, "words.json")


def _mutate_words(content: bytes, rng: Random) -> bytes:
    """Another value of the last option, or of a further one."""
    words = json.loads(content)
    value = rng.choice(VALUES)
    words[-1] = rng.choice((str(value), json.dumps(value), words[-1][:-1], words[-1] * 2, f"-{words[-1]}", f"[{words[-1]}]",  # noqa: E501
                            f"{words[-1]}e9", str(rng.randrange(-3, 4)), str(rng.choice((0.0, 1.0, 1.5, -0.5, 1e-300)))))  # fmt: skip  # noqa: E501
    words[-1] = words[-1].replace("\0", "")
    return json.dumps(words).encode()


def _read_words(path: Path) -> None:
    words = json.loads(path.read_text())
    try:
        run_command(words)
    except (ValueError, OSError) as error:
        option = words[-2].lstrip("-").rpartition(".")[2]
        text = str(error).lower()
        named = option in text or option.replace("_", " ") in text
        assert named, f"the error does not name the option {words[-2]}: {error}"  # noqa: PT017


TARGETS = {
    target.name: target
    for target in (
        Target("image", "data", _images, _read_image, [mutate_png, mutate_bytes], share=120, memory=3072),
        Target("label map", "data", _label_maps, _read_label_map, [mutate_png, mutate_bytes], share=40, memory=2048),
        Target("mask", "data", _label_maps, _read_mask, [mutate_png, mutate_bytes], share=40, memory=3072),
        Target("coco", "data", _coco, _read_detection, [mutate_json]),
        Target("voc", "data", _voc, _read_detection, [mutate_text, mutate_bytes], share=12),
        Target("yolo", "data", _yolo_config, _read_detection, [mutate_yaml], share=6),
        Target("yolo text", "data", _yolo_text, _read_detection, [mutate_text, mutate_bytes], share=12),
        Target("cvat", "data", _cvat, _read_detection, [mutate_text, mutate_bytes], share=12),
        Target("annotations", "data", _annotations, _read_annotations, [mutate_json], share=30),
        Target("segmentation", "data", _segmentation, _read_segmentation, [mutate_json, mutate_png], share=12),
        Target("tar", "data", _tars, _read_tar, [mutate_tar], share=20),
        Target("shard classes", "data", _shard_classes, _read_tar, [mutate_text], share=8),
        Target("compressed tar", "data", _compressed_tars, _read_tar, [_pack_as_before], share=12),
        Target("hub", "data", _hub, _read_hub, [mutate_bytes], share=1, memory=512),
        Target("label file", "data", _label_files, _read_label_file, [mutate_text, mutate_bytes], share=12),
        Target("parquet labels", "data", _parquet_labels, _read_label_file, [mutate_bytes], share=12),
        Target("bands", "data", _bands, _read_bands, [mutate_bytes], share=20, memory=3072),
        Target("model", "weights", _models, _read_model, [mutate_zip, mutate_state], share=3, memory=1024),
        Target("safetensors", "weights", _safetensors, _read_model, [mutate_safetensors], share=6, memory=1024),
        Target("state dict", "weights", _state_dicts, _read_state_dict, [_mutate_pth], share=3, memory=512),
        Target("manifest", "weights", _export, _read_export, [mutate_json], share=10, memory=512),
        Target("used images", "weights", _used_images, lambda path: load_used_images(path.parent), [mutate_safetensors]),  # noqa: E501
        Target("onnx", "weights", _onnx, _read_onnx, [mutate_bytes], share=1, memory=1024),
        Target("recipe", "recipe", _recipes, _read_recipe, [mutate_yaml], share=3),
        Target("config", "recipe", _configs, _read_config, [mutate_yaml], share=3),
        Target("log", "engine", _log, _read_log, [mutate_json_lines], share=60),
        Target("logger ids", "engine", _ids, read_ids, [mutate_json, mutate_bytes], share=20),
        Target("run", "engine", _run_folder, _read_run, [mutate_state, mutate_zip], share=2, memory=512),
        Target("results", "study", _results, _read_results, [mutate_json_lines], share=50),
        Target("throughput", "study", _throughput, _read_throughput, [mutate_json], share=20),
        Target("command line", "cli", _command_lines, _read_words, [_mutate_words], share=5),
    )
}  # fmt: skip
