"""Published ImageNet-1K accuracies for the plot of accuracy against throughput.

Single-crop top-1 of models trained on ImageNet-1K only, without distillation, at their evaluation size.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """Published accuracy of a model.

    Args:
        label: Name of the model in the paper.
        top1: Accuracy on the ImageNet-1K validation set in percent.
        size: Image side in pixels.
        source: Title of the paper and arXiv number.
    """

    label: str
    top1: float
    size: int
    source: str


SMT = "Scale-Aware Modulation Meet Transformer, arXiv 2307.08579"

# Keyed by timm's name of the architecture.
PUBLISHED: dict[str, Published] = {
    "smt_tiny": Published("SMT-T", 82.2, 224, SMT),
    "smt_small": Published("SMT-S", 83.7, 224, SMT),
    "smt_base": Published("SMT-B", 84.3, 224, SMT),
    "swin_tiny_patch4_window7_224": Published(
        "Swin-T", 81.3, 224, "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, arXiv 2103.14030"
    ),
    "convnext_tiny": Published("ConvNeXt-T", 82.1, 224, "A ConvNet for the 2020s, arXiv 2201.03545"),
    "focalnet_tiny_srf": Published("FocalNet-T (SRF)", 82.1, 224, "Focal Modulation Networks, arXiv 2203.11926"),
    "pvt_v2_b2": Published(
        "PVTv2-B2", 82.0, 224, "PVT v2: Improved Baselines with Pyramid Vision Transformer, arXiv 2106.13797"
    ),
    "caformer_s18": Published("CAFormer-S18", 83.6, 224, "MetaFormer Baselines for Vision, arXiv 2210.13452"),
    "fastvit_sa12": Published(
        "FastViT-SA12",
        80.6,
        256,
        "FastViT: A Fast Hybrid Vision Transformer using Structural Reparameterization, arXiv 2303.14189",
    ),
    "edgenext_base": Published(
        "EdgeNeXt-B",
        82.5,
        256,
        "EdgeNeXt: Efficiently Amalgamated CNN-Transformer Architecture for Mobile Vision Applications, "
        "arXiv 2206.10589",
    ),
}

# Model spec strings of ``smt bench --baselines``. FastViT is fused, as its paper reparameterizes it for inference.
BASELINES = (
    "smt_tiny",
    "smt_tiny:fused",
    "smt_small",
    "smt_base",
    "swin_tiny_patch4_window7_224",
    "convnext_tiny",
    "focalnet_tiny_srf",
    "pvt_v2_b2",
    "caformer_s18",
    "fastvit_sa12:fused",
    "edgenext_base",
)
