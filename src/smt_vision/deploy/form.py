"""The export form: how the model of a task is traced, written and compared."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from torch import nn

from ..spec import ModelSpec
from .exported import ExportedModel, Program
from .quantize import AccuracyControl


class ExportForm(ABC):
    """A model in the form in which it is exported. The methods are called in the order of their definition.

    Args:
        model: Model on the CPU; it is put into evaluation mode.
        spec: Spec of the model.
        name: Display name.
        batch_size: Number of images that the program takes; ``None`` for any number, or the default.

    Raises:
        ValueError: The programs of this task take no fixed number of images.
    """

    outputs: ClassVar[str]  # what is compared, for messages, e.g. "logits"
    # Largest difference allowed: of a logit as a fraction of max(largest logit, 1), of a detection as in parity.py.
    tolerance: float = 1e-4
    has_fixed_batch: ClassVar[bool] = False  # whether a program takes a fixed number of images
    min_agreement: ClassVar[float] = 0.0  # smallest fraction of equal results
    min_case_agreement: ClassVar[float] = 0.0  # the same, of each case by itself
    can_control_accuracy: ClassVar[bool] = True  # whether quantization can be told how much accuracy it may cost

    def __init__(self, model: nn.Module, spec: ModelSpec, name: str, batch_size: int | None = None) -> None:
        self.model = model.eval()
        self.spec = spec
        self.name = name
        self.batch_size = batch_size
        if batch_size is not None and not self.has_fixed_batch:
            raise ValueError(
                f"batch_size={batch_size} is for detectors: programs of {name} take any number of images, or, in the "
                "formats executorch and coreml, one; omit it"
            )

    def check(self, format: str, int8: bool) -> None:  # noqa: B027  optional: not every task has restrictions
        """Raise a ValueError if this model cannot be exported to a format."""

    @abstractmethod
    def trace(self, samples: Sequence[Path | Image.Image], format: str) -> None:
        """Trace the model with sample images, for a format.

        Raises:
            ValueError: The model does not match its spec, or detects nothing in the images.
        """

    @property
    @abstractmethod
    def dynamic_image_size(self) -> bool:
        """Whether the program takes images of any height and width."""

    @abstractmethod
    def write(
        self, folder: Path, format: str, calibrate: Sequence[Path], control: AccuracyControl | None = None
    ) -> dict[str, str]:
        """Write the program's files; returns additional entries for the manifest's versions."""

    @abstractmethod
    def compare(self, program: Program, exact: bool = True) -> Mapping[str, Any]:
        """Parity of the program with the model: ``max_difference``, ``agreement`` and ``cases``.

        ``exact`` is false for programs in bfloat16 or 8 bits.
        """

    @classmethod
    def as_model(cls, program: ExportedModel, exported: ModelSpec, spec: ModelSpec, folder: Path) -> nn.Module:
        """Wrap an export so that it can replace the model of its task.

        Args:
            program: The export.
            exported: Spec that it was exported with.
            spec: Spec that it is used with.
            folder: Folder of the export, for messages.

        Raises:
            ValueError: The export does not support the spec that it is used with.
        """
        return program
