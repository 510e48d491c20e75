"""``smt recipes``."""

import sys
from typing import Any

import yaml
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from ..recipes import RECIPES
from .common import EXIT_USAGE, Output, Parser, nearest, new_parser

HELP = "list the recipes, or print one whole"
EXAMPLES = """\
smt recipes
smt recipes finetune > mine.yaml        change it, then: smt train finetune --config mine.yaml
"""


def build_parser(words: list[str]) -> Parser:
    parser = new_parser("recipes", f"{HELP}, as YAML.", EXAMPLES)
    parser.add_argument("name", nargs="?", help="the recipe to print")
    return parser


def run(args: Any) -> Output:
    if args.name is None:
        table = Table("recipe", "result", "what for", box=None, header_style="bold")
        table.columns[0].no_wrap = table.columns[1].no_wrap = True
        for r in RECIPES.values():
            result = next((f"{metric} {value:.1f} %" for metric, value in r.expected.items()), "-")
            table.add_row(r.name, result, f"{r.about}; {r.epochs} epochs on {r.hardware}")
        return Output([r.to_dict() for r in RECIPES.values()], [table, "\neach recipe says whose result it is."])
    if args.name not in RECIPES:
        hint = nearest(args.name, RECIPES)
        print(f"smt recipes: error: there is no recipe {args.name!r}{hint} (smt recipes lists them)", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)
    recipe = RECIPES[args.name].to_dict()
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100)
    # Colours for a reader; for a file plain text, which rich would fill up to its width.
    show = Syntax(text.rstrip(), "yaml", background_color="default") if sys.stdout.isatty() else Text(text.rstrip())
    return Output(recipe, [show])
