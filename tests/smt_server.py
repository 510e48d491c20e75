"""The command ``smt`` without its start-up: the imports are done once, and each command is a fork of that process.

The documentation runs dozens of commands, and seconds of imports for each would be most of their time. A program that
:func:`write_client` writes passes its words, folder, environment, input and output on to the process that serves.

Programs can be run in the same way, in forks of a process that has imported PyTorch and timm only.

Usage: python smt_server.py SOCKET smt|python
"""

import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from waiting import wait_until

# What `python FILE` starts with: nothing of this package.
OF_PROGRAMS = ("torch", "torchvision", "timm")
MODULES = (
    "smt_vision.convert", "smt_vision.engine.evaluation", "smt_vision.engine.loop", "smt_vision.tasks.detection.task",
    "smt_vision.tasks.segmentation.task", "smt_vision.tasks.classification.task", "torchmetrics.classification",
    "torch.utils.tensorboard", "captum.attr", "onnxscript", "onnxruntime", "networkx",
)  # fmt: skip
CLIENT = """\
#!{python} -S
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = json.dumps([os.getcwd(), dict(os.environ), sys.argv[1:]]).encode()
    socket.send_fds(server, [request], [0, 1, 2])
    code = server.recv(1)
sys.exit(code[0] if code else 1)
"""


def write_client(path: Path, address: str) -> None:
    """Write the program that is ``smt`` where its folder is on the PATH."""
    path.write_text(CLIENT.format(python=sys.executable, address=address))
    path.chmod(0o755)


@contextmanager
def server(program: Path, kind: str, environment: Mapping[str, str]) -> Iterator[None]:
    """Serve a program, ``smt`` or ``python``, that is written to a file."""
    with tempfile.TemporaryDirectory() as short:  # a socket's name has a hundred characters
        address = f"{short}/socket"
        process = subprocess.Popen([sys.executable, __file__, address, kind], env=dict(environment))
        try:
            wait_until(lambda: Path(address).exists() or process.poll() is not None)
            assert process.poll() is None, "the server ended; its error is above"
            write_client(program, address)
            yield
        finally:
            process.terminate()
            process.wait()


def serve_commands(address: str) -> None:
    """Import what commands need, then run each in its own process, forever."""
    for module in MODULES:
        importlib.import_module(module)
    from blank_pictures import no_pictures
    from smt_vision.benchmark import memory, timing
    from smt_vision.cli import main
    from smt_vision.engine import lr_finder
    from smt_vision.tasks.classification.data.sources import open_dataset

    open_dataset("auto", "val", val_fraction=0.2)  # parsed from text once
    timing.matmul_peak = lambda *arguments: 1e9  # measured in tests/test_speed.py
    lr_finder.find_lr = functools.partial(lr_finder.find_lr, steps=20)
    memory.in_fresh_process = lambda function, *arguments: function(*arguments)  # so is memory
    with no_pictures():
        _serve(address, lambda words: main(words))


def serve_programs(address: str) -> None:
    """Run each program, a file with its arguments, in its own process, forever."""
    for module in OF_PROGRAMS:
        importlib.import_module(module)

    def run(words: list[str]) -> int:
        sys.argv = words
        sys.path[0] = str(Path(words[0]).parent)
        runpy.run_path(words[0], run_name="__main__")
        return 0

    _serve(address, run)


def _serve(address: str, run: Callable[[list[str]], int]) -> None:
    gc.freeze()  # a collection in a fork would copy all memory
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            request, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
            if os.fork() == 0:
                _be_the_process(run, connection, request, descriptors)
            for descriptor in (*descriptors, connection.detach()):
                os.close(descriptor)


def _be_the_process(
    run: Callable[[list[str]], int], connection: socket.socket, request: bytes, descriptors: list[int]
) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for standard, descriptor in enumerate(descriptors):
        os.dup2(descriptor, standard)
    folder, environment, words = json.loads(request)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["smt", *words]
    code = 1
    try:
        code = run(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    connection.send(bytes([code]))
    os._exit(code)


if __name__ == "__main__":
    (serve_commands if sys.argv[2] == "smt" else serve_programs)(sys.argv[1])
