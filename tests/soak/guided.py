"""Coverage-guided fuzzing with Atheris: the fuzzer's bytes are the random numbers that the mutations are made with.

``python -m soak guided TARGET`` in an environment with Atheris (Linux: ``pip install atheris``). The first failure
ends it.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import atheris

with atheris.instrument_imports(include=["smt_vision"]):
    from .fuzz import Inputs, judge
    from .targets import TARGETS


class _Bytes(Random):
    """Random numbers that are read from bytes, and are 0 after their end."""

    def __init__(self, content: bytes) -> None:
        self._provider = atheris.FuzzedDataProvider(content)
        super().__init__(0)

    def getrandbits(self, k: int) -> int:
        return int.from_bytes(self._provider.ConsumeBytes((k + 7) // 8), "little") % (1 << k)

    def random(self) -> float:
        return self.getrandbits(53) / (1 << 53)

    def seed(self, *_: Any) -> None:
        """Nothing: the bytes are the numbers."""


def run(name: str, runs: int, out: Path) -> None:
    """Fuzz a target this number of times; does not return."""
    inputs = Inputs(0, Path(tempfile.mkdtemp(prefix="soak-")), [name])

    def test_one_input(content: bytes) -> None:
        rng = _Bytes(content)
        target = TARGETS[name]
        example = rng.choice(inputs.examples[name])
        data = example.files[example.foreign]
        try:
            data = rng.choice(target.mutators)(data, rng)
        except Exception:
            return
        path = inputs.write_example(replace(example, files={**example.files, example.foreign: data}))
        kind, place, message = judge(target.read, path, inputs.case)
        if kind not in ("accepted", "refused"):
            (out / path.name).parent.mkdir(parents=True, exist_ok=True)
            (out / path.name).write_bytes(data)
            raise AssertionError(f"{kind}: {place}: {message}; saved as {out / path.name}")

    atheris.Setup(
        ["soak", f"-runs={runs}", "-rss_limit_mb=8192", "-timeout=20", "-max_len=256", "-len_control=0"], test_one_input
    )
    atheris.Fuzz()
