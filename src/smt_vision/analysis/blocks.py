"""Feature maps after each block of a network.

Shapes: ``B`` images of ``C`` channels; a map of ``H W`` cells.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from ..model import MSA, SAM
from ..model.smt import Block
from ..modes import evaluation_mode

T = TypeVar("T")
CONTAINERS = (nn.Sequential, nn.ModuleList)
# Names that timm gives to a container of blocks: blocks (most models), layer1 (ResNet).
BLOCKS = re.compile(r"(?:.*\.)?(?:blocks|layer\d+)")
MAX_PREFIX = 8  # tokens before those of the grid, where the network does not declare them
LEAST_SHARE = 0.1  # of the parameters: what holds less is not the network's blocks, e.g. layer1 of an HRNet


class NotDefined(ValueError):
    """A quantity is not defined for a model; the message says what and why."""


def require_one_image(x: Tensor) -> None:
    """Raise if an input is not one image.

    Raises:
        ValueError: Its shape is not ``(1, C, H, W)``.
    """
    if x.ndim != 4 or len(x) != 1:
        raise ValueError(f"invalid shape {tuple(x.shape)}: expected one image at a time, (1, C, H, W)")


@dataclass(frozen=True)
class BlockInfo:
    """A block of a network.

    Attributes:
        stage: Module path of its stage; empty if the network has one stage only, like a ViT.
        mixer: For an SMT ``S`` (modulation), ``A`` (attention) or the mixer's class name; for others empty.
    """

    stage: str
    mixer: str = ""


@dataclass(frozen=True)
class BlockOutput(Generic[T]):
    """What was kept of a block's output.

    Attributes:
        name: Module path of the block; of a map without known blocks, its place among the feature maps.
        info: Stage and mixer.
        value: The feature map ``(B, C, H, W)``, or what ``reduce`` made of it.
    """

    name: str
    info: BlockInfo
    value: T


def find_blocks(network: nn.Module) -> dict[str, BlockInfo]:
    """The blocks of an SMT, and of the timm models that keep them in a container named as most do.

    Returns:
        The blocks by module path, in the order of the modules; empty if there are none, if they are a small part of the
        network, or if their tokens are not in the order of the image's rows (Hiera).
    """
    blocks: dict[str, BlockInfo] = {}
    if hasattr(network, "reroll"):
        return blocks

    def add(container: nn.Module, path: str, stage: str) -> None:
        for key, child in container.named_children():
            if isinstance(child, CONTAINERS) and not _has_layers(child):
                add(child, f"{path}.{key}", stage or f"{path}.{key}")
            elif any(True for _ in child.parameters()):  # others change the layout only, e.g. EfficientFormer's Flat
                blocks[f"{path}.{key}"] = BlockInfo(stage, _mixer(child))

    modules = dict(network.named_modules())
    for path, module in modules.items():
        if not isinstance(module, CONTAINERS) or not BLOCKS.fullmatch(path):
            continue
        inside = any(path.startswith(f"{known}.") for known in blocks) or f"{path}.0" in blocks
        # Of a side branch, e.g. stages.0.global_block.blocks beside stages.0.blocks (GCViT).
        aside = ".".join([*path.split(".")[:-2], "blocks"]) in modules and path.count(".") > 1
        numbered = all(key.isdecimal() for key, _ in module.named_children())
        if numbered and not inside and not aside:
            add(module, path, path.removesuffix("blocks").removesuffix("."))
    held = sum(p.numel() for name in blocks for p in network.get_submodule(name).parameters())
    return blocks if held >= LEAST_SHARE * _size_without_classifier(network) else {}


def block_outputs(
    network: nn.Module,
    x: Tensor,
    reduce: Callable[[Tensor], T],
    names: Collection[str] | None = None,
) -> list[BlockOutput[T]]:
    """Run a network and reduce the feature map after each block, in the order of execution.

    Maps are reduced while the network runs, so that they need not all be in memory. A network without known blocks
    gives its feature maps by stage: those that it returns, or those of timm's ``forward_intermediates``.

    Args:
        network: A timm model, a :class:`~smt_vision.tasks.backbone.Backbone`, or any module that returns feature maps.
        x: Images ``(B, C, H, W)``.
        reduce: Applied to each map ``(B, C, H, W)``.
        names: Blocks and stages to consider; ``None`` for all blocks.

    Raises:
        NotDefined: There are no feature maps, or a block's output is not one.
    """
    blocks = find_blocks(network)
    layout, prefix = is_channels_last(network), prefix_tokens(network)
    outputs: list[BlockOutput[T]] = []
    if not blocks:
        with evaluation_mode(network):
            maps = _stage_maps(network, x)
        return [
            BlockOutput(name, BlockInfo(name), reduce(value))
            for name, value in maps.items()
            if names is None or name in names
        ]

    infos = blocks if names is None else {name: blocks.get(name, BlockInfo(name)) for name in names}

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            value = feature_map(out, x.shape, layout or isinstance(module, Block), f"block {name}", prefix)
            outputs.append(BlockOutput(name, infos[name], reduce(value)))

        return hook

    handles = [network.get_submodule(name).register_forward_hook(hook_for(name)) for name in infos]
    try:
        with evaluation_mode(network):
            network(x)
    finally:
        for handle in handles:
            handle.remove()
    if not outputs:
        raise NotDefined(
            f"there are no feature maps: {type(network).__name__} calls none of its blocks, e.g. {next(iter(blocks))}"
        )
    return outputs


def stage_ends(network: nn.Module, parts: int = 4) -> list[str] | None:
    """Names of the last block of each stage; for a network of one stage, of the blocks after each quarter of it.

    Where convolutions follow the blocks of a stage (CSPNet, whose blocks are one of two branches), of the stage.

    Args:
        network: The network.
        parts: Number of parts of a network that has one stage only.

    Returns:
        The names, or ``None`` for a network without known blocks, whose maps are those of stages already.
    """
    blocks = find_blocks(network)
    if not blocks:
        return None
    ends = {info.stage: name for name, info in blocks.items()}
    if len(ends) > 1:
        modules = dict(network.named_modules())
        return [stage if _continues(modules.get(stage)) else end for stage, end in ends.items()]
    names = list(blocks)
    return list(dict.fromkeys(names[math.ceil(len(names) * (i + 1) / parts) - 1] for i in range(parts)))


def feature_map(out: Any, shape: Sequence[int], channels_last: bool, what: str, prefix: int | None = None) -> Tensor:
    """A module's output as ``(B, C, H, W)``.

    Args:
        out: ``(B, C, H, W)``, ``(B, H, W, C)``, tokens ``(B, N, C)``, or a tuple, whose first such item is taken.
        shape: Shape of the network's input, ``(B, C, H, W)``; its aspect ratio tells the axes of a map apart.
        channels_last: Layout if the shape fits both.
        what: Whose output it is, for the message.
        prefix: Number of tokens before those of the grid, see :func:`token_grid`.

    Raises:
        NotDefined: The output is not a feature map.
    """
    images, size = shape[0], (shape[-2], shape[-1])
    for item in out if isinstance(out, list | tuple) else [out]:
        if not isinstance(item, Tensor) or len(item) != images:
            continue
        if item.ndim == 4:
            first, last = _fits(item.shape[2:], size), _fits(item.shape[1:3], size)
            if first or last:
                return item.permute(0, 3, 1, 2) if last and (channels_last or not first) else item
        elif item.ndim == 3:
            grid, others = token_grid(item.shape[1], size, prefix)
            if grid[0]:
                return item[:, others:].transpose(1, 2).unflatten(2, grid)
    found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    raise NotDefined(f"the output of {what}, {found}, is not a feature map of an image of {size[0]} x {size[1]} pixels")


def token_grid(tokens: int, size: tuple[int, int], prefix: int | None = None) -> tuple[tuple[int, int], int]:
    """The grid of a sequence of tokens that may begin with others, e.g. a class token.

    Args:
        tokens: Number of tokens.
        size: Height and width of the image.
        prefix: Number of other tokens that the network declares. If it is ``None``, or if no grid is left without them,
            since some networks add them to the last blocks only, the smallest number up to 8 that leaves a grid.

    Returns:
        Height and width of the grid, and the number of other tokens; ``(0, 0)`` if no grid has the image's shape.
    """
    for others in (*([] if prefix is None else [prefix]), *range(MAX_PREFIX + 1)):
        n = tokens - others
        if n < 1:
            continue
        height = max(1, round(math.sqrt(n * size[0] / size[1])))
        for h in (height, height + 1, height - 1):
            if h > 0 and n % h == 0 and _fits((h, n // h), size):
                return (h, n // h), others
    return (0, 0), 0


def _fits(grid: Any, size: tuple[int, int]) -> bool:
    """Whether a grid is one of square cells over the image: sides in the same ratio, up to one cell."""
    (h, w), (height, width) = grid, size
    return h <= height and w <= width and abs(h * width - w * height) < max(height, width)


def _has_layers(container: nn.Module) -> bool:
    """Whether a container has layers among its children: it is one block then, e.g. of ConvMixer."""
    return any(not list(child.children()) and any(True for _ in child.parameters()) for child in container.children())


def _continues(stage: nn.Module | None) -> bool:
    """Whether convolutions follow the blocks of a stage; ``downsample`` precedes them, wherever it is defined."""
    children = [] if stage is None else list(stage.named_children())
    keys = [key for key, _ in children]
    after = children[keys.index("blocks") + 1 :] if "blocks" in keys else []
    return any(
        isinstance(module, nn.Conv2d) for key, child in after if key != "downsample" for module in child.modules()
    )


def _mixer(block: nn.Module) -> str:
    if not isinstance(block, Block):
        return ""
    letters = {SAM: "S", MSA: "A"}
    return next(
        (letter for kind, letter in letters.items() if isinstance(block.mixer, kind)), type(block.mixer).__name__
    )


def is_channels_last(network: nn.Module) -> bool:
    """Whether timm declares the network's maps as ``B H W C``, e.g. Swin's."""
    return any(str(getattr(module, "output_fmt", "")).endswith("NHWC") for module in network.modules())


def prefix_tokens(network: nn.Module) -> int | None:
    """The number of class tokens and the like that timm declares for a network; ``None`` if it does not."""
    declared = (getattr(module, "num_prefix_tokens", None) for module in network.modules())
    return next((number for number in declared if isinstance(number, int)), None)


def _size_without_classifier(network: Any) -> int:
    classifier: Any = network.get_classifier() if hasattr(network, "get_classifier") else None
    heads = classifier.parameters() if isinstance(classifier, nn.Module) else ()
    return sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in heads)


def _stage_maps(network: Any, x: Tensor) -> Mapping[str, Tensor]:
    if hasattr(network, "forward_intermediates"):
        out: Any = network.forward_intermediates(x, intermediates_only=True)
    else:
        out = network(x)
    maps = out if isinstance(out, list) else [out]
    name, last, prefix = type(network).__name__, is_channels_last(network), prefix_tokens(network)
    return {
        f"map {i}" if len(maps) > 1 else "map": feature_map(value, x.shape, last, name, prefix)
        for i, value in enumerate(maps)
    }
