"""The command ``smt`` without its start-up: the imports are done once, and each command is a fork of that process.

The documentation runs dozens of commands, and seconds of imports for each would be most of their time. A program that
:func:`write_client` writes passes its words, folder, environment, input and output on to the process that serves.

Usage: python smt_server.py SOCKET
"""

import gc
import importlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

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


def serve(address: str) -> None:
    """Import what commands need, then run each in its own process, forever."""
    for module in MODULES:
        importlib.import_module(module)
    from smt_vision.pictures import style
    from smt_vision.tasks.classification.data.sources import open_dataset

    open_dataset("auto", "val", val_fraction=0.2)  # parsed from text once
    style.STYLE["figure.constrained_layout.use"] = False  # as in conftest.py
    gc.freeze()  # a collection in a fork would copy all memory
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            request, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
            if os.fork() == 0:
                _be_the_command(connection, request, descriptors)
            for descriptor in (*descriptors, connection.detach()):
                os.close(descriptor)


def _be_the_command(connection: socket.socket, request: bytes, descriptors: list[int]) -> None:
    from smt_vision.cli import main

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
        code = main(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    connection.send(bytes([code]))
    os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
