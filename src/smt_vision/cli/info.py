"""``smt info``."""

from pathlib import Path
from typing import Any

from rich.table import Table

from ..bounds import ModelArgs, Side
from .common import Output, Parser, new_parser
from .console import styled

HELP = "print a model's parameters, GMAC and feature shapes per stage"
EXAMPLES = """\
smt info smt_tiny
smt info smt_base --size 384
smt info convnext_tiny              any timm model
smt info runs/finetune
"""


def build_parser(words: list[str]) -> Parser:
    parser = new_parser("info", f"{HELP}. GMAC include attention's matrix products.", EXAMPLES)
    parser.add_argument("model", help="a timm model name, a run folder, or a checkpoint")
    parser.add_argument("--size", nargs="+", type=Side, help="pixels: side, or height and width; default: the model's")
    parser.add_argument("--model_args", type=ModelArgs, default={}, help="constructor arguments, for a name")
    return parser


def run(args: Any) -> Output:
    from ..cost import describe
    from ..deploy.exported import ExportedModel
    from ..tasks.image_size import arguments_for_size
    from ..tasks.load import create_named, load

    if args.size and len(args.size) > 2:
        raise ValueError(f"invalid --size {args.size}: expected one side, or height and width")
    if Path(args.model).expanduser().exists():
        if args.model_args:
            raise ValueError(f"--model_args is for names: {args.model} has its own; omit it")
        predictor = load(args.model, require_classes=False)
        for module in predictor.model.modules():
            if isinstance(module, ExportedModel):
                source = module.manifest.name
                raise ValueError(f"{args.model} is an export, a program without layers; use its source model, {source}")
        model, size = predictor.flops_model()
    else:
        arguments = args.model_args
        if args.size:
            arguments = arguments_for_size(args.model, arguments, (args.size[0], args.size[-1]))
        model = create_named(args.model, **arguments)
        size = model.pretrained_cfg["input_size"]
    if args.size:
        size = (size[0], args.size[0], args.size[-1])
    info = describe(model, size)
    table = Table("stage", "output", "mixers", "parameters", "GMAC", box=None, header_style="bold")
    for stage in info.stages:
        shape = " x ".join(map(str, stage.shape))
        table.add_row(stage.name, shape, stage.mixers or "", f"{stage.parameters:,}", f"{stage.gmac:.3f}")
    table.add_section()
    table.add_row("all", "", "", f"{info.parameters:,}", f"{info.gmac:.3f}")
    head = styled(
        (args.model, "bold"),
        f" at {' x '.join(map(str, info.input_size))}: {info.parameters / 1e6:.2f} M parameters, "
        f"{info.gmac:.2f} GMAC, {info.activations / 1e6:.1f} M activations",
    )
    return Output(info.to_dict(), [head, table] if info.stages else [head])
