"""Attention maps and mean attention distances.

Source of the distance: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, figure 7; Raghu et al., "Do
Vision Transformers See Like Convolutional Neural Networks?", NeurIPS 2021.

Fused attention does not return its weights. Those of SMT, ViT, CAFormer and Swin are recomputed from the output of the
query-key-value layer, a part at a time, and their product with the values is compared with what the block computed, so
that a block that does more is refused instead of shown wrongly. Other attention of timm, e.g. with rotary embeddings or
position biases (BEiT, EVA, DINOv3), is run unfused, and its weights are taken where dropout would be applied to them.

Shapes: ``A`` heads of ``d`` channels, ``N`` tokens, a grid of ``H W`` cells; ``G`` windows of ``n`` tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from timm.models.metaformer import Attention as MetaFormerAttention
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention, window_partition, window_reverse
from timm.models.vision_transformer import Attention
from timm.models.xcit import XCA
from torch import Tensor, nn

from ..forms.inference import is_fused
from ..model import MSA
from ..modes import evaluation_mode
from .blocks import NotDefined, prefix_tokens, require_one_image, token_grid

Floats = npt.NDArray[np.float32]
WEIGHTS = 2**24  # attention weights in memory at a time
TOLERANCE = 1e-3  # largest difference of recomputed outputs, relative to the largest output, and of a sum of weights
RECOMPUTED = (MSA, Attention, MetaFormerAttention, WindowAttention, XCA)  # XCA, between channels, is refused by that


@dataclass(frozen=True)
class AttentionMaps:
    """Attention of one block.

    Class tokens and the like are left out, as queries and as keys; the weights of the others are scaled to a sum of 1.

    Attributes:
        name: Module path of the attention, e.g. ``stages.3.blocks.0.mixer``.
        query: Row and column of the query's cell.
        keys: Number of cells that the query can attend to: those of its window, or all.
        from_query: ``(A, H, W)``: weights of the query.
        mean: ``(A, H, W)``: weights averaged over all queries.
        distance: ``(A,)``: mean distance in pixels of the network's input between a query and what it attends to,
            weighted by attention and averaged over all queries.
        uniform_distance: The same for equal weights.
        share: ``(A,)``: what the cells received of the weights before they were scaled, averaged over all queries.
    """

    name: str
    query: tuple[int, int]
    keys: int
    from_query: Floats
    mean: Floats
    distance: Floats
    uniform_distance: float
    share: Floats

    def arrays(self) -> dict[str, Any]:
        """The arrays by name, for an npz file."""
        return {
            f"{self.name}.query": np.array(self.query),
            f"{self.name}.keys": np.array(self.keys),
            f"{self.name}.from_query": self.from_query,
            f"{self.name}.mean": self.mean,
            f"{self.name}.distance": self.distance,
            f"{self.name}.uniform_distance": np.array(self.uniform_distance),
            f"{self.name}.share": self.share,
        }


def find_attention(network: nn.Module) -> dict[str, nn.Module]:
    """The attention modules of a network by module path: those with ``qkv``, ``num_heads`` and a linear layer ``proj``.

    ``qkv`` is a linear layer, or ``None`` if query, key and value have a layer each, as in EVA.

    Raises:
        NotDefined: There are none.
    """
    found = {
        name: module
        for name, module in network.named_modules()
        if (isinstance(getattr(module, "qkv", None), nn.Linear) or (hasattr(module, "qkv") and _can_unfuse(module)))
        and isinstance(getattr(module, "num_heads", None), int)
        and isinstance(getattr(module, "proj", None), nn.Linear)
    }
    if not found:
        why = "the network has no attention with a layer qkv"
        if is_fused(network):
            why = "a fused network does not keep them; use the original network"
        raise NotDefined(f"there are no attention maps: {why}")
    return found


@torch.no_grad()
def attention_maps(network: nn.Module, x: Tensor, query: tuple[float, float] = (0.5, 0.5)) -> list[AttentionMaps]:
    """The attention of every block, in the order of execution.

    Weights are recomputed for a part of the queries at a time, so that memory does not grow with the square of the
    number of tokens; with attention that has to be run unfused it does.

    Args:
        network: A network with :class:`~smt_vision.model.MSA`, timm's ``Attention`` or Swin's ``WindowAttention``, or
            with global attention that has timm's switch ``fused_attn`` and dropout ``attn_drop``.
        x: An image ``(1, C, H, W)``.
        query: Vertical and horizontal position of the query, from 0 (top, left) to 1.

    Raises:
        NotDefined: The network has no attention, or a block computes something else than the recomputed weights give.
    """
    require_one_image(x)
    found = find_attention(network)
    windows = {block.attn: block for block in network.modules() if isinstance(block, SwinTransformerBlock)}
    size, prefix = (x.shape[-2], x.shape[-1]), prefix_tokens(network)
    unfused: list[Any] = [m for m in found.values() if not isinstance(m, RECOMPUTED) and _can_unfuse(m)]
    fused = [module.fused_attn for module in unfused]
    seen: dict[nn.Module, dict[str, Any]] = {module: {} for module in found.values()}
    maps: list[AttentionMaps] = []

    def keep(module: nn.Module, key: str) -> Callable[..., None]:
        def hook(_layer: nn.Module, args: Any, out: Any = None) -> None:
            seen[module][key] = args[0] if out is None else out

        return hook

    def keep_mask(module: nn.Module, args: Any, kwargs: Any) -> None:
        mask = kwargs.get("mask", kwargs.get("attn_mask"))
        seen[module]["mask"] = args[1] if mask is None and len(args) > 1 else mask

    def keep_grid(block: nn.Module, args: Any) -> None:
        seen[block.attn]["grid"] = args[0].shape[1:3]  # type: ignore[index]

    def analyze(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            kept, seen[module] = seen[module], {}
            if module in unfused:
                weights: _Weights = _Unfused(name, module, kept | {"input": args[0]}, size, prefix)
            elif "qkv" not in kept or "output" not in kept:
                raise _unlike(name, module, "it does not call its layers qkv and proj as modules")
            elif module in windows:
                weights = _Windows(windows[module], kept)
            elif isinstance(module, WindowAttention) or kept.get("mask") is not None:
                raise _unlike(name, module, "its call has further arguments, e.g. a mask")
            elif len(kept["qkv"]) != 1:
                raise _unlike(name, module, f"it attends within {len(kept['qkv'])} parts of the image")
            else:
                weights = _Global(module, kept, size, prefix)
            maps.append(weights.maps(name, size, query))

        return hook

    handles = [block.register_forward_pre_hook(keep_grid) for block in windows.values()]
    for name, module in found.items():
        if module in unfused:
            handles.append(module.get_submodule("attn_drop").register_forward_pre_hook(keep(module, "weights")))
        else:
            handles += [
                module.register_forward_pre_hook(keep_mask, with_kwargs=True),
                module.get_submodule("qkv").register_forward_hook(keep(module, "qkv")),
                module.get_submodule("proj").register_forward_pre_hook(keep(module, "output")),
            ]
        handles.append(module.register_forward_hook(analyze(name)))
    try:
        for module in unfused:
            module.fused_attn = False
        with evaluation_mode(network):
            network(x)
    finally:
        for module, was_fused in zip(unfused, fused, strict=True):
            module.fused_attn = was_fused
        for handle in handles:
            handle.remove()
    return maps


class _Weights:
    """Attention weights of a module.

    Attributes:
        module: The attention module.
        output: What the module gave to its last layer ``proj``, one row per token.
        qkv: Query, key and value, each ``(G, A, n, d)``; with global attention ``G`` is 1.
        grid: Height and width of the grid.
    """

    module: Any
    output: Tensor
    qkv: tuple[Tensor, Tensor, Tensor]
    grid: tuple[int, int]

    def maps(self, name: str, size: tuple[int, int], query: tuple[float, float]) -> AttentionMaps:
        raise NotImplementedError

    def _split(self, qkv: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
        """Query, scaled, key and value of the output of the layer ``qkv``."""
        A = self.module.num_heads
        q, k, v = qkv.float().reshape(groups, -1, 3, A, qkv.shape[-1] // (3 * A)).permute(2, 0, 3, 1, 4)
        norms = [getattr(self.module, norm, None) or nn.Identity() for norm in ("q_norm", "k_norm")]
        q, k = norms[0](q), norms[1](k)
        return q * getattr(self.module, "scale", q.shape[-1] ** -0.5), k, v

    def _check(self, name: str, out: Tensor) -> None:
        """Compare the product of weights and values ``(G, A, n, d)`` with the module's own."""
        expected = self.output.float().reshape(-1, self.output.shape[-1])
        actual = self._finish(out.transpose(1, 2).flatten(2))
        same = actual.numel() == expected.numel()
        if not same or (actual.reshape(expected.shape) - expected).abs().max() > TOLERANCE * expected.abs().max():
            raise _unlike(name, self.module, "its output is not softmax(q k^T) v of its layer qkv")

    def _finish(self, out: Tensor) -> Tensor:
        """What the module does after attention and before ``proj``; ``(G, n, C)``."""
        return out


