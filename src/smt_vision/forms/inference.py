"""Inference-optimized (fused) modules: the same function with fewer passes over memory.

Changes by part of the model (``B`` batch, ``H W`` grid, ``C`` channels, ``N`` convolution heads):

- Stem and SAA: BatchNorm is folded into the preceding convolution.
- MHMC: the output channels of the context projection are reordered to SAA's aggregation order. All heads then are one
  depthwise convolution, with smaller kernels zero-padded, and its output needs no shuffle.
- FFN: the skip connection around the depthwise convolution becomes a 1 at the center of its kernel.
- LayerScale is folded into the preceding projection. Dropout and drop path are removed.
- Linear layers pack their weights once, and convolutions apply their activation in the same pass (see
  ``fused_layers.py``).
- On CUDA, MHMC and SAA's expansion stay the Triton kernels, which are faster than one convolution for all heads.
- In another dtype than the model's, e.g. bfloat16, each part computes in it, and each stage's last map is cast back.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torchvision.ops import FrozenBatchNorm2d

from ..kernels import saa
from ..kernels.availability import triton_is_supported
from ..kernels.depthwise import HANGS_FROM
from ..model.attention import MSA, split_heads
from ..model.focal import FocalModulation
from ..model.modulation import MHMC, SAA, SAM, ConcatHeads, DenseAggregation
from ..model.smt import FFN, SMT, Block, Downsample, Stage, Stem
from . import FORMS
from .cuda import CudaMHMC
from .fused_layers import Activation, FusedConv2d, FusedLinear
from .guard import can_bypass, has_hooks


def fuse(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """An inference-optimized copy of a model, with the same outputs up to rounding errors.

    The copy is in evaluation mode and keeps the device. Its parameters have no gradients and other state dict keys.
    On CUDA, fuse the model where it will run: the copy of a model on a CPU has no Triton kernels.
    Only the parts of the SMT are replaced; its methods, and modules around it such as a ``features_only`` wrapper or a
    detector, stay the same. Blocks with ablation parts (aggregations other than the paper's or none, FocalNet's
    modulation) are not fused, only put into evaluation mode.

    On a CPU, weights are packed at the first call, and again after an in-place operation on them or another
    ``load_state_dict``. Writes through ``weight.data`` are not noticed: write to the weight under ``torch.no_grad()``.

    Args:
        model: An SMT, or any module that contains one.
        dtype: Type that the stem, the downsampling and the blocks compute in, e.g. ``torch.bfloat16``, which is 1.3
            to 2 times as fast on a CPU with native support for it. Images are cast to it. The norm after each stage,
            which gives the feature maps, and the classifier keep the model's dtype. ``None`` for the model's dtype.

    Raises:
        ValueError: The model does not contain an SMT, is fused already, or one of its modules has behavior beyond its
            type and weights, e.g. an adapter (LoRA) or a hook, that fusion would drop. Or ``dtype`` is not a floating
            point type, or given for a model with a block that cannot be fused, or bfloat16 for a model on a CPU with
            convolution kernels of 15 or more columns, with which oneDNN hangs.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"invalid dtype={dtype}: expected a floating point type, e.g. torch.bfloat16")
    if dtype is torch.bfloat16 and _hangs_in_bfloat16(model):
        raise ValueError(
            f"invalid dtype={dtype}: there are convolution kernels of {HANGS_FROM} or more columns, with which oneDNN "
            "hangs in bfloat16 on a CPU; omit dtype"
        )
    with torch.inference_mode(False), torch.no_grad():
        parts = {name: m for name, m in model.named_modules() if _can_fuse(m)}
        if not parts:
            if is_fused(model):
                raise ValueError(f"this {type(model).__name__} is fused already; use it as it is")
            raise ValueError(
                f"there is nothing to fuse in this {type(model).__name__}: expected an SMT or a model that contains one"
            )
        for name, part in parts.items():
            _check_layers(name, part)
        fused = copy.deepcopy(model).eval().requires_grad_(False)
        for name in parts:
            fused.set_submodule(name, _fused(fused.get_submodule(name)).to(dtype))
        if dtype is not None:
            for stage in [module for module in fused.modules() if isinstance(module, Stage)]:
                _cast_back(stage, dtype)
    return fused


def is_fused(model: nn.Module) -> bool:
    """Whether a model contains blocks that :func:`fuse` made."""
    return any(isinstance(module, FusedBlock) for module in model.modules())


