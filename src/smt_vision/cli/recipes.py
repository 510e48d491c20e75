"""``smt recipes``."""

import sys
from typing import Any

import yaml
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from ..tasks import RECIPES
from .common import EXIT_USAGE, Output, Parser, nearest, new_parser

HELP = "list the recipes, or print one in full"
EXAMPLES = """\
smt recipes
smt recipes finetune > mine.yaml        edit it, then: smt train finetune --config mine.yaml
"""


def build_parser(words: list[str]) -> Parser:
    parser = new_parser("recipes", f"{HELP}, as YAML.", EXAMPLES)
    parser.add_argument("name", nargs="?", help="the recipe to print")
    return parser


def run(args: Any) -> Output:
    if args.name is None:
        table = Table("recipe", "result", "purpose", box=None, header_style="bold")
        table.columns[0].no_wrap = table.columns[1].no_wrap = True
        for r in RECIPES.values():
            result = next((f"{metric} {value:.1f} %" for metric, value in r.expected.items()), "-")
            table.add_row(r.name, result, f"{r.about}; {r.epochs} epochs on {r.hardware}")
        return Output(
            [r.to_dict() for r in RECIPES.values()], [table, "", "each recipe names the source of its result."]
        )
    if args.name not in RECIPES:
        hint = nearest(args.name, RECIPES)
        print(f"smt recipes: error: unknown recipe {args.name!r}{hint} (smt recipes lists them)", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)
    recipe = RECIPES[args.name].to_dict()
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100)
    # Colors on a terminal; plain text for a file, which rich would pad to its width.
    show = Syntax(text.rstrip(), "yaml", background_color="default") if sys.stdout.isatty() else Text(text.rstrip())
    return Output(recipe, [show])
