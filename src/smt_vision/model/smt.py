"""SMT, the Scale-Aware Modulation Transformer.

Source: "Scale-Aware Modulation Meet Transformer" (ICCV 2023), arXiv 2307.08579, and the authors' release. The function
computed is the release's; what differs is the form:

- blocks work channels-last (``B H W C``), value and context are one product, and so are query, key and value;
- which mixer a block uses is data (``mixers``), not a flag;
- every feature map is the stage's normalised output, for classification and dense prediction alike;
- the release's state dicts load as they are (see ``official.py``).

``B`` batch, ``C`` channels, ``H W`` grid.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import ClassifierHead, DropPath, trunc_normal_
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..kernels.switch import transformed
from .attention import MSA
from .ehn import expand_pattern
from .layers import FFN, LayerScale, checkpointed, conv_bhwc
from .modulation import SAM
from .official import is_official, to_ours

IMAGENET_STRIDE = 4


class Stem(nn.Module):
    """Image to grid: Conv k x k, BatchNorm, ReLU, Conv p x p of stride p, LayerNorm.

    Stride 4 (the paper's) and 2 have p = 2 and hence the same weights; the first convolution has stride 2 and 1.
    Stride 1 has p = 1.

    Shape: ``(B, in_chans, H, W) -> (B, H / stride, W / stride, C)``; the p x p convolution floors an odd size.
    """

    def __init__(self, in_chans: int, dim: int, kernel_size: int = 3, stride: int = IMAGENET_STRIDE) -> None:
        super().__init__()
        patch = 1 if stride == 1 else 2
        self.conv1 = nn.Conv2d(
            in_chans, dim, kernel_size, stride=max(stride // 2, 1), padding=kernel_size // 2, bias=False
        )
        self.bn = nn.BatchNorm2d(dim)
        self.act = nn.ReLU()
        self.conv2 = nn.Conv2d(dim, dim, patch, stride=patch)
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        if not transformed():  # vmap has no rule for it, nor a need
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.act(self.bn(self.conv1(x)))
        return self.norm(self.conv2(x).permute(0, 2, 3, 1))


class Downsample(nn.Module):
    """Patch embedding between stages: ``(B, H, W, C_in) -> (B, ceil(H / 2), ceil(W / 2), C_out)``."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, kernel_size=3, stride=2, padding=1)
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(conv_bhwc(self.conv, x))


class Block(nn.Module):
    """``x + DropPath(g1 * Mixer(LN(x)))``, then ``x + DropPath(g2 * FFN(LN(x)))``; ``g`` only with LayerScale.

    Shape: ``(B, H, W, C) -> (B, H, W, C)``.
    """

    def __init__(self, mixer: nn.Module, ffn: FFN, dim: int, layer_scale: float | None, drop_path: float) -> None:
        super().__init__()

        def scale() -> nn.Module:
            return nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.mixer = mixer
        self.scale1 = scale()
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.ffn = ffn
        self.scale2 = scale()
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.scale1(self.mixer(self.norm1(x))))
        return x + self.drop_path2(self.scale2(self.ffn(self.norm2(x))))


class Stage(nn.Module):
    """Downsampling (all but the first stage), blocks, LayerNorm.

    Shape: ``(B, H, W, C_in) -> (B, H', W', C)``, the stage's feature map.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], dim: int) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        for block in self.blocks:
            x = checkpointed(block, x) if self.grad_checkpointing else block(x)
        return self.norm(x)


def _per_stage(name: str, value: Any, num_stages: int) -> tuple:
    """A value a stage from one for all or a sequence of them; raises a ValueError that names the argument."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,) * num_stages
    if len(values) != num_stages:
        raise ValueError(
            f"{name}={value!r} has {len(values)} entries for {num_stages} stages; give one an entry of embed_dims"
        )
    return values


def _check(ok: bool, name: str, value: Any, works: str) -> None:
    if not ok:
        raise ValueError(f"{name}={value!r} cannot work: {works}")


def _check_pool(global_pool: str, num_classes: int) -> None:
    works = "one of 'avg', 'max', 'avgmax' and 'catavgmax', or '' for none where num_classes=0"
    _check(global_pool in ("avg", "max", "avgmax", "catavgmax", ""), "global_pool", global_pool, works)
    _check(global_pool != "" or num_classes == 0, "global_pool", global_pool, works)


