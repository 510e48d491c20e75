"""Recipes for detection and instance segmentation: for one's own images, the paper's on COCO, and two small ones."""

from dataclasses import replace

from ...recipe import OWN_DATA, PAPER, Engine, Optim
from .config import DetectConfig, DetectionAugment, DetectionInput, DetectionRecipe

WARMUP = 500 / (118_287 // 16)  # 500 steps of 16 images


def _coco(variant: str, drop_path: float, box_ap: float | None, mask_ap: float | None) -> DetectionRecipe:
    """Mask R-CNN with the 3x schedule."""
    measured = {"box_ap": box_ap, "mask_ap": mask_ap}
    return DetectionRecipe(
        name=f"coco_mask_rcnn_3x_{variant}",
        about=f"Mask R-CNN on smt_{variant}, COCO, multi-scale 3x schedule of the paper",
        model=f"smt_{variant}",
        model_args=dict(drop_path_rate=drop_path),
        pretrained=True,
        data="coco",
        epochs=36,
        batch_size=2,
        input=DetectionInput(interpolation="bilinear", workers=4),
        optim=Optim(
            lr=2e-4,
            warmup_lr=2e-7,
            lr_batch=16,
            schedule="step",
            milestones=(27, 33),
            warmup_epochs=WARMUP,
            no_decay="norm",
            clip_grad=None,
        ),
        detect=DetectConfig(train_short_sides=tuple(range(480, 801, 32)), crop_branch=True),
        engine=Engine(eval_every=3),
        expected={name: value for name, value in measured.items() if value is not None},
        expected_source="the paper, COCO val2017",
        hardware="8 GPUs of 32 GB, 2 images each",
        citation=PAPER,
    )


def _1x(recipe: DetectionRecipe, source: str) -> DetectionRecipe:
    """The same recipe with the single-scale 1x schedule."""
    return replace(
        recipe,
        name=recipe.name.replace("3x", "1x"),
        about=recipe.about.replace("multi-scale 3x", "single-scale 1x"),
        epochs=12,
        optim=replace(recipe.optim, milestones=(8, 11)),
        detect=replace(recipe.detect, train_short_sides=(800,), crop_branch=False),
        engine=Engine(),
        expected={},
        expected_source=source,
    )


_SMALL = _coco("small", 0.2, 49.0, 43.4)
_BASE = _coco("base", 0.3, 49.8, 44.0)
_HALF_LR = replace(_SMALL.optim, lr=1e-4, warmup_lr=1e-7, no_decay="none")  # as the release has it

_INSTANCE = DetectionRecipe(
    name="instance",
    about="masks and boxes in your own images with Mask R-CNN, from pretrained weights",
    model="smt_tiny",
    model_args=dict(drop_path_rate=0.1),
    pretrained=True,
    data=OWN_DATA,
    epochs=40,
    batch_size=4,
    input=DetectionInput(interpolation="bilinear", workers=4),
    optim=Optim(
        lr=1e-3, min_lr=1e-6, warmup_lr=1e-6, lr_batch=16, warmup_epochs=1.0, backbone_lr_scale=0.2, clip_grad=1.0
    ),
    detect=DetectConfig(
        head="mask_rcnn",
        head_norm="group",
        short_side=640,
        long_side=1024,
        train_short_sides=(512, 576, 640, 704),
        anchor_sizes=(16, 32, 64, 128, 256),
    ),
    engine=Engine(ema=0.99, log_every=10, eval_every=2),
    expected_source="depends on your data",
    hardware="one GPU of 8 GB; a CPU with small images (--detect.short_side 320)",
    citation="ours",
)

RECIPES: tuple[DetectionRecipe, ...] = (
    replace(
        _INSTANCE,
        name="detect",
        about="boxes in your own images with FCOS, which needs no anchor sizes, from pretrained weights",
        detect=replace(_INSTANCE.detect, head="fcos", anchor_sizes=DetectConfig().anchor_sizes),
    ),
    _INSTANCE,
    _1x(_SMALL, "not published for the small model"),
    _1x(_BASE, "the paper gives the gain only: 4.2 points of box AP over Swin's counterpart"),
    _SMALL,
    _BASE,
    replace(
        _SMALL,
        name="coco_cascade_3x_small",
        about="Cascade Mask R-CNN on smt_small, COCO, multi-scale 3x schedule of the paper",
        optim=_HALF_LR,
        detect=replace(_SMALL.detect, head="cascade_mask_rcnn", box_loss="giou"),
        expected={"box_ap": 51.9, "mask_ap": 44.7},
    ),
    replace(
        _SMALL,
        name="coco_retinanet_3x_small",
        about="RetinaNet on smt_small, COCO, multi-scale 3x schedule of the paper",
        optim=_HALF_LR,
        detect=replace(_SMALL.detect, head="retinanet"),
        expected={"box_ap": 47.3},
    ),
    replace(
        _SMALL,
        name="coco_dino_small",
        about="DINO with four scales on smt_small, COCO, with the schedule of DINO's authors",
        optim=replace(
            _HALF_LR,
            warmup_epochs=0.0,
            milestones=(30,),
            weight_decay=1e-4,
            backbone_lr_scale=0.1,
            clip_grad=0.1,
        ),
        detect=replace(
            _SMALL.detect, head="dino", head_channels=2048, max_detections=300, eval_detections=100, score_threshold=0.0
        ),
        expected={"box_ap": 54.0},
        expected_source="the paper, COCO val2017, which does not state the schedule; not measured with this recipe",
        citation=f"{PAPER}; Zhang et al., DINO, ICLR 2023, arXiv 2203.03605",
    ),
    DetectionRecipe(
        name="nuclei_mask_rcnn",
        about="cell nuclei with Mask R-CNN, a small model from scratch on two CPU cores",
        model="smt_femto",
        data="nuclei",
        epochs=15,
        batch_size=4,
        input=DetectionInput(interpolation="bilinear", workers=1),
        augment=DetectionAugment(vflip=0.5),
        optim=Optim(lr=1e-3, min_lr=1e-5, warmup_lr=1e-5, lr_batch=None, warmup_epochs=1.0, clip_grad=1.0),
        detect=DetectConfig(
            head_norm="group",
            short_side=320,
            long_side=512,
            train_short_sides=(256, 320, 384),
            anchor_sizes=(8, 16, 32, 64, 128),
            fpn_channels=64,
            head_channels=256,
            rois=128,
            max_detections=400,
        ),
        engine=Engine(ema=0.99, log_every=10, eval_every=3),
        expected={"mask_ap": 55.97, "mask_ap50": 88.36, "box_ap": 57.46},
        expected_source="ours, docs/results/cells.md",
        hardware="2 CPU cores",
        citation="ours",
    ),
    DetectionRecipe(
        name="bccd_retinanet",
        about="blood cells with RetinaNet, a small model from scratch on two CPU cores",
        model="smt_femto",
        data="bccd",
        epochs=30,
        batch_size=4,
        input=DetectionInput(interpolation="bilinear", workers=1),
        augment=DetectionAugment(vflip=0.5),
        optim=Optim(lr=1e-3, min_lr=1e-5, warmup_lr=1e-5, lr_batch=None, warmup_epochs=1.0, clip_grad=1.0),
        detect=DetectConfig(
            head="retinanet",
            head_norm="group",
            short_side=320,
            long_side=448,
            train_short_sides=(288, 320, 352),
            anchor_sizes=(16, 32, 64, 128, 256),
            fpn_channels=64,
        ),
        engine=Engine(ema=0.99, log_every=10, eval_every=2),
        expected={"box_ap": 52.75, "box_ap50": 88.59},
        expected_source="ours, docs/results/cells.md",
        hardware="2 CPU cores",
        citation="ours",
    ),
)
