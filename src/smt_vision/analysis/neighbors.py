"""Nearest neighbors of images by pooled features.

Shapes: ``Q`` queries and ``G`` images of a gallery with ``D`` features each.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..modes import evaluation_mode
from .blocks import feature_map, is_channels_last, prefix_tokens

Floats = npt.NDArray[np.float32]
T = TypeVar("T")
MAX_SIMILARITIES = 2**24  # in memory at a time


@dataclass(frozen=True)
class Neighbors:
    """Nearest images of a gallery.

    Attributes:
        indices: ``(Q, k)``: indices into the gallery, the most similar first.
        similarities: ``(Q, k)``: cosine similarities, in [-1, 1].
    """

    indices: npt.NDArray[np.int64]
    similarities: Floats

    def arrays(self) -> dict[str, Any]:
        """The arrays by name, for an npz file."""
        return {"indices": self.indices, "similarities": self.similarities}


@torch.no_grad()
def pooled_features(network: Any, x: Tensor) -> Floats:
    """Features of images.

    A timm model gives what its classifier reads, i.e. ``forward_head`` with ``pre_logits``; a backbone its last feature
    map, averaged over its positions.

    Args:
        network: A timm model, or a module that returns feature maps ``(B, C, H, W)``.
        x: Images ``(B, C, H, W)``.

    Returns:
        ``(B, D)``.

    Raises:
        NotDefined: The network has neither.
    """
    with evaluation_mode(network):
        if hasattr(network, "forward_head"):
            features = network.forward_head(network.forward_features(x), pre_logits=True)
        else:
            out: Any = network(x)
            features = out[-1] if isinstance(out, list) else out
    if features.ndim != 2:
        last, prefix = is_channels_last(network), prefix_tokens(network)
        features = feature_map(features, x.shape, last, type(network).__name__, prefix).mean(dim=(2, 3))
    return features.float().cpu().numpy()


def batch_features(
    network: Any, images: Iterable[tuple[T, Tensor]], batch_size: int, device: torch.device
) -> Iterator[tuple[list[T], Floats]]:
    """Pooled features of images, in batches of images that follow each other and have the same size.

    Args:
        network: As for :func:`pooled_features`.
        images: Per image a key and the network's input ``(C, H, W)``.
        batch_size: Images per batch, at most.
        device: Device of the network.

    Returns:
        Per batch the keys, and the features ``(B, D)``.
    """
    keys: list[T] = []
    batch: list[Tensor] = []
    for key, pixels in images:
        if batch and (batch[0].shape != pixels.shape or len(batch) == batch_size):
            yield keys, pooled_features(network, torch.stack(batch).to(device))
            keys, batch = [], []
        keys.append(key)
        batch.append(pixels)
    if batch:
        yield keys, pooled_features(network, torch.stack(batch).to(device))


def nearest(queries: Floats, gallery: Floats, k: int, excluded: Sequence[Sequence[int]] | None = None) -> Neighbors:
    """The nearest images by cosine similarity; of equal ones, the first in the gallery's order.

    Queries are compared with the gallery a part at a time, so that memory does not grow with their number.

    Args:
        queries: ``(Q, D)``.
        gallery: ``(G, D)``.
        k: Number of neighbors; at most G.
        excluded: Per query the indices of images that do not count, e.g. its own file. Rows with fewer than k neighbors
            are padded with -1 and, for the similarities, NaN.
    """
    indices, similarities = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), np.nan, np.float32)
    unit, rows = _normalized(gallery), max(MAX_SIMILARITIES // len(gallery), 1)
    for start in range(0, len(queries), rows):
        chunk = _normalized(queries[start : start + rows]) @ unit.T
        order = np.argsort(-chunk, axis=1, kind="stable")[:, : k + max(map(len, excluded or [()]))]
        for i, candidates in enumerate(order, start):
            kept = candidates[~np.isin(candidates, excluded[i])] if excluded else candidates
            kept = kept[:k]
            indices[i, : len(kept)] = kept
            similarities[i, : len(kept)] = chunk[i - start, kept].clip(-1, 1)
    return Neighbors(indices, similarities)


def _normalized(features: Floats) -> Floats:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
