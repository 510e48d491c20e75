"""``smt convert``."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from .common import Output, Parser, new_parser

HELP = "convert the authors' weight files to this package's keys, and back"
EXAMPLES = """\
smt convert smt_tiny.pth smt_tiny.safetensors          the authors' file, for this package, timm and safetensors
smt convert smt_tiny.safetensors smt_tiny.pth          the reverse, for code written for the authors' release
"""


def build_parser(arguments: list[str]) -> Parser:
    about = f"{HELP}. The keys decide the direction. Strict: every tensor must match a variant."
    parser = new_parser("convert", about, EXAMPLES)
    parser.add_argument("source", type=Path, help="input file: .safetensors, or any PyTorch file")
    parser.add_argument("target", type=Path, help="output file, .pth or .safetensors")
    return parser


def run(args: Any) -> Output:
    from ..convert import convert_file

    report = convert_file(args.source, args.target)
    line = (
        f"{report.source} -> {report.target}: {report.direction}, {report.variant} of {report.num_classes} classes, "
        f"{report.tensors} tensors, {report.parameters:,} parameters"
    )
    return Output({k: str(v) if isinstance(v, Path) else v for k, v in asdict(report).items()}, [line])
