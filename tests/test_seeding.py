"""Known answers of the hash that seeds are derived from: a run resumed elsewhere must sample the same numbers."""

import random

import numpy as np
import pytest
import torch

from smt_vision.data.loaders import seed_all
from smt_vision.seeding import stable_hash


@pytest.mark.parametrize(
    ("parts", "expected"),
    [((0, 1, 2), 10917752987982246961), (("step", 0, 1, 0), 1990982210437655240)],
    ids=["image", "step"],
)
def test_hash_known_answers(parts: tuple[int | str, ...], expected: int) -> None:
    assert stable_hash(*parts) == expected


def test_hash_is_a_torch_seed_and_depends_on_every_part() -> None:
    hashes = {stable_hash("step", seed, step, rank) for seed in range(5) for step in range(20) for rank in range(4)}
    assert len(hashes) == 400
    assert all(0 <= number < 2**64 for number in hashes)
    assert torch.Generator().manual_seed(max(hashes)).initial_seed() == max(hashes)


def test_seed_all_known_answers() -> None:
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        seed_all(0, 1, 2)
        drawn = random.random(), np.random.rand(), torch.rand(1, dtype=torch.float64).item()
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_state)
    assert drawn == pytest.approx((0.09073116034877415, 0.4655065089259002, 0.3573198305349575), rel=1e-12)
