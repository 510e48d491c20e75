"""The command line, ``smt COMMAND ...``: one module a command.

A command's module has ``HELP``, one line; ``build_parser(words)``, since its options may depend on the words typed;
and ``run(args)``, which does the work and returns a :class:`Output`.
"""

import importlib
import json
import sys
from collections.abc import Sequence
from types import ModuleType

from rich.console import Console

from .common import EXIT_ERROR, EXIT_USAGE, Output

COMMANDS = ("train", "eval", "predict", "export", "info", "bench", "recipes", "convert")
ABOUT = """\
smt: train, evaluate and use the Scale-Aware Modulation Transformer and any model of timm.

usage: smt COMMAND [ARGUMENTS]      smt COMMAND --help tells more

{commands}

Every command takes --json: its result on standard output as JSON, and nothing else there.
Exit codes: 0 done, 1 failed (the reason is on standard error), 2 wrong usage, 130 or 143 stopped by a signal.

Try:  smt train quickstart                      digits, a few minutes on two cores, no network
      smt train finetune --data MY_IMAGES       class folders of your own, from pretrained weights
      smt predict runs/finetune PHOTO.jpg       use what was trained
"""


PLAIN_WIDTH = 1000  # columns where there is no terminal: in a file or a pipe nothing is wrapped or cut


def _module(command: str) -> ModuleType:
    return importlib.import_module(f".{command}", __name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["--version"], ["-V"]):
        from .._version import __version__

        print(f"smt-vision {__version__}")
        return 0
    if not words or words[0] in ("-h", "--help", "help"):
        print(ABOUT.format(commands="\n".join(f"  {name:<9}{_module(name).HELP}" for name in COMMANDS)), end="")
        return 0 if words else EXIT_USAGE
    command, *rest = words
    if command not in COMMANDS:
        from .common import nearest

        print(f"smt: no command {command!r}{nearest(command, COMMANDS)}; see smt --help", file=sys.stderr)
        return EXIT_USAGE
    return _run(command, rest)


def _run(command: str, words: list[str]) -> int:
    from ..engine.signals import Stopped

    module = _module(command)
    args = module.build_parser(words).parse_args(words)
    try:
        output: Output = module.run(args)
    except Stopped as stopped:
        if _rank() == 0:
            print(f"smt {command}: {stopped}", file=sys.stderr)
        return 128 + stopped.signal
    except KeyboardInterrupt:
        print(f"smt {command}: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, ImportError, ArithmeticError) as error:
        where = f" (process {_rank()})" if _rank() else ""
        print(f"smt {command}{where}: error: {error}", file=sys.stderr)
        return EXIT_ERROR
    if _rank():  # each process has the same result; the first one tells it
        return output.code
    if args.json:
        print(json.dumps(output.data, indent=1))
    else:
        console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
        for part in output.show:
            console.print(part, highlight=False)
    return output.code


def _rank() -> int:
    """This process's number among those that work on the command; 0 where there is one."""
    torch = sys.modules.get("torch")  # not imported for this: many commands do without
    if torch is None or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0
    return int(torch.distributed.get_rank())