class _Global(_Weights):
    """Attention between all tokens."""

    def __init__(self, module: Any, kept: dict[str, Any], size: tuple[int, int], prefix: int | None) -> None:
        self.module, self.output, qkv = module, kept["output"], kept["qkv"]
        self.others = 0  # tokens before the grid's
        if qkv.ndim == 4:
            self.grid = (qkv.shape[1], qkv.shape[2])
        else:
            self.grid, self.others = _token_grid(qkv.shape[1], size, prefix)
        self.qkv = self._split(qkv, 1)
        self.out = torch.empty_like(self.qkv[2])

    def rows(self, part: slice) -> Tensor:
        """Weights of the queries of a part, ``(A, n, N)``."""
        q, k, v = (part[0] for part in self.qkv)
        weights = (q[:, part] @ k.transpose(1, 2)).softmax(-1)
        self.out[0, :, part] = weights @ v
        return weights

    def check(self, name: str) -> None:
        self._check(name, self.out)

    def maps(self, name: str, size: tuple[int, int], query: tuple[float, float]) -> AttentionMaps:
        H, W = self.grid
        A, N, device = self.module.num_heads, self.others + H * W, self.output.device
        places = _places(self.grid, size, device)
        row, column = _cell(query, self.grid)
        chosen = self.others + row * W + column
        from_query, mean = torch.zeros(2, A, H * W, device=device)
        distance, share = torch.zeros(2, A, dtype=torch.float64)  # on the CPU: MPS has no float64
        uniform = 0.0
        step = max(1, WEIGHTS // (A * N))
        for start in range(0, N, step):
            weights = self.rows(slice(start, start + step))
            first = max(self.others - start, 0)  # queries before it are not of the grid
            weights = weights[:, first:, self.others :]
            if not weights.shape[1]:
                continue
            share += weights.sum((1, 2)).cpu().double()
            weights = _scaled(weights)
            begin = start + first
            if begin <= chosen < start + step:
                from_query = weights[:, chosen - begin]
            mean += weights.sum(1)
            apart = torch.cdist(places[begin - self.others :][: weights.shape[1]], places)
            distance += (weights * apart).sum(-1).cpu().double().sum(-1)
            uniform += float(apart.mean(-1).cpu().double().sum())
        self.check(name)
        n = H * W
        return AttentionMaps(
            name,
            (row, column),
            n,
            from_query.reshape(A, H, W).cpu().numpy(),
            (mean / n).reshape(A, H, W).cpu().numpy(),
            (distance / n).float().numpy(),
            uniform / n,
            (share / n).float().numpy(),
        )

    def _finish(self, out: Tensor) -> Tensor:
        if isinstance(self.module, MSA):
            value = self.qkv[2][0].transpose(0, 1).reshape(1, *self.grid, -1)
            return out + self.module.local_conv(value.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2)
        norm = getattr(self.module, "norm", None)
        return norm(out) if isinstance(norm, nn.Module) else out


class _Unfused(_Global):
    """Attention between all tokens that was run unfused, with the weights that it computed."""

    def __init__(self, name: str, module: Any, kept: dict[str, Any], size: tuple[int, int], prefix: int | None) -> None:
        if "weights" not in kept:
            raise _unlike(name, module, "it does not call its dropout attn_drop")
        self.module, self.output = module, kept["weights"].float()
        shape = tuple(self.output.shape)
        tokens = math.prod(kept["input"].shape[1:-1])
        if shape != (1, module.num_heads, tokens, tokens):
            raise _unlike(name, module, f"its weights, {shape}, are not those between all tokens by head")
        self.grid, self.others = _token_grid(shape[3], size, prefix)

    def rows(self, part: slice) -> Tensor:
        return self.output[0, :, part]

    def check(self, name: str) -> None:
        if (self.output.sum(-1) - 1).abs().max() > TOLERANCE or self.output.min() < 0:
            raise _unlike(name, self.module, "its weights do not sum to 1")


class _Windows(_Weights):
    """Swin's attention inside of windows, which are shifted in every second block."""

    def __init__(self, block: Any, kept: dict[str, Any]) -> None:
        self.module, self.output, self.mask = block.attn, kept["output"], kept.get("mask")
        self.grid = (int(kept["grid"][0]), int(kept["grid"][1]))
        self.window: tuple[int, int] = tuple(block.window_size)
        self.shift: tuple[int, int] = tuple(block.shift_size)
        self.qkv = self._split(kept["qkv"], kept["qkv"].shape[0])

    def maps(self, name: str, size: tuple[int, int], query: tuple[float, float]) -> AttentionMaps:
        q, k, v = self.qkv
        G, A, n, _ = q.shape
        H, W = self.grid
        bias = self.module._get_rel_pos_bias()
        allowed = torch.zeros(G, n, n, device=q.device) if self.mask is None else self.mask
        valid = self._partition(torch.ones(1, H, W, device=q.device))[:, 0]  # (G, n): 0 for what pads the last windows
        places = self._partition(_places(self.grid, size, q.device).t().unflatten(1, self.grid).to(q)).transpose(1, 2)
        row, column = _cell(query, self.grid)
        chosen = torch.zeros(1, H, W, device=q.device)
        chosen[0, row, column] = 1
        is_query = self._partition(chosen)[:, 0]  # (G, n)
        out = torch.empty_like(v)
        from_query, mean = torch.zeros(2, G, A, n, device=q.device)
        distance, share = torch.zeros(2, A, dtype=torch.float64)  # on the CPU: MPS has no float64
        uniform, keys = 0.0, 0
        step = max(1, WEIGHTS // (A * n * n))
        for start in range(0, G, step):
            part = slice(start, start + step)
            mask = allowed[part, None]
            apart = torch.cdist(places[part], places[part])  # (g, n, n); wrapped rows are at the opposite edge
            weights = (q[part] @ k[part].transpose(2, 3) + bias + mask).softmax(-1)  # (g, A, n, n)
            out[part] = weights @ v[part]
            weights = weights * valid[part, None, None]
            share += (weights.sum(-1) * valid[part, None]).cpu().double().sum((0, 2))
            weights = _scaled(weights)
            from_query[part] = (weights * is_query[part, None, :, None]).sum(2)
            mean[part] = (weights * valid[part, None, :, None]).sum(2)
            distance += ((weights * apart[:, None]).sum(-1) * valid[part, None]).cpu().double().sum((0, 2))
            reached = (mask[:, 0] > -1) * valid[part, None]
            keys += int((reached * is_query[part, :, None]).sum())
            equal = _scaled(reached)
            uniform += float(((equal * apart).sum(-1) * valid[part]).cpu().double().sum())
        self._check(name, out)
        return AttentionMaps(
            name,
            (row, column),
            keys,
            self._reverse(from_query),
            self._reverse(mean / (H * W)),
            (distance / (H * W)).float().numpy(),
            uniform / (H * W),
            (share / (H * W)).float().numpy(),
        )

    def _partition(self, map: Tensor) -> Tensor:
        """``(A, H, W) -> (G, A, n)``, as the block partitions its input."""
        H, W = self.grid
        map = map.permute(1, 2, 0)[None].roll((-self.shift[0], -self.shift[1]), dims=(1, 2))
        map = F.pad(map, (0, 0, 0, -W % self.window[1], 0, -H % self.window[0]))
        return window_partition(map, self.window).flatten(1, 2).transpose(1, 2)

    def _reverse(self, parts: Tensor) -> Floats:
        """``(G, A, n) -> (A, H, W)``."""
        (H, W), (h, w) = self.grid, self.window
        parts = parts.transpose(1, 2).unflatten(1, self.window)
        map = window_reverse(parts, self.window, H + -H % h, W + -W % w)[:, :H, :W]
        map = map.roll(self.shift, dims=(1, 2))
        out: Floats = map[0].permute(2, 0, 1).cpu().numpy()
        return out


def _can_unfuse(module: nn.Module) -> bool:
    """Whether attention has timm's switch for fused attention, and the dropout of unfused weights."""
    return isinstance(getattr(module, "fused_attn", None), bool) and isinstance(
        getattr(module, "attn_drop", None), nn.Module
    )


def _token_grid(tokens: int, size: tuple[int, int], prefix: int | None) -> tuple[tuple[int, int], int]:
    grid, others = token_grid(tokens, size, prefix)
    if not grid[0]:
        raise NotDefined(f"{tokens} tokens do not form a grid over an image of {size[0]} x {size[1]} pixels")
    return grid, others


def _scaled(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True).clamp_min(1e-12)


def _places(grid: tuple[int, int], size: tuple[int, int], device: torch.device) -> Tensor:
    """Row and column in pixels of each cell: ``(H * W, 2)``."""
    H, W = grid
    rows, columns = torch.arange(H, device=device) * (size[0] / H), torch.arange(W, device=device) * (size[1] / W)
    return torch.cartesian_prod(rows, columns).reshape(-1, 2)


def _cell(query: tuple[float, float], grid: tuple[int, int]) -> tuple[int, int]:
    row, column = (min(int(place * side), side - 1) for place, side in zip(query, grid, strict=True))
    return row, column


def _unlike(name: str, module: nn.Module, why: str) -> NotDefined:
    return NotDefined(f"the attention weights of {name} ({type(module).__name__}) are not available: {why}")
