"""Made-up results of studies."""

from smt_vision.study.results import CellResult
from smt_vision.study.study import Cell


def made_up_result(cell: Cell, value: float) -> CellResult:
    """The result of a cell with this primary metric."""
    return CellResult(
        key=cell.key, cell=cell.label, seed=cell.recipe.seed, metric="top1", by_epoch=(value,), epochs=(1,),
        value=value, steps=10, seconds=60.0, parameters=1_000_000, gmac=0.1, version="0", torch="0",
        hardware="a computer", date="2026-11-26",
    )  # fmt: skip
