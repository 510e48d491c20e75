"""The studies that ship: the claims of the paper, on CIFAR-10 and CamVid at the size of a CPU, and on ImageNet-1K.

A study of one's own is a file with a variable ``STUDY``; see docs/guides/study.md.
"""

from collections.abc import Iterator, Mapping

from ..tasks import RECIPES
from .study import Claim, Overrides, Study, with_overrides

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

AGGREGATIONS: Mapping[str, Overrides] = {
    "saa": {},
    "none": {"model_args.aggregation": "none"},
    "linear": {"model_args.aggregation": "linear"},
    "mlp_c": {"model_args.aggregation": "mlp", "model_args.expand_ratio": 1},
    "mlp_2c": {"model_args.aggregation": "mlp"},
    "inverted_bottleneck": {"model_args.aggregation": "inverted_bottleneck"},
}
AGGREGATION_CLAIMS = (
    Claim("SAA is better than no aggregation", "saa", ("none",), {"none": 1.6}),
    Claim(
        "SAA is better than dense aggregations of the heads",
        "saa",
        ("linear", "mlp_c", "mlp_2c", "inverted_bottleneck"),
    ),
)
HEADS: Mapping[str, Overrides] = {
    "heads_4": {},
    **{f"heads_{n}": {"model_args.conv_heads": n} for n in (1, 2, 6, 8)},
}
HEADS_CLAIMS = (
    Claim("4 convolution heads are better than one", "heads_4", ("heads_1",)),
    Claim("4 convolution heads are better than any other number", "heads_4", ("heads_2", "heads_6", "heads_8")),
)
STACKING: Mapping[str, Overrides] = {
    "alternate": {},
    "halves": {"model_args.mixers": ("S", "S", "S*A*", "A")},
    "sam_only": {"model_args.mixers": "S"},
    "msa_only": {"model_args.mixers": "A"},
    "reversed": {"model_args.mixers": ("A", "A", "AS", "S")},
}
STACKING_CLAIMS = (
    Claim("SAM and MSA in turn are better than in halves", "alternate", ("halves",)),
    Claim("The hybrid is better than modulation or attention only", "alternate", ("sam_only", "msa_only")),
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
        "Convolutions of several sizes are better than one of any size",
        "sam",
        ("kernel_3", "kernel_5", "kernel_7", "kernel_9"),
    ),
    Claim("Modulation by a product is better than a sum", "sam", ("sum",)),
    Claim("SAM is better than FocalNet's modulation", "sam", ("focal",)),
    Claim("SAM is better than plain convolution and plain attention", "sam", ("plain_conv_7", "msa_only")),
)

# Name, question, variants and claims: a study on CIFAR-10, and one on ImageNet-1K; the first three also on CamVid.
QUESTIONS = (
    ("aggregation", "How should the convolution heads be combined?", AGGREGATIONS, AGGREGATION_CLAIMS),
    ("mhmc_heads", "How many convolution heads?", HEADS, HEADS_CLAIMS),
    ("stacking", "Where should modulation and attention stand?", STACKING, STACKING_CLAIMS),
    ("modulation", "What makes modulation work?", MODULATION, MODULATION_CLAIMS),
)


def _epochs(*numbers: int) -> dict[str, Overrides]:
    return {f"{n} epochs": {"epochs": n} for n in numbers}


def _studies() -> Iterator[Study]:
    for name, question, variants, claims in QUESTIONS:
        yield Study(name, f"{question} CIFAR-10", CIFAR10, variants, claims, _epochs(5, 10))
    for name, question, variants, claims in QUESTIONS[:3]:
        yield Study(f"{name}_camvid", f"{question} CamVid", CAMVID, variants, claims, _epochs(14))


STUDIES: Mapping[str, Study] = {study.name: study for study in _studies()}
