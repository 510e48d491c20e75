"""Attention maps and mean attention distances.

Source of the distance: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, figure 7; Raghu et al., "Do
Vision Transformers See Like Convolutional Neural Networks?", NeurIPS 2021.

The weights are recomputed from the output of the block's query-key-value layer, since fused attention does not return
them, and their product with the values is compared with what the block computed: a block that does more, e.g. rotary
embeddings or other biases, is refused instead of shown wrongly.

Shapes: ``A`` heads of ``d`` channels, ``N`` tokens, a grid of ``H W`` cells; ``G`` windows of ``n`` tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention, window_partition, window_reverse
from torch import Tensor, nn

from ..forms.inference import is_fused
from ..model import MSA
from ..modes import evaluation_mode
from .blocks import NotDefined, prefix_tokens, require_one_image, token_grid

Floats = npt.NDArray[np.float32]
WEIGHTS = 2**24  # attention weights in memory at a time
TOLERANCE = 1e-3  # largest difference of recomputed outputs, relative to the largest output


@dataclass(frozen=True)
class AttentionMaps:
    """Attention of one block.

    Class tokens and the like are left out, as queries and as keys; the weights of the others are scaled to a sum of 1.

    Attributes:
        name: Module path of the attention, e.g. ``stages.3.blocks.0.mixer``.
        query: Row and column of the query's cell.
        from_query: ``(A, H, W)``: weights of the query.
        mean: ``(A, H, W)``: weights averaged over all queries.
        distance: ``(A,)``: mean distance in pixels of the network's input between a query and what it attends to,
            weighted by attention and averaged over all queries.
        uniform_distance: The same for equal weights.
    """

    name: str
    query: tuple[int, int]
    from_query: Floats
    mean: Floats
    distance: Floats
    uniform_distance: float

    def arrays(self) -> dict[str, Any]:
        """The arrays by name, for an npz file."""
        return {
            f"{self.name}.query": np.array(self.query),
            f"{self.name}.from_query": self.from_query,
            f"{self.name}.mean": self.mean,
            f"{self.name}.distance": self.distance,
            f"{self.name}.uniform_distance": np.array(self.uniform_distance),
        }


def find_attention(network: nn.Module) -> dict[str, nn.Module]:
    """The attention modules of a network by module path: those with a linear layer ``qkv``, ``num_heads`` and ``proj``.

    Raises:
        NotDefined: There are none.
    """
    found = {
        name: module
        for name, module in network.named_modules()
        if isinstance(getattr(module, "qkv", None), nn.Linear)
        and isinstance(getattr(module, "num_heads", None), int)
        and isinstance(getattr(module, "proj", None), nn.Linear)
    }
    if not found:
        why = "the network has no attention with one linear layer for query, key and value"
        if is_fused(network):
            why = "a fused network does not keep them; use the original network"
        raise NotDefined(f"there are no attention maps: {why}")
    return found


@torch.no_grad()
def attention_maps(network: nn.Module, x: Tensor, query: tuple[float, float] = (0.5, 0.5)) -> list[AttentionMaps]:
    """The attention of every block, in the order of execution.

    Weights are computed for a part of the queries at a time, so that memory does not grow with the square of the number
    of tokens.

    Args:
        network: A network with :class:`~smt_vision.model.MSA`, timm's ``Attention`` or Swin's ``WindowAttention``.
        x: An image ``(1, C, H, W)``.
        query: Vertical and horizontal position of the query, from 0 (top, left) to 1.

    Raises:
        NotDefined: The network has no attention, or a block computes something else than the recomputed weights give.
    """
    require_one_image(x)
    found = find_attention(network)
    windows = {block.attn: block for block in network.modules() if isinstance(block, SwinTransformerBlock)}
    size, prefix = (x.shape[-2], x.shape[-1]), prefix_tokens(network)
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
            if "qkv" not in kept or "output" not in kept:
                raise _unlike(name, module, "it does not call its layers qkv and proj")
            if module in windows:
                weights: _Weights = _Windows(windows[module], kept)
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
        handles += [
            module.register_forward_pre_hook(keep_mask, with_kwargs=True),
            module.get_submodule("qkv").register_forward_hook(keep(module, "qkv")),
            module.get_submodule("proj").register_forward_pre_hook(keep(module, "output")),
            module.register_forward_hook(analyze(name)),
        ]
    try:
        with evaluation_mode(network):
            network(x)
    finally:
        for handle in handles:
            handle.remove()
    return maps


class _Weights:
    """Attention weights of a module, recomputed.

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
            self.grid, self.others = token_grid(qkv.shape[1], size, prefix)
            if not self.grid[0]:
                raise NotDefined(
                    f"{qkv.shape[1]} tokens do not form a grid over an image of {size[0]} x {size[1]} pixels"
                )
        self.qkv = self._split(qkv, 1)

    def maps(self, name: str, size: tuple[int, int], query: tuple[float, float]) -> AttentionMaps:
        q, k, v = (part[0] for part in self.qkv)
        A, N, _ = q.shape
        H, W = self.grid
        places = _places(self.grid, size, q.device)
        row, column = _cell(query, self.grid)
        chosen = self.others + row * W + column
        out = torch.empty_like(v)
        from_query, mean = torch.zeros(2, A, H * W, device=q.device)
        distance, uniform = torch.zeros(A, dtype=torch.float64), 0.0  # on the CPU: MPS has no float64
        step = max(1, WEIGHTS // (A * N))
        for start in range(0, N, step):
            weights = (q[:, start : start + step] @ k.transpose(1, 2)).softmax(-1)
            out[:, start : start + step] = weights @ v
            first = max(self.others - start, 0)  # queries before it are not of the grid
            weights = weights[:, first:, self.others :]
            if not weights.shape[1]:
                continue
            weights = weights / weights.sum(-1, keepdim=True)
            begin = start + first
            if begin <= chosen < start + step:
                from_query = weights[:, chosen - begin]
            mean += weights.sum(1)
            apart = torch.cdist(places[begin - self.others :][: weights.shape[1]], places)
            distance += (weights * apart).sum(-1).cpu().double().sum(-1)
            uniform += float(apart.mean(-1).cpu().double().sum())
        self._check(name, out[None])
        n = H * W
        return AttentionMaps(
            name,
            (row, column),
            from_query.reshape(A, H, W).cpu().numpy(),
            (mean / n).reshape(A, H, W).cpu().numpy(),
            (distance / n).float().cpu().numpy(),
            uniform / n,
        )

    def _finish(self, out: Tensor) -> Tensor:
        if isinstance(self.module, MSA):
            value = self.qkv[2][0].transpose(0, 1).reshape(1, *self.grid, -1)
            return out + self.module.local_conv(value.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2)
        norm = getattr(self.module, "norm", None)
        return norm(out) if isinstance(norm, nn.Module) else out


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
        distance, uniform = torch.zeros(A, dtype=torch.float64), 0.0  # on the CPU: MPS has no float64
        step = max(1, WEIGHTS // (A * n * n))
        for start in range(0, G, step):
            part = slice(start, start + step)
            mask = allowed[part, None]
            apart = torch.cdist(places[part], places[part])  # (g, n, n); wrapped rows are at the opposite edge
            weights = (q[part] @ k[part].transpose(2, 3) + bias + mask).softmax(-1)  # (g, A, n, n)
            out[part] = weights @ v[part]
            weights = _scaled(weights * valid[part, None, None])
            from_query[part] = (weights * is_query[part, None, :, None]).sum(2)
            mean[part] = (weights * valid[part, None, :, None]).sum(2)
            distance += ((weights * apart[:, None]).sum(-1) * valid[part, None]).cpu().double().sum((0, 2))
            equal = _scaled((mask[:, 0] > -1) * valid[part, None])
            uniform += float(((equal * apart).sum(-1) * valid[part]).cpu().double().sum())
        self._check(name, out)
        return AttentionMaps(
            name,
            (row, column),
            self._reverse(from_query),
            self._reverse(mean / (H * W)),
            (distance / (H * W)).float().cpu().numpy(),
            uniform / (H * W),
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
    return NotDefined(f"the attention weights of {name} ({type(module).__name__}) cannot be recomputed: {why}")
