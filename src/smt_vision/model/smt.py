"""SMT, the Scale-Aware Modulation Transformer.

Source: "Scale-Aware Modulation Meet Transformer" (ICCV 2023), arXiv 2307.08579, and the authors' release. The function
is the release's; the differences are:

- blocks work channels-last (``B H W C``): linear layers and LayerNorm need no copy, and a convolution sees the same
  memory as a ``B C H W`` tensor in ``torch.channels_last`` format;
- value and context are one linear layer, and so are query, key and value;
- the mixer of each block is data (``mixers``), not a flag;
- every feature map is the stage's normalized output, for classification and dense prediction alike;
- state dicts of the release load as they are (see ``official.py`` and ``loading.py``).

``B`` batch, ``C`` channels, ``H W`` grid.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import ClassifierHead, DropPath, LayerNorm2d, LayerScale, trunc_normal_
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .arguments import (
    CONV_KERNELS,
    check,
    check_head,
    check_heads,
    check_modulation,
    check_network,
    check_number,
    check_numbers,
    check_rates,
    expand_pattern,
    per_stage,
)
from .attention import MSA
from .focal import FocalModulation
from .loading import convert_state
from .modulation import SAM


class Stem(nn.Module):
    """Conv k x k, BatchNorm, ReLU, Conv p x p with stride p, LayerNorm.

    Strides 4 (the paper's) and 2 have p = 2 and hence weights of the same shape; stride 1 has p = 1.

    Shape: ``(B, in_chans, H, W) -> (B, C, H / stride, W / stride)``; the p x p convolution floors an odd size.
    """

    def __init__(self, in_chans: int, dim: int, kernel_size: int = 3, stride: int = 4) -> None:
        super().__init__()
        first, patch = {4: (2, 2), 2: (1, 2), 1: (1, 1)}[stride]
        self.conv1 = nn.Conv2d(in_chans, dim, kernel_size, stride=first, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(dim)
        self.act = nn.ReLU()
        self.conv2 = nn.Conv2d(dim, dim, patch, stride=patch)
        self.norm = LayerNorm2d(dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn(self.conv1(x)))
        return self.norm(self.conv2(x))


class Downsample(nn.Module):
    """Patch embedding between stages: ``(B, C_in, H, W) -> (B, C, ceil(H / stride), ceil(W / stride))``."""

    def __init__(self, in_dim: int, dim: int, stride: int = 2, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, kernel_size=3, stride=stride, padding=dilation, dilation=dilation)
        self.norm = LayerNorm2d(dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class FFN(nn.Module):
    """Feed-forward network; a depthwise 3x3 convolution is added to its own input before the GELU.

    Args:
        dim: Number of channels ``C``.
        hidden_dim: Number of hidden channels.
        drop_rate: Dropout rate after the GELU and after the second linear layer.
        dilation: Dilation of the convolution.

    Shape: ``(B, H, W, C) -> (B, H, W, C)``.
    """

    def __init__(self, dim: int, hidden_dim: int, drop_rate: float = 0.0, dilation: int = 1) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = nn.Conv2d(
            hidden_dim, hidden_dim, kernel_size=3, padding=dilation, dilation=dilation, groups=hidden_dim
        )
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = self.drop(F.gelu(x + self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
        return self.drop(self.fc2(x))


class Block(nn.Module):
    """``x + DropPath(g1 * Mixer(LN(x)))``, then ``x + DropPath(g2 * FFN(LN(x)))``; ``g`` only with LayerScale.

    Args:
        dim: Number of channels ``C``.
        mixer: The token mixer, :class:`SAM` or :class:`MSA`.
        mlp_ratio: Hidden channels of the FFN over ``C``.
        layer_scale: Initial value of LayerScale; ``None`` or 0 for no LayerScale.
        drop_path: Stochastic depth rate.
        drop_rate: Dropout rate of the FFN.
        dilation: Dilation of the FFN's convolution.

    Shape: ``(B, H, W, C) -> (B, H, W, C)``.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        drop_rate: float = 0.0,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.mixer = mixer
        self.scale1 = LayerScale(dim, layer_scale) if layer_scale else nn.Identity()
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.ffn = FFN(dim, int(dim * mlp_ratio), drop_rate, dilation)
        self.scale2 = LayerScale(dim, layer_scale) if layer_scale else nn.Identity()
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.scale1(self.mixer(self.norm1(x))))
        return x + self.drop_path2(self.scale2(self.ffn(self.norm2(x))))


