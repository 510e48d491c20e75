"""The studies that ship: the claims of the paper, on CIFAR-10 and CamVid at the size of a CPU, and on ImageNet-1K.

A study of one's own is a file with a variable ``STUDY``; see docs/guides/study.md.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from ..recipe import PAPER
from ..tasks import RECIPES
from .peers import EQUAL_GMAC, EQUAL_PARAMETERS, IMAGENET
from .study import Claim, Overrides, Study, with_overrides

MEASURED = f"{PAPER}, after full training on ImageNet-1K"  # differences

# About a million parameters on feature maps of 16, 8, 4 and 2 pixels.
SMALL = dict(embed_dims=(24, 48, 96, 192), depths=(1, 1, 4, 1), attn_heads=(2, 3, 6, 12))

CIFAR10 = with_overrides(
    RECIPES["cifar10"],
    {
        "model_args": {**SMALL, "stem_stride": 2},
        "epochs": 10,
        "augment.cutmix": 0.0,  # a strong regularizer, which short training does not need
        "optim.lr": 3e-3,
        "engine.checkpoint_minutes": 3.0,
        "engine.loggers": (),
    },
)
CAMVID = with_overrides(
    RECIPES["camvid_upernet"],
    {"model_args": SMALL, "engine.checkpoint_minutes": 3.0, "engine.loggers": ()},
)

IMAGENET_TINY = with_overrides(RECIPES["imagenet1k_tiny"], {"engine.loggers": ()})
IMAGENET_SMALL = with_overrides(RECIPES["imagenet1k_small"], {"engine.loggers": ()})

AGGREGATIONS: Mapping[str, Overrides] = {
    "saa": {},
    "none": {"model_args.aggregation": "none"},
    "linear": {"model_args.aggregation": "linear"},
    "mlp_c": {"model_args.aggregation": "mlp", "model_args.expand_ratio": 1},
    "mlp_2c": {"model_args.aggregation": "mlp"},
    "inverted_bottleneck": {"model_args.aggregation": "inverted_bottleneck"},
}
AGGREGATION_CLAIMS = (
    Claim("SAA is better than no aggregation", "saa", ("none",), {"none": 1.6}, MEASURED),
    Claim(
        "SAA is better than dense aggregations of the heads",
        "saa",
        ("linear", "mlp_c", "mlp_2c", "inverted_bottleneck"),
        source=PAPER,
    ),
)
HEADS: Mapping[str, Overrides] = {
    "heads_4": {},
    **{f"heads_{n}": {"model_args.conv_heads": n} for n in (1, 2, 6, 8)},
}
HEADS_CLAIMS = (
    Claim("4 convolution heads are better than one", "heads_4", ("heads_1",), source=PAPER),
    Claim(
        "4 convolution heads are better than any other number",
        "heads_4",
        ("heads_2", "heads_6", "heads_8"),
        source=PAPER,
    ),
)
STACKING: Mapping[str, Overrides] = {
    "alternate": {},
    "halves": {"model_args.mixers": ("S", "S", "S*A*", "A")},
    "sam_only": {"model_args.mixers": "S"},
    "msa_only": {"model_args.mixers": "A"},
    "reversed": {"model_args.mixers": ("A", "A", "AS", "S")},
}
STACKING_CLAIMS = (
    Claim("Alternating SAM and MSA is better than SAM first, then MSA", "alternate", ("halves",), source=PAPER),
    Claim(
        "The hybrid is better than modulation only and than attention only",
        "alternate",
        ("sam_only", "msa_only"),
        source=PAPER,
    ),
    Claim("Modulation first is better than attention first", "alternate", ("reversed",)),
)
MODULATION: Mapping[str, Overrides] = {
    "sam": {},
    "kernel_3": {"model_args.conv_heads": 1},
    **{f"kernel_{k}": {"model_args.conv_heads": 1, "model_args.conv_kernels": (k,)} for k in (5, 7, 9)},
    "sum": {"model_args.modulation": "sum"},
    "focal": {"model_args.mixers": ("F", "F", "FA", "A")},
    "plain_conv_7": {
        "model_args.conv_heads": 1,
        "model_args.conv_kernels": (7,),
        "model_args.aggregation": "none",
        "model_args.modulation": "sum",
    },
    "msa_only": {"model_args.mixers": "A"},
}
MODULATION_CLAIMS = (
    Claim(
        "Several convolutions of different sizes are better than a single one of any size",
        "sam",
        ("kernel_3", "kernel_5", "kernel_7", "kernel_9"),
    ),
    Claim("Modulation by a product is better than a sum", "sam", ("sum",)),
    Claim("SAM is better than FocalNet's modulation", "sam", ("focal",)),
    Claim(
        "SAM is better than plain convolution and plain attention", "sam", ("plain_conv_7", "msa_only"), source=PAPER
    ),
)

# smt_tiny has 64 channels in its first stage, which 6 does not divide.
HEADS_IMAGENET = {name: values for name, values in HEADS.items() if name != "heads_6"}
HEADS_IMAGENET_CLAIMS = (
    HEADS_CLAIMS[0],
    Claim("4 convolution heads are better than any other number", "heads_4", ("heads_2", "heads_8"), source=PAPER),
)
PEERS_CLAIM = Claim("SMT is better than the other networks at equal parameters", "smt", tuple(EQUAL_PARAMETERS))
PEERS_GMAC_CLAIM = Claim("SMT is better than the other networks at equal GMAC", "smt", tuple(EQUAL_GMAC))
PEERS_IMAGENET_CLAIM = Claim(
    "SMT is better than the other networks at about equal size",
    "smt",
    tuple(IMAGENET),
    {"swin": 2.4, "convnext": 1.6, "focalnet": 1.6, "pvt_v2": 1.7, "caformer": 0.1},
    "the papers of the networks (top-1 of smt_small, 83.7, minus that of each)",
)
BUDGET: Mapping[str, Overrides] = {
    "smt": {},
    "no_aggregation": {"model_args.aggregation": "none"},
    "one_head": {"model_args.conv_heads": 1},
    "msa_only": {"model_args.mixers": "A"},
}
BUDGET_CLAIMS = (
    Claim("SAA is better than no aggregation", "smt", ("no_aggregation",), source=PAPER),
    Claim("4 convolution heads are better than one", "smt", ("one_head",), source=PAPER),
    Claim("The hybrid is better than attention only", "smt", ("msa_only",), source=PAPER),
)

# At equal numbers of optimizer steps, 1950 as 5 epochs of all images, and equal warm-up; and at other widths, with
# attention heads of about 16 channels as in the network of the other studies.
SIZES: Mapping[str, Overrides] = {
    "25 % of the images": {"train_fraction": 0.25, "epochs": 20, "optim.warmup_epochs": 6.0, "engine.eval_every": 4},
    "10 % of the images": {"train_fraction": 0.1, "epochs": 50, "optim.warmup_epochs": 15.0, "engine.eval_every": 10},
    "half the width": {
        "epochs": 5,
        "model_args.embed_dims": (12, 24, 48, 96),
        "model_args.attn_heads": (1, 2, 3, 6),
    },
    "twice the width": {
        "epochs": 5,
        "model_args.embed_dims": (48, 96, 192, 384),
        "model_args.attn_heads": (4, 6, 12, 24),
    },
    # The size of a GPU: feature maps of 32, 16, 8 and 4 pixels.
    **{
        f"{n} epochs at stem stride 1": {"epochs": n, "model_args.stem_stride": 1, "engine.eval_every": n // 5}
        for n in (5, 10, 50)
    },
}

# Cells of seconds on some 24 images.
DEBUG: Overrides = {
    "model_args.depths": (1, 1, 2, 1),
    "epochs": 1,
    "batch_size": 8,
    "input.workers": 0,
    "engine.accelerator": "cpu",
    "engine.precision": "32-true",
    "engine.log_every": 1,
    "engine.eval_every": 1,
}
# All numbers of convolution heads divide these widths.
DEBUG_CLASSIFY: Overrides = {
    **DEBUG,
    "model_args.embed_dims": (24, 24, 48, 48),
    "model_args.attn_heads": (1, 1, 2, 2),
    "model_args.stem_stride": 2,
    "input.size": 32,
}
DEBUG_CAMVID: Overrides = {
    **DEBUG,
    "model_args.embed_dims": (24, 24, 48, 48),
    "model_args.attn_heads": (1, 1, 2, 2),
    "batch_size": 4,
    "segment.short_side": 64,
    "segment.long_side": 96,
    "segment.crop": (64, 64),
    "segment.channels": 16,
    "segment.aux_channels": 8,
}

# Name, question, variants and claims: a study on CIFAR-10; the first three also on CamVid.
QUESTIONS = (
    ("aggregation", "How should the convolution heads be combined?", AGGREGATIONS, AGGREGATION_CLAIMS),
    ("mhmc_heads", "How many convolution heads?", HEADS, HEADS_CLAIMS),
    ("stacking", "Where should modulation and attention stand?", STACKING, STACKING_CLAIMS),
    ("modulation", "What makes modulation work?", MODULATION, MODULATION_CLAIMS),
)
# And on ImageNet-1K.
QUESTIONS_IMAGENET = (
    QUESTIONS[0],
    ("mhmc_heads", "How many convolution heads?", HEADS_IMAGENET, HEADS_IMAGENET_CLAIMS),
    *QUESTIONS[2:],
)


def _epochs(*numbers: int) -> dict[str, Overrides]:
    return {f"{n} epochs": {"epochs": n} for n in numbers}


# Two budgets, with 30 % of each for the warm-up: what a CPU can do for all variants. `budget` has longer ones.
CIFAR10_BUDGETS: Mapping[str, Overrides] = {
    "2 epochs": {"epochs": 2, "optim.warmup_epochs": 0.6},
    **_epochs(5),
}


def _studies() -> Iterator[Study]:
    for name, question, variants, claims in QUESTIONS:
        about = f"{question} CIFAR-10"
        yield Study(name, about, CIFAR10, variants, claims, CIFAR10_BUDGETS, debug=DEBUG_CLASSIFY)
    for name, question, variants, claims in QUESTIONS[:3]:
        about = f"{question} CamVid"
        unpublished = tuple(
            replace(claim, published={}, source=claim.source and PAPER) for claim in claims
        )  # the published ones are of top-1
        yield Study(f"{name}_camvid", about, CAMVID, variants, unpublished, _epochs(14), debug=DEBUG_CAMVID)
    for name, question, variants, claims in QUESTIONS_IMAGENET:
        about = f"{question} ImageNet-1K"
        yield Study(f"{name}_imagenet", about, IMAGENET_TINY, variants, claims, _epochs(100, 300), debug=DEBUG_CLASSIFY)
    for name, how, peers, claim in (
        ("peers", "parameters", EQUAL_PARAMETERS, PEERS_CLAIM),
        ("peers_gmac", "GMAC", EQUAL_GMAC, PEERS_GMAC_CLAIM),
    ):
        about = (
            f"How accurate are other networks of equal {how}, with the SMT's recipe and learning rate? CIFAR-10. None "
            "has stochastic depth; ConvNeXt's LayerScale begins at 1."
        )
        yield Study(name, about, CIFAR10, {"smt": {}, **peers}, (claim,), CIFAR10_BUDGETS, debug=DEBUG_CLASSIFY)
    yield Study(
        "peers_imagenet",
        "How accurate are other networks of about equal size, with the SMT's recipe? ImageNet-1K",
        IMAGENET_SMALL,
        {"smt": {}, **IMAGENET},
        (PEERS_IMAGENET_CLAIM,),
        _epochs(100, 300),
        debug=DEBUG_CLASSIFY,
        debug_variants=EQUAL_PARAMETERS,
    )
    yield Study(
        "budget",
        "How do the differences depend on epochs, images and parameters? CIFAR-10",
        CIFAR10,
        BUDGET,
        BUDGET_CLAIMS,
        {**CIFAR10_BUDGETS, **_epochs(10), **SIZES},
        debug=DEBUG_CLASSIFY,
        trend_from=dict.fromkeys(SIZES, "5 epochs"),
        reference_budgets=tuple(CIFAR10_BUDGETS),
    )


STUDIES: Mapping[str, Study] = {study.name: study for study in _studies()}
