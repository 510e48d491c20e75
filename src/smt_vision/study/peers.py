"""Other networks beside SMT: timm's, scaled to the parameters or the GMAC of the studies' SMT, and those for ImageNet.

The scaled networks have feature maps of the same sizes as that SMT, 16, 8, 4 and 2 pixels for images of 32 pixels; see
:mod:`smt_vision.baselines`. They have the proportions of their family: widths that grow as in its published variants
(doubling; PVTv2 about 2 : 4 : 10 : 16; MambaOut 1 : 2 : 4 : 6), and depths in the ratio 1 : 1 : 3 : 1, or 2 blocks per
stage for Swin, which shifts the windows of every second block, and as in PVTv2-B1 and ResNet-18. What timm adds for
training of hundreds of epochs, and the SMT does not have here, is off: stochastic depth, and the small initial value of
LayerScale.
"""

from collections.abc import Mapping

from .study import Overrides


def _peer(model: str, **model_args: object) -> Overrides:
    return {"model": model, "model_args": model_args}


def _swin(embed_dim: int) -> Overrides:
    """Swin with 2 x 2 patches, and windows of 4 x 4, which divide the maps as 7 x 7 do at 224 pixels."""
    return _peer(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        patch_size=2,
        window_size=4,
        embed_dim=embed_dim,
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 4, 8),
        drop_path_rate=0.0,
    )


def _convnext(*dims: int) -> Overrides:
    return _peer("cifar_convnext", dims=dims, depths=(1, 1, 3, 1), ls_init_value=1.0)


def _focalnet(embed_dim: int) -> Overrides:
    return _peer("cifar_focalnet", embed_dim=embed_dim, depths=(1, 1, 3, 1), drop_path_rate=0.0)


def _pvt_v2(*embed_dims: int) -> Overrides:
    return _peer("cifar_pvt_v2", embed_dims=embed_dims, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))


def _resnet(width: int) -> Overrides:
    """ResNet-18 with a deep stem (ResNet-D), all widths scaled."""
    channels = tuple(width * n for n in (1, 2, 4, 8))
    return _peer("cifar_resnet", channels=channels, layers=(2, 2, 2, 2), stem_width=width // 2)


# Parameters within 3 % of SMT's 1.066 million.
EQUAL_PARAMETERS: Mapping[str, Overrides] = {
    "swin": _swin(22),
    "convnext": _convnext(30, 60, 120, 240),
    "focalnet": _focalnet(26),
    "pvt_v2": _pvt_v2(18, 36, 88, 144),
    "poolformer": _peer("cifar_poolformerv2", dims=(28, 56, 112, 224), depths=(1, 1, 3, 1)),
    "caformer": _peer("cifar_caformer", dims=(24, 48, 96, 192), depths=(1, 1, 3, 1), head_dim=24),
    "mambaout": _peer("cifar_mambaout", dims=(30, 60, 120, 176), depths=(1, 1, 3, 1)),
    "resnet": _resnet(20),
}
# GMAC within 3 % of SMT's 0.0169. All have more parameters: SMT computes more per parameter.
EQUAL_GMAC: Mapping[str, Overrides] = {
    "swin": _swin(25),
    "convnext": _convnext(34, 68, 136, 272),
    "focalnet": _focalnet(28),
    "pvt_v2": _pvt_v2(20, 40, 96, 152),
    "poolformer": _peer("cifar_poolformerv2", dims=(32, 64, 128, 256), depths=(1, 1, 3, 1)),
    "caformer": _peer("cifar_caformer", dims=(26, 52, 104, 208), depths=(1, 1, 3, 1), head_dim=26),
    "mambaout": _peer("cifar_mambaout", dims=(32, 64, 124, 186), depths=(1, 1, 3, 1)),
    "resnet": _resnet(22),
}
# The variants of about the size of smt_small, 22.6 million parameters: theirs in millions, as timm builds them.
IMAGENET: Mapping[str, Overrides] = {
    "swin": {"model": "swin_tiny_patch4_window7_224"},  # 28.3
    "convnext": {"model": "convnext_tiny"},  # 28.6
    "focalnet": {"model": "focalnet_tiny_srf"},  # 28.4
    "pvt_v2": {"model": "pvt_v2_b2"},  # 25.4
    "poolformer": {"model": "poolformerv2_s24"},  # 21.3
    "caformer": {"model": "caformer_s18"},  # 26.3
    "mambaout": {"model": "mambaout_tiny"},  # 26.5
    "resnet": {"model": "resnet50"},  # 25.6
}
