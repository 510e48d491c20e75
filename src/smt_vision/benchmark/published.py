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
    "swin_tiny_patch4_window7_224": Published("Swin-T", 81.3, 224, "Swin Transformer, arXiv 2103.14030"),
    "convnext_tiny": Published("ConvNeXt-T", 82.1, 224, "A ConvNet for the 2020s, arXiv 2201.03545"),
    "convnextv2_nano": Published("ConvNeXtV2-N", 81.9, 224, "ConvNeXt V2, arXiv 2301.00808"),
    "focalnet_tiny_srf": Published("FocalNet-T (SRF)", 82.1, 224, "Focal Modulation Networks, arXiv 2203.11926"),
    "pvt_v2_b2": Published("PVTv2-B2", 82.0, 224, "PVT v2, arXiv 2106.13797"),
    "caformer_s18": Published("CAFormer-S18", 83.6, 224, "MetaFormer Baselines for Vision, arXiv 2210.13452"),
    "fastvit_sa12": Published("FastViT-SA12", 80.6, 256, "FastViT, arXiv 2303.14189"),
    "edgenext_base": Published("EdgeNeXt-B", 82.5, 256, "EdgeNeXt, arXiv 2206.10589"),
    "efficientvit_b2": Published("EfficientViT-B2", 82.1, 224, "EfficientViT, arXiv 2205.14756"),
    "tiny_vit_11m_224": Published("TinyViT-11M", 81.5, 224, "TinyViT, arXiv 2207.10666"),
    "tiny_vit_21m_224": Published("TinyViT-21M", 83.1, 224, "TinyViT, arXiv 2207.10666"),
    "mobilenetv4_hybrid_medium": Published("MNv4-Hybrid-M", 80.7, 256, "MobileNetV4, arXiv 2404.10518"),
    "repvit_m1_5": Published(
        "RepViT-M1.5", 81.2, 224, "iFormer, table 3, arXiv 2501.15369, of RepViT, arXiv 2307.09283"
    ),
    "maxvit_tiny_tf_224": Published("MaxViT-T", 83.6, 224, "MaxViT, arXiv 2204.01697"),
    "mambaout_tiny": Published("MambaOut-T", 82.7, 224, "MambaOut, arXiv 2405.07992"),
    "rdnet_tiny": Published("RDNet-T", 82.8, 224, "DenseNets Reloaded, arXiv 2403.19588"),
    "inception_next_tiny": Published("InceptionNeXt-T", 82.3, 224, "InceptionNeXt, arXiv 2303.16900"),
    "nextvit_small": Published("Next-ViT-S", 82.5, 224, "Next-ViT, arXiv 2207.05501"),
    "lowformer_b15": Published("LowFormer-B1.5", 81.2, 224, "LowFormer, arXiv 2409.03460"),
    "lowformer_b3": Published("LowFormer-B3", 83.6, 224, "LowFormer, arXiv 2409.03460"),
    "cpubone_b2_bfrobust": Published("CPUBone-B2", 80.3, 224, "CPUBone, arXiv 2603.26425"),
    "cpubone_b3": Published("CPUBone-B3", 83.1, 224, "CPUBone, arXiv 2603.26425"),
}

# Model spec strings of ``smt bench --baselines``: SMT fused, and the others as their authors run them for inference,
# i.e. FastViT and RepViT reparameterized.
BASELINES = (
    "smt_tiny:fused",
    "smt_small:fused",
    "smt_base:fused",
    *(
        f"{name}:fused" if name.startswith(("fastvit", "repvit")) else name
        for name in PUBLISHED
        if not name.startswith("smt_")
    ),
)
