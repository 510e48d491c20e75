"""timm's hierarchical networks for small images, registered with timm as ``cifar_NAME``.

timm's own entry points fix the stride of the stem, 4, and some also the widths and depths. These classifiers have all
arguments of timm's classes, and a stem of stride 2, so that their feature maps have the sizes of an SMT with
``stem_stride=2``: 16, 8, 4 and 2 pixels for images of 32 pixels. Only the stride and the padding of one convolution are
changed, or the pooling of ResNet's stem, so the weights have the shapes of timm's. There are no pretrained weights.

Swin needs no such form: ``swin_tiny_patch4_window7_224`` has an argument ``patch_size``.
"""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.convnext import ConvNeXt
from timm.models.focalnet import FocalNet
from timm.models.mambaout import MambaOut
from timm.models.metaformer import (
    Attention,
    GroupNorm1NoBias,
    LayerNorm2dNoBias,
    LayerNormNoBias,
    MetaFormer,
    SepConv,
)
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

NAMES = ("convnext", "focalnet", "pvt_v2", "poolformerv2", "caformer", "mambaout", "resnet")

default_cfgs = generate_default_cfgs(
    {
        f"cifar_{name}.untrained": dict(
            input_size=(3, 32, 32),
            pool_size=(2, 2),
            crop_pct=1.0,
            interpolation="bicubic",
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
            num_classes=1000,
        )
        for name in NAMES
    }
)


def _create(kind: type[nn.Module], name: str, pretrained: bool, kwargs: dict[str, Any], **fixed: Any) -> Any:
    if kwargs.get("features_only"):
        raise ValueError(f"cifar_{name} is a classifier for comparisons, without features_only; use timm's own network")
    return build_model_with_cfg(kind, f"cifar_{name}", pretrained, **{**fixed, **kwargs})


def _set_stride(conv: nn.Conv2d, stride: int, padding: int) -> None:
    conv.stride, conv.padding = (stride, stride), (padding, padding)


@register_model
def cifar_convnext(pretrained: bool = False, **kwargs: Any) -> ConvNeXt:
    """ConvNeXt; the stem's 4 x 4 patches overlap by two pixels."""
    model = _create(ConvNeXt, "convnext", pretrained, kwargs)
    _set_stride(model.stem[0], 2, padding=1)
    return model


@register_model
def cifar_focalnet(pretrained: bool = False, **kwargs: Any) -> FocalNet:
    """FocalNet; the stem's 4 x 4 patches overlap by two pixels."""
    model = _create(FocalNet, "focalnet", pretrained, kwargs)
    _set_stride(model.stem.proj, 2, padding=1)
    return model


@register_model
def cifar_pvt_v2(pretrained: bool = False, **kwargs: Any) -> PyramidVisionTransformerV2:
    """PVTv2."""
    model = _create(PyramidVisionTransformerV2, "pvt_v2", pretrained, kwargs)
    _set_stride(model.patch_embed.proj, 2, padding=3)
    return model


@register_model
def cifar_poolformerv2(pretrained: bool = False, **kwargs: Any) -> MetaFormer:
    """PoolFormer in the form of the MetaFormer baselines."""
    fixed = dict(norm_layers=GroupNorm1NoBias, use_mlp_head=False)
    model = _create(MetaFormer, "poolformerv2", pretrained, kwargs, **fixed)
    _set_stride(model.stem.conv, 2, padding=3)
    return model


@register_model
def cifar_caformer(pretrained: bool = False, **kwargs: Any) -> MetaFormer:
    """CAFormer, with one linear layer as the classifier, as all others have."""
    fixed = dict(
        token_mixers=[SepConv, SepConv, Attention, Attention],
        norm_layers=[LayerNorm2dNoBias, LayerNorm2dNoBias, LayerNormNoBias, LayerNormNoBias],
        use_mlp_head=False,
    )
    model = _create(MetaFormer, "caformer", pretrained, kwargs, **fixed)
    _set_stride(model.stem.conv, 2, padding=3)
    return model


@register_model
def cifar_mambaout(pretrained: bool = False, **kwargs: Any) -> MambaOut:
    """MambaOut; the first of the stem's two convolutions has stride 1."""
    model = _create(MambaOut, "mambaout", pretrained, kwargs)
    _set_stride(model.stem.conv1, 1, padding=1)
    return model


@register_model
def cifar_resnet(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet of basic blocks with three 3 x 3 convolutions as the stem (ResNet-D), without its pooling."""
    fixed = dict(block=BasicBlock, stem_type="deep", avg_down=True)
    model = _create(ResNet, "resnet", pretrained, kwargs, **fixed)
    model.maxpool = nn.Identity()
    return model
