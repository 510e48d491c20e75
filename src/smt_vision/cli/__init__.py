"""The command line, ``smt COMMAND ...``: one module per command.

A command's module has ``HELP``, one line; ``build_parser(arguments)``, since the options may depend on the arguments;
and ``run(args)``, which executes the command and returns an :class:`Output`.
"""

import importlib
import io
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import ModuleType

from .._interrupt import end_on_interrupt, raise_on_interrupt
from ..text import printable
from .common import EXIT_ERROR, EXIT_USAGE, Output, finite, nearest
from .console import PlainConsole

COMMANDS = (
    "inspect",
    "train",
    "eval",
    "calibrate",
    "predict",
    "embed",
    "export",
    "info",
    "bench",
    "study",
    "analyze",
    "recipes",
    "convert",
)
ABOUT = """\
smt: train, evaluate and use the Scale-Aware Modulation Transformer and any timm model.

usage: smt COMMAND [ARGUMENTS]      smt COMMAND --help shows the arguments

{commands}

Every command takes --json: standard output is then the result as JSON, and nothing else.
Exit codes: 0 success, 1 error (described on standard error), 2 invalid usage, 75 nothing happened for too
long or another process is gone (try again), 128 + signal number if stopped by a signal, e.g. 130 (Ctrl-C).

Examples:
  smt train quickstart                     train on handwritten digits: a few minutes on two cores, no network
  smt train finetune --data MY_IMAGES      fine-tune pretrained weights on class folders
  smt predict runs/finetune PHOTO.jpg      predict with the trained model
"""
PLAIN_WIDTH = 1000  # columns of output to a file or pipe, so that nothing is wrapped or truncated


def _module(command: str) -> ModuleType:
    return importlib.import_module(f".{command}", __name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        with suppress(OSError):  # a stream that cannot be flushed now
            sys.stdout.reconfigure(errors="backslashreplace")  # its encoding may lack characters of a name
    if arguments[:1] in (["--version"], ["-V"]):
        from .._version import __version__

        print(f"smt-vision {__version__}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(ABOUT.format(commands="\n".join(f"  {name:<11}{_module(name).HELP}" for name in COMMANDS)), end="")
        return 0 if arguments else EXIT_USAGE
    command, *arguments = arguments
    if command not in COMMANDS:
        print(f"smt: unknown command {command!r}{nearest(command, COMMANDS)} (smt --help lists them)", file=sys.stderr)
        return EXIT_USAGE
    raise_on_interrupt()
    try:
        return _run(command, arguments)
    finally:
        end_on_interrupt()


def _run(command: str, arguments: list[str]) -> int:
    from ..signals import Stopped

    try:
        module = _module(command)
        parser = module.build_parser(arguments)
        args = parser.parse_args(arguments)
        parser.check(args)
        output: Output = module.run(args)
    except Stopped as stopped:
        if _rank() == 0:
            with suppress(OSError):  # a terminal that was closed
                print(f"smt {command}: {printable(stopped)}", file=sys.stderr)
        return 0 if _is_child_of_fabric() else 128 + stopped.signal
    except KeyboardInterrupt:
        print(f"smt {command}: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, ImportError, ArithmeticError) as error:
        rank = f" (rank {_rank()})" if _rank() else ""
        # Pretrained weights that cannot be had have another remedy here; their class is not imported for this.
        message = error.for_command(command) if hasattr(error, "for_command") else error
        # The package's own errors, which are these, have one line.
        shown = printable(message, multiline=not isinstance(error, ValueError | OSError))
        print(f"smt {command}{rank}: error: {shown}", file=sys.stderr)
        return os.EX_TEMPFAIL if isinstance(error, TimeoutError) or _is_of_connection(error) else EXIT_ERROR
    if _rank():  # every process has the same result; only the first prints it
        return output.code
    try:
        if args.json:
            print(json.dumps(finite(output.data), indent=1, allow_nan=False))
        else:
            console = PlainConsole(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
            for part in output.show:
                console.print(part)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"smt {command}: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would report it once more at its end
        if isinstance(error, BrokenPipeError):  # `| head`: what was read was enough
            return 128 + signal.SIGPIPE
        print(f"smt {command}: error: the output cannot be written: {error}", file=sys.stderr)
        return EXIT_ERROR
    return output.code


def _is_child_of_fabric() -> bool:
    """Whether Fabric in the first process started this one: it kills the first one if another ends with a code."""
    started = int(os.environ.get("LOCAL_RANK", "0")) > 0
    return started and "TORCHELASTIC_RUN_ID" not in os.environ and "SLURM_NTASKS" not in os.environ


def _is_of_connection(error: Exception) -> bool:
    """Whether an error is one of the connection to another process of the run, e.g. on a machine that has failed."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_available() and isinstance(error, torch.distributed.DistError)


def _rank() -> int:
    """Rank of this process; 0 if there is only one process."""
    torch = sys.modules.get("torch")  # not imported here: several commands do not need it, and it is slow to import
    if torch is None or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0
    return int(torch.distributed.get_rank())
