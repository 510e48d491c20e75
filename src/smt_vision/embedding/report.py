"""Duplicates, near duplicates, leakage between splits, and nearest neighbors of embedded images, as a report.

Shapes: ``N`` images with ``D`` features each.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from ..analysis.neighbors import Floats, Neighbors
from ..analysis.pictures import neighbors_picture
from ..bounds import Count, Fraction, checked
from ..data.decode import decode_picture
from ..engine.summary import table_lines
from ..files import write_text_atomic
from ..pictures.style import short
from ..recipe import Input
from ..text import markdown
from .embeddings import Embeddings

MAX_SIMILARITIES = 1 << 24  # that are in memory at a time: 64 MiB
MAX_PAIRS = 1000  # of a kind in the report; the most similar ones
SHOWN = 20  # pairs in a table and in the picture
THUMBNAIL_SIDE = 160  # pixels
Pairs = npt.NDArray[np.int64]  # (P, 2): indices of two images, the first one smaller


@dataclass(frozen=True)
class SimilarPairs:
    """Pairs of images whose cosine similarity is at least a threshold, the most similar ones first.

    Args:
        pairs: ``(P, 2)`` indices, at most :data:`MAX_PAIRS`.
        similarities: ``(P,)`` cosine similarities.
        count: Number of such pairs.
    """

    pairs: Pairs
    similarities: Floats
    count: int


@dataclass(frozen=True)
class Similarities:
    """What a search over all pairs of images finds.

    Args:
        neighbors: The nearest other images of each image.
        within: Similar pairs of images in the same split.
        between: Similar pairs of images in different splits.
    """

    neighbors: Neighbors
    within: SimilarPairs
    between: SimilarPairs


@checked
def search(
    features: Floats,
    splits: Sequence[str],
    *,
    threshold: Fraction = 0.95,
    top_k: Count = 5,
    device: str | torch.device = "cpu",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Similarities:
    """Compare all images with all others, exactly, one chunk of rows at a time.

    Args:
        features: ``(N, D)``.
        splits: Split of each image.
        threshold: Smallest cosine similarity of a similar pair.
        top_k: Neighbors per image, at most N - 1.
        device: Device to run on.
        on_progress: Called with the number of images compared with all others, and of all.

    Raises:
        ValueError: A value is out of range.
    """
    count = len(features)
    k = min(top_k, count - 1)
    unit = F.normalize(torch.from_numpy(features).to(device), dim=1)
    names = sorted(set(splits))
    split = torch.tensor([names.index(name) for name in splits], device=device)
    columns = torch.arange(count, device=device)
    nearest, values = np.empty((count, k), np.int64), np.empty((count, k), np.float32)
    found = {same: _Largest() for same in (True, False)}
    rows = max(MAX_SIMILARITIES // count, 1)
    for start in range(0, count, rows):
        chunk = slice(start, min(start + rows, count))
        similar = unit[chunk] @ unit.T
        similar[torch.arange(chunk.stop - start), columns[chunk]] = -torch.inf  # an image and itself
        top = similar.topk(k, dim=1)
        nearest[chunk], values[chunk] = top.indices.cpu().numpy(), top.values.cpu().numpy()
        similar[columns <= columns[chunk, None]] = -torch.inf  # each pair once
        i, j = (similar >= threshold).nonzero(as_tuple=True)
        for same, largest in found.items():
            kept = (split[i + start] == split[j]) == same
            largest.add(i[kept] + start, j[kept], similar[i[kept], j[kept]])
        on_progress(chunk.stop, count)
    return Similarities(Neighbors(nearest, values), found[True].result(), found[False].result())


class _Largest:
    """The most similar of the pairs that are added, and the number of all."""

    def __init__(self) -> None:
        self.pairs = torch.zeros(0, 2, dtype=torch.int64)
        self.values = torch.zeros(0)
        self.count = 0

    def add(self, first: torch.Tensor, second: torch.Tensor, values: torch.Tensor) -> None:
        self.count += len(values)
        pairs = torch.cat([self.pairs, torch.stack([first, second], dim=1).cpu()])
        values = torch.cat([self.values, values.float().cpu()])
        order = values.argsort(descending=True, stable=True)[:MAX_PAIRS]
        self.pairs, self.values = pairs[order], values[order]

    def result(self) -> SimilarPairs:
        return SimilarPairs(self.pairs.numpy(), self.values.clamp(max=1).numpy(), self.count)


def copies(fingerprints: npt.NDArray[np.int64]) -> list[list[int]]:
    """Groups of two or more images with the same content, by index."""
    groups: dict[int, list[int]] = defaultdict(list)
    for i, value in enumerate(fingerprints.tolist()):
        groups[value].append(i)
    return [group for group in groups.values() if len(group) > 1]


@checked
def write_report(
    embeddings: Embeddings,
    folder: str | Path,
    *,
    threshold: Fraction = 0.95,
    top_k: Count = 5,
    device: str | torch.device = "cpu",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write ``report.md``, ``report.json`` and, if there are similar images, the contact sheet ``pairs.png``.

    Args:
        embeddings: The images.
        folder: Output folder; created if necessary.
        threshold: Smallest cosine similarity of a near duplicate. Which similarity means a duplicate depends on the
            model: look at the contact sheet.
        top_k: Nearest neighbors per image.
        device: Device to search on.
        on_progress: As for :func:`search`.

    Returns:
        The content of ``report.json``: numbers of images and pairs, exact duplicates, near duplicates, leakage between
        splits, and the neighbors of each image.

    Raises:
        ValueError: There are fewer than two images, or a value is out of range.
    """
    if len(embeddings) < 2:
        raise ValueError(f"a report compares images, but there is only {len(embeddings)}; pass two or more")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = search(
        embeddings.features, embeddings.splits, threshold=threshold, top_k=top_k, device=device, on_progress=on_progress
    )
    groups = copies(embeddings.fingerprints)
    leaked = [group for group in groups if len({embeddings.splits[i] for i in group}) > 1]
    names = [f"{split}/{id}" for split, id in zip(embeddings.splits, embeddings.ids, strict=True)]

    def image(i: int) -> dict[str, str]:
        return {"split": embeddings.splits[i], "id": embeddings.ids[i], "label": embeddings.labels[i]}

    def listed(similar: SimilarPairs) -> list[dict[str, Any]]:
        return [
            {"similarity": value, "images": [image(i), image(j)]}
            for (i, j), value in zip(similar.pairs.tolist(), similar.similarities.tolist(), strict=True)
        ]

    report = {
        "model": embeddings.model,
        "images": {split: embeddings.splits.count(split) for split in embeddings.datasets},
        "unreadable": list(embeddings.unreadable),
        "threshold": threshold,
        "counts": {
            "exact_duplicates": len(groups),
            "exact_duplicates_between_splits": len(leaked),
            "near_duplicates_within_splits": found.within.count,
            "near_duplicates_between_splits": found.between.count,
        },
        "exact_duplicates": [[image(i) for i in group] for group in groups],
        "near_duplicates_between_splits": listed(found.between),
        "near_duplicates_within_splits": listed(found.within),
        "neighbors": {
            names[i]: [{"image": names[j], "similarity": float(s)} for j, s in zip(near, values, strict=True)]
            for i, (near, values) in enumerate(zip(found.neighbors.indices, found.neighbors.similarities, strict=True))
        },
    }
    write_text_atomic(folder / "report.json", json.dumps(report, indent=1) + "\n")
    shown = [*_rows(found.between), *_rows(found.within)][:SHOWN]
    if shown:
        neighbors_picture(
            [_picture_row(embeddings, *row) for row in shown],
            "Similar images",
            folder / "pairs.png",
        )
    else:
        (folder / "pairs.png").unlink(missing_ok=True)  # of an earlier report
    write_text_atomic(folder / "report.md", "\n".join(_page(embeddings, report, found, groups, bool(shown))) + "\n")
    return report


