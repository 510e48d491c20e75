"""What a task adds to an export: how its model is traced, written and compared."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from torch import nn

from ..spec import ModelSpec
from .exported import ExportedModel, Program


class ExportForm(ABC):
    """A model on its way to another runtime. The methods are called in the order in which they stand here.

    Args:
        model: The model, in evaluation mode on the CPU.
        spec: What is known of the model.
        name: Display name.
    """

    outputs: ClassVar[str]  # what is compared, for messages, e.g. "logits"
    min_agreement: ClassVar[float] = 0.0  # smallest fraction of equal results

    def __init__(self, model: nn.Module, spec: ModelSpec, name: str) -> None:
        self.model = model.eval()
        self.spec = spec
        self.name = name

    def check(self, format: str, int8: bool) -> None:  # noqa: B027  a task without restrictions has none to check
        """Raise a ValueError for a format that this task cannot be exported to."""

    @abstractmethod
    def trace(self, samples: Sequence[Path | Image.Image]) -> None:
        """Trace the model, with sample images.

        Raises:
            ValueError: The model does not fit its spec, or nothing is predicted in the images.
        """

    @property
    @abstractmethod
    def dynamic_image_size(self) -> bool:
        """Whether the program takes any height and width."""

    @abstractmethod
    def write(self, folder: Path, format: str, calibrate: Sequence[Path]) -> dict[str, str]:
        """Write the program's files; returns further versions for the manifest."""

    @abstractmethod
    def compare(self, program: Program) -> Mapping[str, Any]:
        """The program's parity with the model: ``max_difference``, ``agreement`` and ``cases``."""

    @classmethod
    def as_model(cls, program: ExportedModel, exported: ModelSpec, spec: ModelSpec, folder: Path) -> nn.Module:
        """An export in the place of the task's model.

        Args:
            program: The export.
            exported: The spec that it was exported with.
            spec: The spec that it is used with.
            folder: Its folder, for messages.

        Raises:
            ValueError: The export cannot do what the spec asks for.
        """
        return program
