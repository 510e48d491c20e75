"""``smt convert``."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from .common import Output, Parser, new_parser

HELP = "turn the authors' weights into ours, or ours into theirs"
EXAMPLES = """\
smt convert smt_tiny.pth smt_tiny.safetensors          the release's file, for this package, timm and safetensors
smt convert smt_tiny.safetensors smt_tiny.pth          and back, for code written for the release
"""


def build_parser(words: list[str]) -> Parser:
    about = (
        f"{HELP}; which way is seen from the keys. Strict: what does not fit a variant to the last tensor is refused."
    )
    parser = new_parser("convert", about, EXAMPLES)
    parser.add_argument("source", type=Path, help="a .pth or .safetensors file")
    parser.add_argument("target", type=Path, help="the .pth or .safetensors file to write")
    return parser


def run(args: Any) -> Output:
    from ..convert import convert_file

    report = convert_file(args.source, args.target)
    line = (
        f"{report.source} -> {report.target}: {report.direction}, {report.variant} of {report.num_classes} classes, "
        f"{report.tensors} tensors, {report.parameters:,} parameters"
    )
    return Output({k: str(v) if isinstance(v, Path) else v for k, v in asdict(report).items()}, [line])
