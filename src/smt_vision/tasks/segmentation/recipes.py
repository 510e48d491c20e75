"""Segmentation recipes: for one's own images, the paper's runs on ADE20K, and a small run for a CPU."""

from ...recipe import OWN_DATA, PAPER, Engine, Optim
from .config import SegmentationInput, SegmentationRecipe, SegmentConfig

ADE20K_EPOCH = 20_210 // 16  # optimizer steps


def _ade20k(variant: str, drop_path: float, miou: float, multi_scale_miou: float) -> SegmentationRecipe:
    return SegmentationRecipe(
        name=f"ade20k_upernet_160k_{variant}",
        about=f"UPerNet on smt_{variant}, ADE20K, as in the paper",
        model=f"smt_{variant}",
        model_args=dict(drop_path_rate=drop_path),
        pretrained=True,
        data="ade20k",
        epochs=127,  # the paper trains for 160,000 steps: 126.7 epochs of 1,263 steps
        batch_size=2,
        input=SegmentationInput(interpolation="bilinear", workers=4),
        optim=Optim(
            lr=6e-5,
            min_lr=0.0,
            warmup_lr=6e-11,
            lr_batch=16,
            schedule="poly",
            warmup_epochs=1500 / ADE20K_EPOCH,
            weight_decay=0.01,
            no_decay="none",
            clip_grad=None,
        ),
        segment=SegmentConfig(zero_is_ignored=True),
        engine=Engine(eval_every=10),
        expected={"miou": miou},
        expected_source=f"the paper, ADE20K val, single scale; {multi_scale_miou} at six scales with flips",
        hardware="8 GPUs of 32 GB, 2 images each",
        citation=PAPER,
    )


RECIPES: tuple[SegmentationRecipe, ...] = (
    SegmentationRecipe(
        name="segment",
        about="label maps of your own images with UPerNet, from pretrained weights",
        model="smt_tiny",
        model_args=dict(drop_path_rate=0.1),
        pretrained=True,
        data=OWN_DATA,
        epochs=60,
        batch_size=8,
        input=SegmentationInput(interpolation="bilinear", workers=4),
        optim=Optim(
            lr=1e-3, min_lr=1e-6, warmup_lr=1e-6, lr_batch=16, warmup_epochs=1.0, backbone_lr_scale=0.2, clip_grad=1.0
        ),
        segment=SegmentConfig(channels=256, aux_channels=128),
        engine=Engine(ema=0.99, log_every=10, eval_every=2),
        expected_source="depends on your data",
        hardware="one GPU of 16 GB; a CPU with small images (--segment.short_side 256 --segment.crop '[256, 256]')",
        citation="ours",
    ),
    _ade20k("small", 0.2, 49.2, 50.2),
    _ade20k("base", 0.3, 49.6, 50.6),
    SegmentationRecipe(
        name="salient_upernet",
        about="salient or camouflaged objects in folders of images and masks, from pretrained weights",
        model="smt_tiny",
        model_args=dict(drop_path_rate=0.1),
        pretrained=True,
        data=OWN_DATA,
        epochs=40,
        batch_size=16,
        input=SegmentationInput(interpolation="bilinear"),
        optim=Optim(lr=2e-4, min_lr=1e-6, warmup_lr=1e-6, lr_batch=16, warmup_epochs=1.0, clip_grad=1.0),
        # The usual protocol: squares of 352 pixels in training and testing. At scale 1 a crop is the entire image.
        segment=SegmentConfig(
            kind="binary", short_side=352, squash=True, crop=(352, 352), scale=(0.75, 1.25), channels=256
        ),
        expected_source="depends on your data",
        hardware="one GPU of 16 GB",
        citation="ours",
    ),
    SegmentationRecipe(
        name="camvid_upernet",
        about="street scenes of CamVid with UPerNet, a small model from scratch on two CPU cores",
        model="smt_femto",
        data="camvid",
        epochs=100,
        batch_size=8,
        input=SegmentationInput(interpolation="bilinear", workers=1),
        optim=Optim(lr=2e-3, min_lr=1e-5, warmup_lr=1e-5, lr_batch=None, warmup_epochs=2.0, clip_grad=1.0),
        segment=SegmentConfig(short_side=360, long_side=480, crop=(256, 256), channels=64, aux_channels=32),
        engine=Engine(ema=0.99, log_every=10, eval_every=4),
        expected={"miou": 63.67, "pixel_accuracy": 92.52},
        expected_source="ours, docs/results/camvid.md",
        hardware="2 CPU cores",
        citation="ours",
    ),
)
