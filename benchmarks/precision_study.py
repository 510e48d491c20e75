"""A study: does training in bfloat16 change what a network learns? CIFAR-10, the network of the shipped studies.

    smt study benchmarks/precision_study.py --run RUN --data torch/cifar10=CIFAR10 --jobs 2

`--seeds`, `--budgets` and `--report` are as for every study (docs/guides/study.md).
"""

from smt_vision.study.studies import CIFAR10, CIFAR10_BUDGETS
from smt_vision.study.study import Claim, Study

STUDY = Study(
    name="precision",
    about="Does training in bfloat16 cost accuracy? CIFAR-10",
    base=CIFAR10,
    variants={"bf16": {}, "fp32": {"engine.precision": "32-true"}},
    claims=(Claim("float32 is better than bfloat16", "fp32", ("bf16",), source="not claimed in the paper"),),
    budgets=CIFAR10_BUDGETS,
)
