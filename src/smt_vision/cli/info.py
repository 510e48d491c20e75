"""``smt info``."""

from pathlib import Path
from typing import Any

from rich.table import Table

from .common import Output, Parser, new_parser

HELP = "print a model's parameters, GMAC and feature shapes, stage by stage"
EXAMPLES = """\
smt info smt_tiny
smt info smt_base --size 384
smt info convnext_tiny              any model of timm
smt info runs/finetune
"""


def build_parser(words: list[str]) -> Parser:
    parser = new_parser("info", f"{HELP}. GMAC count attention's products.", EXAMPLES)
    parser.add_argument("model", help="a name of timm's, a run's folder, or a checkpoint")
    parser.add_argument("--size", nargs="+", type=int, help="pixels: a side, or height and width; default: the model's")
    parser.add_argument("--model_args", type=dict[str, Any], default={}, help="constructor arguments, for a name")
    return parser


def run(args: Any) -> Output:
    from ..cost import describe
    from ..deploy.exported import ExportedModel
    from ..inference import load
    from ..tasks.build import create_model

    model: Any
    if Path(args.model).exists():
        loaded = load(args.model)
        for part in loaded.model.modules():
            if isinstance(part, ExportedModel):
                made_of = part.manifest.name
                raise ValueError(f"{args.model} is an export, a program without layers; ask for {made_of}, its model")
        model, size = loaded.countable
    else:
        model = create_model(args.model, **args.model_args)
        size = model.pretrained_cfg["input_size"]
    if args.size:
        if len(args.size) > 2:
            raise ValueError(f"--size takes a side, or height and width; got {args.size}")
        size = (size[0], args.size[0], args.size[-1])
    info = describe(model, size)
    table = Table("stage", "output", "mixers", "parameters", "GMAC", box=None, header_style="bold")
    for stage in info.stages:
        shape = " x ".join(map(str, stage.shape))
        table.add_row(stage.name, shape, stage.mixers or "", f"{stage.parameters:,}", f"{stage.gmac:.3f}")
    table.add_section()
    table.add_row("all", "", "", f"{info.parameters:,}", f"{info.gmac:.3f}")
    head = (
        f"[bold]{args.model}[/] at {' x '.join(map(str, info.input_size))}: {info.parameters / 1e6:.2f} M parameters, "
    )
    head += f"{info.gmac:.2f} GMAC, {info.activations / 1e6:.1f} M activations"
    return Output(info.to_dict(), [head, table] if info.stages else [head])
