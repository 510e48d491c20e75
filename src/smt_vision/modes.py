"""Training and evaluation mode of networks."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """A context in which a network is in evaluation mode; then each of its modules has the mode that it had.

    ``network.train(training)`` would set frozen modules, e.g. BatchNorm with fixed statistics, to training mode too.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