def _rows(similar: SimilarPairs) -> list[tuple[int, int, float]]:
    pairs = zip(similar.pairs.tolist(), similar.similarities.tolist(), strict=True)
    return [(i, j, value) for (i, j), value in pairs]


def _picture_row(embeddings: Embeddings, i: int, j: int, value: float) -> Any:
    def caption(k: int) -> str:
        return f"{short(embeddings.splits[k], 12)}\n{short(embeddings.ids[k], 20)}\n{short(embeddings.labels[k], 20)}"

    def thumbnail(k: int) -> Any:
        raw = embeddings.raw(k)
        image = decode_picture(raw, embeddings.input or Input(), name=embeddings.ids[k])
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        return image

    return np.asarray(thumbnail(i)), caption(i), [(thumbnail(j), f"{value:.4f}\n{caption(j)}")]


def _page(
    embeddings: Embeddings, report: dict[str, Any], found: Similarities, groups: list[list[int]], has_picture: bool
) -> list[str]:
    counts, threshold = report["counts"], report["threshold"]

    def image(i: int) -> str:
        return f"{embeddings.splits[i]}/{embeddings.ids[i]}"

    def section(title: str, similar: SimilarPairs) -> list[str]:
        rows = [
            (f"{value:.4f}", image(i), embeddings.labels[i], image(j), embeddings.labels[j])
            for i, j, value in _rows(similar)[:SHOWN]
        ]
        header = ("similarity", "image", "label", "similar to", "label")
        about = f"{similar.count} pairs with a cosine similarity of at least {threshold:g}"
        more = f"; the {len(rows)} most similar" if similar.count > len(rows) else ""
        return [f"## {title}", "", f"{about}{more}.", "", *(table_lines(header, rows) if rows else []), ""]

    ordered = sorted(groups, key=lambda group: len({embeddings.splits[i] for i in group}) < 2)
    copied = [
        (len(group), ", ".join(sorted({embeddings.splits[i] for i in group})), ", ".join(map(image, group[:4])))
        for group in ordered[:SHOWN]
    ]
    splits = ", ".join(f"{count} in {markdown(split)}" for split, count in report["images"].items())
    lines = [
        "# Similar images",
        "",
        f"{len(embeddings)} images ({splits}), pooled features of {markdown(embeddings.model)}.",
        "",
        *table_lines(("found", "number"), [(name.replace("_", " "), number) for name, number in counts.items()]),
        "",
        "An exact duplicate is a group of files with the same content. The nearest neighbors of each image, and up to "
        f"{MAX_PAIRS} pairs of each kind, are in report.json.",
        "",
        *section("Leakage: near duplicates between splits", found.between),
        "## Exact duplicates",
        "",
        f"{len(groups)} groups, {counts['exact_duplicates_between_splits']} of them in several splits.",
        "",
        *(table_lines(("copies", "splits", "images"), copied) if copied else []),
        "",
        *section("Near duplicates within a split", found.within),
        *(["![pairs](pairs.png)", ""] if has_picture else []),
    ]
    if embeddings.unreadable:
        lines += ["## Unreadable images", "", *(f"- {markdown(text)}" for text in embeddings.unreadable)]
    return lines
