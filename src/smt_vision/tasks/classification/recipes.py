"""Classification recipes: the paper's runs, fine-tuning, and two for a CPU."""

from dataclasses import replace

from ...recipe import OWN_DATA, PAPER, Engine, Optim
from .config import ClassificationAugment, ClassificationInput, ClassificationRecipe


def _imagenet(
    variant: str, params: str, drop_path: float, top1: float | None, top5: float | None
) -> ClassificationRecipe:
    expected = {} if top1 is None or top5 is None else {"top1": top1, "top5": top5}
    origin = "as in the paper" if expected else "with the settings of the other variants"
    return ClassificationRecipe(
        name=f"imagenet1k_{variant}",
        about=f"smt_{variant} ({params} parameters) from scratch on ImageNet-1K, {origin}",
        model=f"smt_{variant}",
        model_args=dict(drop_path_rate=drop_path),
        data="imagenet",
        epochs=300,
        batch_size=128,
        expected=expected,
        expected_source="the paper, table 1" if expected else "not published: the paper pretrains large on 22K",
        hardware="8 GPUs of 32 GB, 128 images each",
        citation=PAPER,
    )


_TINY = _imagenet("tiny", "11.5 M", 0.1, 82.2, 96.0)
_LARGE_22K = ClassificationRecipe(
    name="imagenet22k_large",
    about="smt_large (80.6 M parameters) from scratch on ImageNet-22K, for fine-tuning",
    model="smt_large",
    model_args=dict(drop_path_rate=0.1),
    data="imagenet22k",
    epochs=90,
    batch_size=128,
    input=ClassificationInput(val_fraction=0.005),  # of 14 million images that have no validation split
    optim=Optim(lr=1.25e-4, warmup_lr=1.25e-7, min_lr=1.25e-6),
    engine=Engine(accumulate=4),
    expected_source="no top-1 on 22K is published",
    hardware="8 GPUs of 40 GB, 128 images each, 4 batches accumulated",
    citation=PAPER,
)
_LARGE_224 = replace(
    _LARGE_22K,
    name="imagenet1k_large_ft224",
    about="smt_large from 22K weights, fine-tuned on ImageNet-1K at 224",
    model="smt_large.in22k",
    pretrained=True,
    data="imagenet",
    epochs=30,
    input=ClassificationInput(),
    optim=Optim(lr=1e-5, warmup_lr=1e-8, min_lr=1e-7),
    engine=Engine(),
    expected={"top1": 87.1, "top5": 98.1},
    expected_source="the paper, table 2",
    hardware="8 GPUs of 40 GB, 128 images each",
)

RECIPES: tuple[ClassificationRecipe, ...] = (
    _TINY,
    _imagenet("small", "22.6 M", 0.2, 83.7, 96.5),
    _imagenet("base", "32.0 M", 0.3, 84.3, 96.9),
    _imagenet("large", "80.6 M", 0.4, None, None),
    _LARGE_22K,
    _LARGE_224,
    replace(
        _LARGE_224,
        name="imagenet1k_large_ft384",
        about="smt_large from 22K weights, fine-tuned on ImageNet-1K at 384",
        batch_size=64,
        input=ClassificationInput(size=384, crop_mode="squash", crop_pct=1.0),
        optim=Optim(lr=2e-5, warmup_lr=2e-8, min_lr=2e-7),
        expected={"top1": 88.1, "top5": 98.4},
        hardware="8 GPUs of 40 GB, 64 images each",
    ),
    ClassificationRecipe(
        name="finetune",
        about="your own image folder, from pretrained weights, with layer-wise learning rate decay and EMA",
        model="smt_tiny",
        model_args=dict(drop_path_rate=0.1),
        pretrained=True,
        data=OWN_DATA,
        epochs=20,
        batch_size=64,
        augment=ClassificationAugment(scale=(0.3, 1.0), mixup=0.0, cutmix=0.0),
        optim=Optim(
            lr=5e-4, min_lr=1e-6, warmup_lr=1e-6, lr_batch=256, warmup_epochs=2.0, layer_decay=0.75, clip_grad=1.0
        ),
        engine=Engine(ema=0.998, log_every=10),
        expected_source="depends on your data",
        hardware="one GPU of 8 GB; hours, not days, on a CPU with a small dataset",
        citation="layer-wise decay from Bao et al., BEiT, arXiv 2106.08254; otherwise as in the paper",
    ),
    ClassificationRecipe(
        name="cifar10",
        about="a small model from scratch on CIFAR-10, on two CPU cores",
        model="smt_femto",
        model_args=dict(stem_stride=1, depths=(1, 1, 4, 1)),
        data="torch/cifar10",
        epochs=18,
        batch_size=128,
        input=ClassificationInput(size=32, crop_pct=1.0, workers=1),
        augment=ClassificationAugment(
            crop="pad", auto_augment=None, color_jitter=0.0, random_erasing=0.0, mixup=0.0, mix_prob=0.5
        ),
        optim=Optim(lr=2e-3, min_lr=1e-5, warmup_lr=1e-5, lr_batch=None, warmup_epochs=1.5, clip_grad=1.0),
        engine=Engine(ema=0.998),
        expected={"top1": 85.5},
        expected_source="measured here, docs/results/cifar10.md: 85.56 at seed 0",
        hardware="2 CPU cores",
        citation="ours",
    ),
    ClassificationRecipe(
        name="quickstart",
        about="handwritten digits in a few minutes on two CPU cores",
        model="smt_atto",
        model_args=dict(stem_stride=2),
        data="auto",
        epochs=12,
        batch_size=64,
        input=ClassificationInput(
            size=32, channels=1, crop_pct=1.0, mean=(0.1307,), std=(0.3081,), val_fraction=0.2, workers=0
        ),
        augment=ClassificationAugment(
            crop="pad",
            pad=3,
            hflip=0.0,
            auto_augment=None,
            color_jitter=0.0,
            random_erasing=0.0,
            mixup=0.0,
            cutmix=0.0,
            label_smoothing=0.05,
        ),
        optim=Optim(lr=3e-3, min_lr=1e-5, warmup_lr=1e-5, lr_batch=None, warmup_epochs=1.0, clip_grad=1.0),
        engine=Engine(precision="32-true", ema=0.98, log_every=10),
        expected={"top1": 98.0},
        expected_source="measured here: 98.00 at seed 0",
        hardware="2 CPU cores",
        citation="ours",
    ),
)