def at_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A model for inference in another dtype: its SMT fused on a CPU, and everything else under autocast.

    Args:
        model: Any model in float32.
        dtype: Type of its matrix products and convolutions, e.g. ``torch.bfloat16``.

    Returns:
        A module that takes and returns what the model does; outputs that are a tensor are float32.
    """
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    smts = [module for module in model.modules() if isinstance(module, SMT)]
    blocks = [block for smt in smts for block in smt.modules() if isinstance(block, Block)]
    hangs = dtype is torch.bfloat16 and _hangs_in_bfloat16(model)
    if on_cpu and smts and not hangs and all(map(_can_fuse, blocks)):
        model = fuse(model, dtype)
        if isinstance(model, SMT):
            return model  # its classifier stays float32
    return AutocastModel(model, dtype)


def _hangs_in_bfloat16(model: nn.Module) -> bool:
    """Whether a depthwise convolution of the model on a CPU would not return in bfloat16."""
    return any(
        max(mhmc.kernel_sizes) >= HANGS_FROM and any(parameter.device.type == "cpu" for parameter in mhmc.parameters())
        for mhmc in model.modules() if isinstance(mhmc, MHMC)
    )  # fmt: skip


class AutocastModel(nn.Module):
    """A model that is called under autocast; an output that is a tensor is cast to float32."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(self, images: Tensor, *args: Any) -> Any:
        with torch.autocast(images.device.type, self.dtype):
            out = self.model(images, *args)
        return out.float() if isinstance(out, Tensor) else out