class Stage(nn.Module):
    """Downsampling (in all but the first stage), blocks, LayerNorm.

    The output is NCHW although the blocks inside are channels-last: ``stages[i]`` is the module for forward hooks,
    Grad-CAM and attribution methods that expect feature maps ``(B, C, H, W)``. So are ``stem`` and the norms of both.

    Shape: ``(B, C_in, H, W) -> (B, C, H', W')``, the stage's feature map.
    """

    def __init__(self, dim: int, blocks: Sequence[nn.Module], downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample or nn.Identity()
        self.blocks = nn.Sequential(*blocks)
        self.norm = LayerNorm2d(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x).permute(0, 2, 3, 1)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            for block in self.blocks:
                x = _checkpoint(block, x)
        else:
            x = self.blocks(x)
        return self.norm(x.permute(0, 3, 1, 2))


class SMT(nn.Module):
    """Scale-Aware Modulation Transformer.

    ``(B, in_chans, H, W) -> (B, num_classes)`` for any H and W of at least 32 (8 strides of the stem).

    Arguments marked "per stage" take one value for all stages or a sequence of one value per stage.

    Args:
        in_chans: Number of image channels.
        num_classes: Number of classes; 0 for no classifier.
        global_pool: timm's pooling of the last map: ``avg``, ``max``, ``avgmax``, ``catavgmax`` or ``""`` for none.
        embed_dims: Number of channels of each stage.
        depths: Number of blocks of each stage.
        mlp_ratios: Expansion ratio of the FFN (hidden channels / channels), per stage.
        mixers: Mixer pattern (see :func:`~smt_vision.model.arguments.expand_pattern`), per stage.
        conv_heads: Number of convolution heads, per stage.
        attn_heads: Number of attention heads, per stage; read only in stages with attention.
        conv_kernels: Kernel size of each convolution head; ``None`` for the paper's: 3, 5, 7, ... in turn.
        expand_ratio: Expansion ratio of the aggregation.
        aggregation: How modulation blocks combine the heads: ``saa`` (the paper's), ``none``, ``linear``, ``mlp`` or
            ``inverted_bottleneck``; see :func:`~smt_vision.model.modulation.build_aggregation`.
        modulation: Whether modulation blocks multiply (``product``) or add (``sum``) modulator and value.
        layer_scale: Initial value of LayerScale; ``None`` or 0 for no LayerScale.
        drop_path_rate: Stochastic depth rate of the last block; rates grow linearly from 0 at the first.
        drop_rate: Dropout rate before the classifier.
        proj_drop_rate: Dropout rate after the projections of mixers and FFNs.
        attn_drop_rate: Dropout rate of the attention weights.
        stem_kernel: Kernel size of the stem's first convolution; odd.
        stem_stride: Stride of the stem: 4, or 2 or 1 for small images.
        output_stride: Largest stride of a feature map, 8, 16 or 32; ``None`` for no limit, which is 32 with four stages
            and a stem of stride 4. A stage that would exceed it keeps the resolution of its input, and its kernels are
            dilated instead, by the factor missing in its stride; its downsampling has the dilation of the previous
            stage. The weights are the same.
        device: Device of the parameters; ``None`` for PyTorch's default.
        dtype: Floating point type of the parameters and buffers. They are initialized in PyTorch's default type.

    Raises:
        ValueError: An argument is invalid; the message has its name, its value and what was expected.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 8, 1),
        mlp_ratios: float | Sequence[float] = (4, 4, 4, 2),
        mixers: str | Sequence[str] = ("S", "S", "SA", "A"),
        conv_heads: int | Sequence[int] = 4,
        attn_heads: int | Sequence[int] = (2, 4, 8, 16),
        expand_ratio: int = 2,
        aggregation: str = "saa",
        layer_scale: float | None = None,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        stem_kernel: int = 3,
        stem_stride: int = 4,
        output_stride: int | None = None,
        conv_kernels: Sequence[int] | None = None,
        modulation: str = "product",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check(isinstance(embed_dims, list | tuple) and embed_dims, "embed_dims", embed_dims, "channels of each stage")
        check_numbers(int, 16_384, embed_dims=embed_dims, conv_heads=conv_heads, attn_heads=attn_heads)
        check_numbers(int, 1000, depths=depths)
        check_numbers(float, 100, mlp_ratios=mlp_ratios)
        check_number(int, 16_384, in_chans=in_chans)
        check_number(int, 1_000_000, num_classes=num_classes)
        check_number(int, 255, stem_kernel=stem_kernel, stem_stride=stem_stride)
        check_number(float, 100, expand_ratio=expand_ratio)
        if layer_scale is not None:
            check_number(float, 100, layer_scale=layer_scale)
        if conv_kernels is not None:
            check(isinstance(conv_kernels, list | tuple), "conv_kernels", conv_kernels, CONV_KERNELS)
            check_numbers(int, 255, conv_kernels=conv_kernels)
        num_stages = len(embed_dims)
        depths = per_stage("depths", depths, num_stages)
        mlp_ratios = per_stage("mlp_ratios", mlp_ratios, num_stages)
        mixers = per_stage("mixers", mixers, num_stages)
        conv_heads = per_stage("conv_heads", conv_heads, num_stages)
        attn_heads = per_stage("attn_heads", attn_heads, num_stages)
        check_network(in_chans, stem_kernel, stem_stride, embed_dims, depths, mlp_ratios, expand_ratio)
        check(output_stride in (None, 8, 16, 32), "output_stride", output_stride, "one of 8, 16, 32, or None")
        check_head(num_classes, global_pool)
        check_rates(
            drop_path_rate=drop_path_rate,
            drop_rate=drop_rate,
            proj_drop_rate=proj_drop_rate,
            attn_drop_rate=attn_drop_rate,
        )
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = embed_dims[-1]
        self.patterns = tuple(map(expand_pattern, mixers, depths))
        check_heads(embed_dims, self.patterns, conv_heads, attn_heads)
        dilated = output_stride is not None and stem_stride * 2 ** (num_stages - 1) > output_stride
        check_modulation(self.patterns, conv_heads, conv_kernels, aggregation, modulation, dilated)

        def block(i: int, letter: str, drop_path: float, dilation: int) -> Block:
            dim = embed_dims[i]
            mixer: nn.Module
            if letter == "S":
                mixer = SAM(
                    dim,
                    conv_heads[i],
                    int(expand_ratio),
                    aggregation,
                    proj_drop_rate,
                    dilation,
                    conv_kernels,
                    modulation,
                )
            elif letter == "A":
                mixer = MSA(dim, attn_heads[i], attn_drop_rate, proj_drop_rate, dilation)
            else:
                mixer = FocalModulation(dim, proj_drop_rate)
            return Block(dim, mixer, mlp_ratios[i], layer_scale, drop_path, proj_drop_rate, dilation)

        drop_paths = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        feature_info: list[dict[str, Any]] = []
        with nullcontext() if device is None else torch.device(device):
            self.stem = Stem(in_chans, embed_dims[0], stem_kernel, stem_stride)
            self.stages = nn.Sequential()
            reduction, dilation = stem_stride, 1
            for i, dim in enumerate(embed_dims):
                downsample = None
                if i > 0:
                    stride = 1 if output_stride is not None and reduction >= output_stride else 2
                    downsample = Downsample(embed_dims[i - 1], dim, stride, dilation)
                    reduction, dilation = reduction * stride, dilation * 2 // stride
                blocks = [block(i, letter, next(drop_paths), dilation) for letter in self.patterns[i]]
                self.stages.append(Stage(dim, blocks, downsample))
                feature_info.append(dict(num_chs=dim, reduction=reduction, module=f"stages.{i}"))
            self.head = ClassifierHead(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate)
        self.feature_info = feature_info
        self.head_hidden_size = self.num_features * self.head.global_pool.feat_mult()
        self.apply(_init_weights)
        self.to(dtype=dtype)

    # --- forward ---

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map: ``(B, in_chans, H, W) -> (B, C, H / 32, W / 32)``."""
        return self.stages(self.stem(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify a feature map; ``pre_logits`` skips the linear layer."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps of selected stages (timm's contract).

        Args:
            x: Images ``(B, in_chans, H, W)``.
            indices: The last n stages (an integer), or stage indices; ``None`` for all stages.
            norm: No effect: every feature map is the stage's normalized output.
            stop_early: Skip the stages after the last index.
            output_fmt: ``NCHW`` or ``NHWC``.
            intermediates_only: Return the list only.

        Returns:
            The maps, or the last map and the maps.
        """
        check(output_fmt in ("NCHW", "NHWC"), "output_fmt", output_fmt, "one of 'NCHW', 'NHWC'")
        take, max_index = feature_take_indices(len(self.stages), indices)
        intermediates = []
        x = self.stem(x)
        for i, stage in enumerate(self.stages[: max_index + 1] if stop_early else self.stages):
            x = stage(x)
            if i in take:
                intermediates.append(x if output_fmt == "NCHW" else x.permute(0, 2, 3, 1))
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages after the last index; returns the indices.

        The classifier is removed as well, unless ``prune_head`` is false and no stage was removed.
        """
        take, max_index = feature_take_indices(len(self.stages), indices)
        prune_head = prune_head or max_index + 1 < len(self.stages)
        self.stages = self.stages[: max_index + 1]
        self.patterns = self.patterns[: max_index + 1]
        self.num_features = self.head.in_features = self.feature_info[max_index]["num_chs"]
        if prune_head:
            self.reset_classifier(0, "")
        return take

    # --- the rest of timm's contract ---

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; 0 classes for none. ``None`` keeps the pooling."""
        check_head(num_classes, self.head.global_pool.pool_type if global_pool is None else global_pool)
        self.num_classes = num_classes
        self.head.reset(num_classes, pool_type=global_pool)
        self.head_hidden_size = self.num_features * self.head.global_pool.feat_mult()
        if isinstance(self.head.fc, nn.Linear):
            _init_weights(self.head.fc)
            # An empty head has no device of its own. Of a fused model, only the norms after stages keep their dtype.
            self.head.to(self.get_parameter(f"stages.{len(self.patterns) - 1}.norm.weight"))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        for module in self.modules():
            if isinstance(module, Stage):
                module.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay, besides the 1-D ones that timm excludes in any case: none."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers in order, for layer-wise learning rate decay: the stem, then each block (``coarse``: each stage).

        A stage's downsampling belongs to its first block, its norm to its last.
        """
        if coarse:
            return dict(stem=r"^stem", blocks=r"^stages\.(\d+)")
        norms = [(rf"^stages\.({i})\.norm", (len(p) - 1,)) for i, p in enumerate(self.patterns)]
        return dict(
            stem=r"^stem",
            blocks=[(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), *norms],
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Accept the release's keys, and those of an SMT under any prefix."""
        convert_state(self, state_dict, prefix, error_msgs=args[-1])
        super()._load_from_state_dict(state_dict, prefix, *args)


def _init_weights(module: nn.Module) -> None:
    """Initialise one layer as the release does."""
    if isinstance(module, nn.Linear):
        # In bfloat16, the inverse error function of a rounded sample may be infinite, and the weight 2 then.
        weight = torch.empty_like(module.weight, dtype=torch.promote_types(module.weight.dtype, torch.float32))
        with torch.no_grad():
            module.weight.copy_(trunc_normal_(weight, std=0.02))
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, FocalModulation):  # after its layers
        module.init_weights()


def _checkpoint(block: nn.Module, x: Tensor) -> Tensor:
    """``block(x)``, recomputed in the backward pass instead of keeping its activations.

    The second run does not update BatchNorm's running statistics, so they are the same as without checkpointing.
    """
    if torch.compiler.is_compiling():  # the compiler takes no context, and updates the statistics once
        return checkpoint(block, x, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _frozen_statistics(block)

    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:  # SyncBatchNorm needs it
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, num_batches_tracked) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches_tracked