class SMT(nn.Module):
    """Scale-Aware Modulation Transformer.

    ``(B, in_chans, H, W) -> (B, num_classes)`` for any H and W of at least 32 (8 strides of the stem).

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier; 0 for none.
        global_pool: timm's pooling of the last map: ``avg``, ``max``, ``avgmax``, ``catavgmax`` or ``""`` for none.
        embed_dims: channels, a stage.
        depths: blocks, a stage.
        mlp_ratios: width of the FFN over that of the stage, for all stages or a stage.
        mixers: the mixer pattern of each stage (see :func:`smt_vision.model.ehn.expand_pattern`): letters ``S``
            (modulation) and ``A`` (attention), cycled over its blocks; ``"S*A*"`` for halves.
        conv_heads: heads of the mixed convolution, for all stages or a stage.
        attn_heads: attention heads, for all stages or a stage; only read where a stage has attention.
        expand_ratio: expansion of the scale-aware aggregation.
        aggregation: ``False`` leaves the aggregation out: the mixed convolution's output modulates unmixed.
        layer_scale: initial value of LayerScale; ``None`` for none.
        drop_path_rate: stochastic depth at the last block; grows linearly from 0 at the first.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout after the projections of mixers and FFNs.
        attn_drop_rate: dropout on the attention weights.
        stem_kernel: size of the stem's first convolution; odd.
        stem_stride: 4, or 2 or 1 for small images.

    Raises:
        ValueError: a combination is impossible; the message names the argument, its value and what would work.
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
        aggregation: bool = True,
        layer_scale: float | None = None,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        stem_kernel: int = 3,
        stem_stride: int = IMAGENET_STRIDE,
    ) -> None:
        super().__init__()
        _check(in_chans >= 1, "in_chans", in_chans, "an image has at least 1 channel")
        _check(num_classes >= 0, "num_classes", num_classes, "0 (no classifier) or more")
        _check(stem_kernel >= 1 and stem_kernel % 2 == 1, "stem_kernel", stem_kernel, "an odd number, as 3 or 7")
        _check(stem_stride in (1, 2, 4), "stem_stride", stem_stride, "one of 4, 2 and 1")
        whole = expand_ratio >= 1 and expand_ratio == int(expand_ratio)
        _check(whole, "expand_ratio", expand_ratio, "a whole number of at least 1")
        _check_pool(global_pool, num_classes)
        for name, rate in (
            ("drop_path_rate", drop_path_rate),
            ("drop_rate", drop_rate),
            ("proj_drop_rate", proj_drop_rate),
            ("attn_drop_rate", attn_drop_rate),
        ):
            _check(0 <= rate < 1, name, rate, "a probability, from 0 to below 1")
        dims = tuple(embed_dims)
        n = len(dims)
        _check(n >= 1 and all(d >= 1 for d in dims), "embed_dims", embed_dims, "a positive number of channels a stage")
        depths, mlp_ratios, patterns, conv_heads, attn_heads = (
            _per_stage(name, value, n)
            for name, value in (
                ("depths", tuple(depths)),
                ("mlp_ratios", mlp_ratios),
                ("mixers", mixers),
                ("conv_heads", conv_heads),
                ("attn_heads", attn_heads),
            )
        )
        _check(all(d >= 1 for d in depths), "depths", depths, "at least 1 block a stage")
        _check(all(int(d * r) >= 1 for d, r in zip(dims, mlp_ratios, strict=True)), "mlp_ratios", mlp_ratios, "above 0")
        patterns = tuple(expand_pattern(p, d) for p, d in zip(patterns, depths, strict=True))
        for i, (dim, pattern) in enumerate(zip(dims, patterns, strict=True)):
            for letter, name, heads in (("S", "conv_heads", conv_heads[i]), ("A", "attn_heads", attn_heads[i])):
                works = [h for h in range(1, min(dim, 64) + 1) if dim % h == 0]
                _check(
                    letter not in pattern or (heads >= 1 and dim % heads == 0),
                    name,
                    heads,
                    f"stage {i + 1} has embed_dims={dim}, which {', '.join(map(str, works))} heads divide",
                )

        self.num_classes = num_classes
        self.in_chans = in_chans
        self.patterns = patterns
        self.num_features = dims[-1]

        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())

        def block(i: int, letter: str) -> Block:
            mixer: nn.Module
            if letter == "S":
                mixer = SAM(dims[i], conv_heads[i], expand_ratio, aggregation, proj_drop_rate)
            else:
                mixer = MSA(dims[i], attn_heads[i], attn_drop_rate, proj_drop_rate)
            ffn = FFN(dims[i], int(dims[i] * mlp_ratios[i]), proj_drop_rate)
            return Block(mixer, ffn, dims[i], layer_scale, next(rates))

        self.stem = Stem(in_chans, dims[0], stem_kernel, stem_stride)
        self.stages = nn.ModuleList(
            Stage(
                nn.Identity() if i == 0 else Downsample(dims[i - 1], dims[i]),
                [block(i, letter) for letter in patterns[i]],
                dims[i],
            )
            for i in range(n)
        )
        self.feature_info = [
            dict(num_chs=dim, reduction=stem_stride * 2**i, module=f"stages.{i}") for i, dim in enumerate(dims)
        ]
        self.head = ClassifierHead(dims[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate)
        self.head_hidden_size = dims[-1] * self.head.global_pool.feat_mult()
        self.apply(_init_weights)

    # --- forward ---

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map: ``(B, in_chans, H, W) -> (B, C, H / 32, W / 32)``, channels-last in memory."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return x.permute(0, 3, 1, 2)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify a feature map; with ``pre_logits`` stop before the linear layer."""
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
        """Feature maps of chosen stages (timm's contract).

        Args:
            x: images ``(B, in_chans, H, W)``.
            indices: the last so many stages, or the stages with these indices; ``None`` for all.
            norm: of no effect, since every feature map is the stage's normalised output.
            stop_early: do not run the stages after the last index.
            output_fmt: ``NCHW`` or ``NHWC``.
            intermediates_only: return the list alone.

        Returns:
            The maps, or the last map and the maps.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt={output_fmt!r} cannot work: 'NCHW' or 'NHWC'")
        take, max_index = feature_take_indices(len(self.stages), indices)
        intermediates = []
        x = self.stem(x)
        for i, stage in enumerate(self.stages[: max_index + 1] if stop_early else self.stages):
            x = stage(x)
            if i in take:
                intermediates.append(x if output_fmt == "NHWC" else x.permute(0, 3, 1, 2))
        return intermediates if intermediates_only else (x.permute(0, 3, 1, 2), intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last index; returns the indices.

        The classifier goes unless told otherwise, and in any case where its stage does.
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
        """Replace the classifier by a new one; 0 classes for none. ``None`` leaves the pooling as it is."""
        _check(num_classes >= 0, "num_classes", num_classes, "0 (no classifier) or more")
        _check_pool(self.head.global_pool.pool_type if global_pool is None else global_pool, num_classes)
        self.num_classes = num_classes
        self.head.reset(num_classes, pool_type=global_pool)
        self.head_hidden_size = self.num_features * self.head.global_pool.feat_mult()
        if isinstance(self.head.fc, nn.Linear):
            _init_weights(self.head.fc)
            self.head.to(self.stem.norm.weight)  # an empty head has no device of its own

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass in place of keeping its activations."""
        for stage in self.modules():
            if isinstance(stage, Stage):
                stage.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters to spare from weight decay, beside biases and 1-D ones, which timm spares anyway: none."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers in order, for layer-wise rate decay: the stem, then each block (``coarse``: each stage).

        A stage's downsampling goes with its first block, its norm with its last.
        """
        if coarse:
            return dict(stem=r"^stem", blocks=r"^stages\.(\d+)")
        norms = [(rf"^stages\.({i})\.norm", (len(p) - 1,)) for i, p in enumerate(self.patterns)]
        return dict(
            stem=r"^stem",
            blocks=[(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), *norms],
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the release's state dict for what it is: its keys are renamed and merged before they are looked up."""
        own = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
        if is_official(own):
            for key in own:
                del state_dict[prefix + key]
            state_dict.update({prefix + k: v for k, v in to_ours(own).items()})
        super()._load_from_state_dict(state_dict, prefix, *args)


def _init_weights(module: nn.Module) -> None:
    """The release's initialisation, of one layer."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