class Cast(nn.Module):
    """Cast to a dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)

    def extra_repr(self) -> str:
        return str(self.dtype)


class FusedStem(nn.Module):
    """``(B, in_chans, H, W) -> (B, C, H / stride, W / stride)``; see :class:`~smt_vision.model.smt.Stem`."""

    def __init__(self, stem: Stem) -> None:
        super().__init__()
        self.conv1 = _conv(stem.conv1, *_folded(stem.conv1, stem.bn), act="relu")
        self.conv2 = _conv(stem.conv2)
        self.norm = stem.norm

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.conv1.weight.dtype).contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        return self.norm(self.conv2(self.conv1(x)).permute(0, 3, 1, 2))


class FusedDownsample(nn.Module):
    """``(B, C_in, H, W) -> (B, C, ceil(H / 2), ceil(W / 2))``."""

    def __init__(self, downsample: Downsample) -> None:
        super().__init__()
        self.conv = _conv(downsample.conv)
        self.norm = downsample.norm

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.conv.weight.dtype).permute(0, 2, 3, 1)
        return self.norm(self.conv(x).permute(0, 3, 1, 2))


class FusedSAM(nn.Module):
    """``residual + SAM(x)``, all ``(B, H, W, C)``."""

    def __init__(self, sam: SAM, scale: Tensor) -> None:
        super().__init__()
        dim = sam.proj.in_features
        N = sam.mhmc.num_heads
        value, context = sam.vs.weight.split(dim)
        value_bias, context_bias = sam.vs.bias.split(dim)
        kernel, bias = _merged_heads(sam.mhmc)  # (C, 1, K, K), head by head
        self.expand = self.reduce = None  # they stay None without aggregation
        if isinstance(sam.saa, SAA):
            self.expand, self.reduce = _aggregation(sam.saa)
            # From [head, group] to [group, head].
            order = torch.arange(dim, device=kernel.device).view(N, dim // N).t().flatten()
            context, context_bias = context[order], context_bias[order]
            kernel, bias = kernel[order], bias[order]
        self.value = FusedLinear(value, value_bias)
        self.context = FusedLinear(context, context_bias)
        dilation = sam.mhmc.dilation
        padding = dilation * (kernel.shape[-1] // 2)
        self.mhmc = FusedConv2d(kernel, bias, padding=padding, dilation=dilation, groups=dim)
        self.proj = _scaled(sam.proj, scale)
        self.join = _join(sam)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        value, modulator = self.value(x), self.mhmc(self.context(x))
        if self.expand is None or self.reduce is None:
            return self.proj(modulator * value if self.join == "mul" else modulator + value, residual)
        return self.proj(self.reduce(self.expand(modulator), value, self.join), residual)


class KernelSAM(nn.Module):
    """:class:`FusedSAM` with the Triton kernels on CUDA, and with convolutions where they cannot be used."""

    def __init__(self, sam: SAM, scale: Tensor) -> None:
        super().__init__()
        assert isinstance(sam.saa, SAA)
        self.vs = FusedLinear(sam.vs.weight, sam.vs.bias)
        self.mhmc = sam.mhmc
        self.expand, self.reduce = _aggregation(sam.saa)
        self.proj = _scaled(sam.proj, scale)
        self.join = _join(sam)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        value, context = self.vs(x).chunk(2, dim=-1)
        maps = self.mhmc(context)
        if torch.jit.is_scripting():
            hidden = self.expand(maps.flatten(-2))
        else:  # not compiled by TorchScript
            hidden = self._expand(maps)
        return self.proj(self.reduce(hidden, value, self.join), residual)

    def _expand(self, maps: Tensor) -> Tensor:
        weight = self.expand.weight.flatten(1)
        replaced = has_hooks(self.expand) or type(self.expand.weight) is not nn.Parameter
        if not replaced and can_bypass(maps, in_compiled_code=True) and saa.grouped_gelu_is_supported(maps, weight):
            return saa.grouped_gelu(maps, weight, self.expand.bias)
        hidden: Tensor = self.expand(maps.flatten(-2))
        return hidden


def _has_kernels(sam: SAM) -> bool:
    """Whether the Triton kernels can compute this module where its weights are."""
    return isinstance(sam.mhmc, CudaMHMC) and isinstance(sam.saa, SAA) and triton_is_supported(sam.vs.weight)


class FusedMSA(nn.Module):
    """``residual + MSA(x)``, all ``(B, H, W, C)``."""

    def __init__(self, msa: MSA, scale: Tensor) -> None:
        super().__init__()
        dim = msa.proj.in_features
        self.num_heads = msa.num_heads
        query_key, value = msa.qkv.weight.split((2 * dim, dim))
        query_key_bias, value_bias = msa.qkv.bias.split((2 * dim, dim))
        self.qk = FusedLinear(query_key, query_key_bias)
        self.value = FusedLinear(value, value_bias)
        self.local_conv = _conv(msa.local_conv)
        self.proj = _scaled(msa.proj, scale)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        q, k = self.qk(x).chunk(2, dim=-1)
        value = self.value(x)
        out = F.scaled_dot_product_attention(
            split_heads(q, self.num_heads), split_heads(k, self.num_heads), split_heads(value, self.num_heads)
        )
        out = out.transpose(1, 2).reshape(x.shape)
        return self.proj(self.local_conv(value, out), residual)


class FusedFFN(nn.Module):
    """``residual + FFN(x)``, all ``(B, H, W, C)``."""

    def __init__(self, ffn: FFN, scale: Tensor) -> None:
        super().__init__()
        kernel = ffn.dwconv.weight.clone()
        kernel[:, :, 1, 1] += 1  # the skip connection
        self.fc1 = FusedLinear(ffn.fc1.weight, ffn.fc1.bias)
        self.dwconv = _conv(ffn.dwconv, kernel, _bias(ffn.dwconv), act="gelu")
        self.fc2 = _scaled(ffn.fc2, scale)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.fc2(self.dwconv(self.fc1(x)), residual)


class FusedBlock(nn.Module):
    """``(B, H, W, C) -> (B, H, W, C)``."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        mixer = block.mixer
        if isinstance(mixer, SAM):
            kind = KernelSAM if _has_kernels(mixer) else FusedSAM
            self.mixer: nn.Module = kind(mixer, _scale(block.scale1, block.norm1))
        elif isinstance(mixer, MSA):
            self.mixer = FusedMSA(mixer, _scale(block.scale1, block.norm1))
        else:
            raise ValueError(f"cannot fuse a block with mixer {type(mixer).__name__}: expected SAM or MSA")
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.ffn = FusedFFN(block.ffn, _scale(block.scale2, block.norm2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.mixer(self.norm1(x), x)
        return self.ffn(self.norm2(x), x)


def _cast_back(stage: Stage, dtype: torch.dtype) -> None:
    """Let a stage's last block return the type of the stage's norm."""
    for block in stage.blocks:
        if not isinstance(block, FusedBlock):
            raise ValueError(
                f"cannot compute in {dtype}: a block has an aggregation or a modulation for ablations, which is not "
                "fused; omit dtype"
            )
    if stage.norm.weight.dtype != dtype:
        stage.blocks.append(Cast(stage.norm.weight.dtype))


def _can_fuse(module: nn.Module) -> bool:
    """Whether a module is a part of an SMT that has an inference-optimized form."""
    if not isinstance(module, Block):
        return isinstance(module, Stem | Downsample)
    mixer = module.mixer
    return not (isinstance(mixer, FocalModulation) or (isinstance(mixer, SAM) and type(mixer.saa) is DenseAggregation))


# Modules of a part. Fusion reads the parameters of the first kind, knows what the second computes, and keeps or removes
# the third.
LAYERS = (nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)
COMPOSED = {Downsample, Block, ConcatHeads, *FORMS, *FORMS.values()}
OTHERS = (LayerScale, DropPath, nn.LayerNorm, nn.Dropout, nn.ModuleList, nn.Identity)


def _check_layers(part_name: str, part: nn.Module) -> None:
    """Check that each module in a part computes what its type and its weights say."""
    activation = nn.ReLU if isinstance(part, Stem) else nn.GELU
    for name, module in part.named_modules(prefix=part_name):
        if "parametrizations" in name.split("."):
            continue
        kind = type(module).__mro__[1] if is_parametrized(module) else type(module)
        if kind in LAYERS:
            known = all(type(parameter) is nn.Parameter for parameter in module.parameters())
            known = known and getattr(module, "padding_mode", "zeros") == "zeros"
            known = known and getattr(module, "running_mean", module) is not None and module.weight is not None
        else:
            known = kind in COMPOSED or kind is activation or isinstance(module, OTHERS)
            known = known and getattr(module, "approximate", "none") == "none"
        kept = isinstance(module, nn.LayerNorm)
        if not known or (has_hooks(module) and not kept):
            raise ValueError(
                f"cannot fuse {name} ({type(module).__name__}): fusion would lose an adapter, a hook, a quantized "
                "weight or a replaced layer; merge or remove it first, or fuse before adding it"
            )


def _fused(part: nn.Module) -> nn.Module:
    if isinstance(part, Stem):
        return FusedStem(part)
    if isinstance(part, Downsample):
        return FusedDownsample(part)
    assert isinstance(part, Block)
    return FusedBlock(part)


def _conv(
    conv: nn.Conv2d, weight: Tensor | None = None, bias: Tensor | None = None, act: Activation = "none"
) -> FusedConv2d:
    """The fused version of a convolution, with its own or the given weights."""
    weight = conv.weight if weight is None else weight
    bias = _bias(conv) if bias is None else bias
    return FusedConv2d(weight, bias, conv.stride[0], int(conv.padding[0]), conv.dilation[0], conv.groups, act)


def _scaled(linear: nn.Linear, scale: Tensor) -> FusedLinear:
    """A linear layer with the LayerScale after it."""
    return FusedLinear(linear.weight * scale[:, None], linear.bias * scale)


def _aggregation(module: SAA) -> tuple[FusedConv2d, FusedLinear]:
    """SAA's expansion, with its norm and activation, and its reduction."""
    expand = _conv(module.expand, *_folded(module.expand, module.norm), act="gelu")
    return expand, FusedLinear(module.reduce.weight.flatten(1), _bias(module.reduce))


def _join(sam: SAM) -> str:
    """How the modulator and the value are combined."""
    return "mul" if sam.modulation == "product" else "add"


def _bias(conv: nn.Conv2d) -> Tensor:
    return conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the following BatchNorm folded in; computed in float64."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    scale = norm.weight.double() / (var.double() + norm.eps).sqrt()
    weight = conv.weight.double() * scale[:, None, None, None]
    bias = (_bias(conv).double() - mean.double()) * scale + norm.bias.double()
    return weight.to(conv.weight.dtype), bias.to(conv.weight.dtype)


def _merged_heads(mhmc: MHMC) -> tuple[Tensor, Tensor]:
    """Weight ``(C, 1, K, K)`` and bias ``(C,)`` of one convolution for all heads, with the size of the largest."""
    convs = [conv for conv in mhmc.convs if isinstance(conv, nn.Conv2d)]
    largest = max(conv.kernel_size[0] for conv in convs)
    weights = [F.pad(conv.weight, [(largest - conv.kernel_size[0]) // 2] * 4) for conv in convs]
    return torch.cat(weights), torch.cat([_bias(conv) for conv in convs])


def _scale(scale: nn.Module, norm: nn.LayerNorm) -> Tensor:
    return scale.gamma if isinstance(scale, LayerScale) else torch.ones_like(norm.weight)
