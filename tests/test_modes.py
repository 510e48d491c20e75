import pytest
from torch import nn

from smt_vision.modes import evaluation_mode


def _network() -> nn.Module:
    """A network in training mode, of which one layer is frozen in evaluation mode."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4), nn.Dropout())
    ).train()
    network[1].eval()
    return network


def test_each_module_has_its_own_mode_again() -> None:
    network = _network()
    modes = [module.training for module in network.modules()]
    assert modes == [True, True, False, True, True, True]
    with evaluation_mode(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == modes


def test_modes_are_restored_after_an_error() -> None:
    network = _network()
    modes = [module.training for module in network.modules()]
    with pytest.raises(RuntimeError, match="channels"), evaluation_mode(network):
        raise RuntimeError("channels")
    assert [module.training for module in network.modules()] == modes
