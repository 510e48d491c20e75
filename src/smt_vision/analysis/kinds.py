"""The quantities that ``smt analyze`` knows: how each is computed over images, written and drawn."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from ..bounds import Count, Fraction, check_fields
from ..data.decode import UnreadableImage, decode_picture
from ..tasks.classes import some_names
from . import pictures
from .attention import AttentionMaps, attention_maps
from .blocks import block_outputs, find_blocks, stage_ends
from .class_activation import class_activation, require_classifier
from .modulation import find_modulation, modulation_maps
from .neighbors import batch_features, nearest, pooled_features
from .receptive_field import effective_receptive_fields
from .spectrum import spectra
from .subject import Sample, Subject

THUMBNAIL_SIDE = 200  # pixels
GALLERY_BATCH = 32
MAX_QUERIES = 20  # rows of a figure of nearest neighbors


@dataclass(frozen=True)
class Options:
    """Choices of an analysis.

    Args:
        query: Vertical and horizontal position of the query of attention maps, from 0 (top, left) to 1.
        target: Class of class activation maps, by name or index; ``None`` for the predicted one.
        gallery: Images to search for nearest neighbors.
        top_k: Number of nearest neighbors.
        format: Suffix of pictures: ``png``, ``pdf`` or ``svg``.
    """

    query: tuple[Fraction, Fraction] = (0.5, 0.5)
    target: str | None = None
    gallery: Sequence[Path] = ()
    top_k: Count = 8
    format: Literal["png", "pdf", "svg"] = "png"

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Outcome:
    """Result of an analysis of one kind.

    Attributes:
        summary: One line for the terminal.
        data: Numbers, as plain data.
        written: Files.
        comparable: What :attr:`Comparison.draw` takes of each model; ``None`` if models are not compared.
        notes: What was left out, and why.
    """

    summary: str
    data: Any
    written: list[Path]
    comparable: Any = None
    notes: list[str] = field(default_factory=list)


Samples = Callable[[], Iterator[Sample]]  # prepares the images anew, so that they need not all be in memory


@dataclass(frozen=True)
class Comparison:
    """A picture of several models.

    Attributes:
        stem: File name without suffix.
        title: Title of the figure, from the names of the images.
        draw: Draws names with :attr:`Outcome.comparable`, a title, to a path.
    """

    stem: str
    title: Callable[[Sequence[str]], str]
    draw: Callable[[list[tuple[str, Any]], str, Path], Any]


@dataclass(frozen=True)
class Kind:
    """A quantity.

    Attributes:
        check: Raises :class:`~smt_vision.analysis.blocks.NotDefined` if a model does not have it; runs the network
            once or twice on a sample.
        run: Computes, writes and draws it.
        comparison: How several models are drawn in one picture; ``None`` if they are not.
    """

    check: Callable[[Subject, Sample], Any]
    run: Callable[[Subject, Samples, Options, Path], Outcome]
    comparison: Comparison | None = None


def _modulation(subject: Subject, samples: Samples, options: Options, folder: Path) -> Outcome:
    written, data = [], {}
    first: Any = None
    for sample in samples():
        maps = modulation_maps(subject.network, sample.pixels)
        stem = folder / f"modulation-{sample.name}"
        written += _save(stem, subject, _image_arrays(sample), maps)
        picture = _beside(stem, options)
        pictures.modulation_picture(sample.picture, maps, f"Modulation: {subject.name}, {sample.name}", picture)
        written.append(picture)
        data[sample.name] = {
            block.name: {"heads": block.heads.mean(axis=(1, 2)).tolist(), "modulator": float(block.modulator.mean())}
            for block in maps
        }
        first = first or (sample.picture, maps)
    return Outcome(f"{len(first[1])} modulation blocks", data, written, first)


def _attention(subject: Subject, samples: Samples, options: Options, folder: Path) -> Outcome:
    written, data = [], {}
    total: list[AttentionMaps] = []
    paths: list[Path] = []
    for sample in samples():
        paths.append(sample.path)
        maps = attention_maps(subject.network, sample.pixels, options.query)
        stem = folder / f"attention-{sample.name}"
        written += _save(stem, subject, _image_arrays(sample), maps)
        picture = _beside(stem, options)
        pictures.attention_picture(sample.picture, maps, f"Attention: {subject.name}, {sample.name}", picture)
        written.append(picture)
        total = [
            replace(
                new,
                distance=(old.distance + (new.distance - old.distance) / len(paths)).astype(np.float32),
                uniform_distance=old.uniform_distance + (new.uniform_distance - old.uniform_distance) / len(paths),
            )
            for old, new in zip(total or maps, maps, strict=True)
        ]
    stem = folder / "attention-distance"
    distances = {f"{block.name}.distance": block.distance for block in total}
    distances |= {f"{block.name}.uniform_distance": np.array(block.uniform_distance) for block in total}
    written += _save(stem, subject, {"paths": _texts(paths), **distances})
    picture = _beside(stem, options)
    pictures.distance_picture([(subject.name, total)], f"Attention distance, {_images(len(paths))}", picture)
    written.append(picture)
    data = {
        block.name: {"distance": block.distance.tolist(), "uniform_distance": block.uniform_distance} for block in total
    }
    means = [float(block.distance.mean()) for block in total]
    known = len(find_blocks(subject.network))
    # Blocks without attention, and those whose attention has another form, are not among them.
    blocks = f"{len(total)} of {known} blocks" if known > len(total) else f"{len(total)} blocks"
    summary = f"mean attention distance {min(means):.0f} to {max(means):.0f} px in {blocks}"
    return Outcome(summary, data, written, total)


def _receptive_field(subject: Subject, samples: Samples, options: Options, folder: Path) -> Outcome:
    images = _Listed(samples())
    fields = effective_receptive_fields(subject.network, images)
    stem = folder / "erf"
    written = _save(stem, subject, {"paths": _texts(images.paths)}, fields)
    picture = _beside(stem, options)
    title = f"Effective receptive field of the center, {_images(len(images.paths))}"
    pictures.receptive_field_picture([(subject.name, fields)], title, picture)
    data = {f.name: {"radius50": f.radius50, "radius95": f.radius95, "centroid": list(f.centroid)} for f in fields}
    radii = ", ".join(f"{f.radius50:.3g} / {f.radius95:.3g}" for f in fields)
    return Outcome(f"radius of 50 % / 95 % by stage: {radii} px", data, [*written, picture], fields)


def _spectrum(subject: Subject, samples: Samples, options: Options, folder: Path) -> Outcome:
    images = _Listed(samples())
    blocks = spectra(subject.network, images)
    stem = folder / "spectrum"
    written = _save(stem, subject, {"paths": _texts(images.paths)}, blocks)
    picture = _beside(stem, options)
    pictures.spectrum_picture(
        [(subject.name, blocks)], f"Fourier spectrum of feature maps, {_images(len(images.paths))}", picture
    )
    data = {b.name: {"depth": b.depth, "mixer": b.info.mixer, "high": _number(b.high)} for b in blocks}
    single = [b.name for b in blocks if len(b.log_amplitude) < 2]
    notes = [f"spectrum: {some_names(single)}: one cell along a side, hence one frequency"] if single else []
    known = [b.high for b in blocks if len(b.log_amplitude) > 1]
    ends = f"{known[0]:.2f} at the first block, {known[-1]:.2f} at the last"
    summary = f"relative log amplitude of the highest frequency: {ends}"
    return Outcome(summary, data, [*written, picture], blocks, notes)


def _class_activation(subject: Subject, samples: Samples, options: Options, folder: Path) -> Outcome:
    written, data = [], {}
    classifier: Any = subject.predictor
    class_id = None if options.target is None else class_index(options.target, classifier.classes)
    for sample in samples():
        activation = class_activation(subject.network, sample.pixels, class_id, classifier.scores)
        label, predicted = (classifier.classes[i] for i in (activation.class_id, activation.predicted_id))
        stem = folder / f"cam-{sample.name}"
        labels = {"label": np.array(label), "predicted_label": np.array(predicted)}
        written += _save(stem, subject, {**_image_arrays(sample), **activation.arrays(), **labels})
        picture = _beside(stem, options)
        title = f"Class activation: {subject.name}, {sample.name}"
        pictures.class_activation_picture(sample.picture, activation, label, title, picture)
        written.append(picture)
        data[sample.name] = {
            "class_id": activation.class_id, "label": label, "score": activation.score,
            "predicted": activation.predicted,
        }  # fmt: skip
    shown = ", ".join(f"{name}: {found['label']}" for name, found in list(data.items())[:4])
    return Outcome(shown + (", …" if len(data) > 4 else ""), data, written)


def _neighbors(subject: Subject, samples: Samples, options: Options, folder: Path) -> Outcome:
    paths: list[Path] = []
    features, notes = [], []

    def prepared() -> Iterator[tuple[Path, torch.Tensor]]:
        for path in options.gallery:
            try:
                yield path, subject.pixels(path, str(path))[0]
            except UnreadableImage as error:
                notes.append(f"neighbors: left out {error}")

    for batch, rows in batch_features(subject.network, prepared(), GALLERY_BATCH, subject.predictor.device):
        paths += batch
        features.append(rows)
    if not paths:
        raise ValueError(f"none of the {len(options.gallery)} images to search can be read, e.g. {notes[0]}")
    queries = [(sample.name, sample.path, pooled_features(subject.network, sample.pixels)) for sample in samples()]
    places: dict[Path, list[int]] = {}
    for i, path in enumerate(paths):
        places.setdefault(path.resolve(), []).append(i)
    excluded = [places.get(own.resolve(), []) for _, own, _ in queries]
    k = min(options.top_k, len(paths) - min(map(len, excluded)))
    if not k:
        raise ValueError(f"there is no image other than {paths[0]} to search; name a folder of images with --folder")
    found = nearest(np.concatenate([f for _, _, f in queries]), np.concatenate(features), k, excluded)
    stem = folder / "neighbors"
    names = {"images": _texts(paths), "queries": _texts(path for _, path, _ in queries)}
    written = _save(stem, subject, {**names, **found.arrays(), "features": np.concatenate(features)})
    lines: list[tuple[Any, str, list[Any]]] = []
    data = {}
    for (name, own, _), indices, similarities in zip(queries, found.indices, found.similarities, strict=True):
        nearby = [(paths[i], float(s)) for i, s in zip(indices, similarities, strict=True) if np.isfinite(s)]
        data[name] = [{"image": str(path), "similarity": similarity} for path, similarity in nearby]
        if len(lines) == MAX_QUERIES:
            continue
        cells = [(_thumbnail(path, subject), f"{_caption(path)}\n{s:.3f}") for path, s in nearby]
        lines.append((np.asarray(_thumbnail(own, subject)), _caption(own), cells))
    picture = _beside(stem, options)
    title = f"Nearest neighbors: {subject.name}, cosine similarity of pooled features, {_images(len(paths))}"
    if len(queries) > len(lines):
        title += f", first {len(lines)} of {len(queries):,} queries"
        notes.append(f"neighbors: the figure has the first {len(lines)} of {len(queries):,} images, the npz file all")
    pictures.neighbors_picture(lines, title, picture)
    most = max(map(len, data.values()))
    return Outcome(f"{most} nearest of {len(paths)} images", data, [*written, picture], notes=notes)


def _caption(path: Path) -> str:
    return pictures.short(f"{path.parent.name}/{path.name}", 20)


def class_index(target: str, classes: Sequence[str]) -> int:
    """The index of a class that is given by its name or index.

    Raises:
        ValueError: There is no such class.
    """
    if target in classes:
        return list(classes).index(target)
    if target.isdecimal() and len(target) < 20 and int(target) < len(classes):
        return int(target)
    raise ValueError(
        f"invalid class {target!r}: expected an index from 0 to {len(classes) - 1}, or one of {some_names(classes)}"
    )


def _averaged(title: str) -> Callable[[Sequence[str]], str]:
    return lambda names: f"{title}, {_images(len(names))}"


def _check_class_activation(subject: Subject, sample: Sample) -> None:
    require_classifier(subject.network)
    class_activation(subject.network, sample.pixels)


@torch.no_grad()
def _check_maps(subject: Subject, sample: Sample) -> None:
    """Raise if blocks or stages have no feature maps; they are not kept."""
    block_outputs(subject.network, sample.pixels, lambda value: None)
    block_outputs(subject.network, sample.pixels, lambda value: None, stage_ends(subject.network))


KINDS: Mapping[str, Kind] = {
    "modulation": Kind(
        lambda subject, sample: find_modulation(subject.network),
        _modulation,
        Comparison("modulators", lambda names: f"Modulators by block, {names[0]}", pictures.modulators_picture),
    ),
    "attention": Kind(
        lambda subject, sample: attention_maps(subject.network, sample.pixels),
        _attention,
        Comparison("attention-distance", _averaged("Attention distance"), pictures.distance_picture),
    ),
    "erf": Kind(
        _check_maps,
        _receptive_field,
        Comparison("erf", _averaged("Effective receptive field of the center"), pictures.receptive_field_picture),
    ),
    "spectrum": Kind(
        _check_maps,
        _spectrum,
        Comparison("spectrum", _averaged("Fourier spectrum of feature maps"), pictures.spectrum_picture),
    ),
    "cam": Kind(_check_class_activation, _class_activation),
    "neighbors": Kind(lambda subject, sample: pooled_features(subject.network, sample.pixels), _neighbors),
}


def _save(stem: Path, subject: Subject, arrays: Mapping[str, Any], blocks: Sequence[Any] = ()) -> list[Path]:
    path = stem.with_name(f"{stem.name}.npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    named = {"model": np.array(subject.name), **arrays}
    for block in blocks:
        named |= block.arrays()
    with path.open("wb") as file:
        np.savez_compressed(file, **named)
    return [path]


def _beside(stem: Path, options: Options) -> Path:
    return stem.with_name(f"{stem.name}.{options.format}")


def _image_arrays(sample: Sample) -> dict[str, Any]:
    return {"path": np.array(str(sample.path)), "image": sample.picture}


def _texts(paths: Iterable[Path]) -> npt.NDArray[np.str_]:
    return np.array([str(path) for path in paths])


class _Listed:
    """Network inputs of samples, whose paths are kept."""

    def __init__(self, samples: Iterator[Sample]) -> None:
        self.samples = samples
        self.paths: list[Path] = []

    def __iter__(self) -> Iterator[torch.Tensor]:
        for sample in self.samples:
            self.paths.append(sample.path)
            yield sample.pixels


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _thumbnail(path: Path, subject: Subject) -> Any:
    image = decode_picture(path, subject.predictor.spec.input, name=str(path))
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return image
