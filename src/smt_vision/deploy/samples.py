"""Sample images for parity checks and calibration, and the names that an export may have of what it came from."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from ..checkpoints import BEST, LAST
from ..data.decode import decode, decode_for_resize
from ..data.files import relative_names
from ..recipe import Input

T = TypeVar("T")


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` items at equal distances, so that a list sorted by class gives some of each class."""
    n = min(count, len(items))
    return [items[i * len(items) // n] for i in range(n)]


def image_to_tensor(image: Path | Image.Image, input: Input, transform: Callable[[Any], Tensor]) -> Tensor:
    """Decode and preprocess an image to a float32 tensor ``(channels, H, W)``.

    The channels of an image in memory are repeated where the model has more.

    Raises:
        UnreadableImage: The image cannot be read; the message contains its name.
    """
    if input.has_bands and isinstance(image, Image.Image):
        rgb = pil_to_tensor(image.convert("RGB")).float() / 255
        return transform(rgb.repeat(-(-input.channels // 3), 1, 1)[: input.channels])
    return transform(decode_for_resize(image, input, name=str(image)))


def sample_photo_crops() -> list[Image.Image]:
    """Eight crops of matplotlib's sample photograph, used when no images are given.

    Raises:
        FileNotFoundError: This installation of matplotlib has no sample data.
    """
    import matplotlib  # imported late: slow, and prediction loads this module

    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    if not path.is_file():
        raise FileNotFoundError(f"{path}, matplotlib's sample photograph, does not exist; pass images (--images)")
    photograph = decode(path, 3, name=str(path))
    width, height = photograph.size
    side = width // 2
    corners = [((width - side) * i // 3, (height - side) * j) for j in range(2) for i in range(4)]
    return [photograph.crop((x, y, x + side, y + side)) for x, y in corners]


def sample_names(images: Sequence[Path | Image.Image]) -> list[str]:
    """Paths of images relative to their common folder, since the export may be passed on; or what the crops are."""
    names = relative_names([image for image in images if isinstance(image, Path)])
    return names or [f"{len(images)} crops of matplotlib's grace_hopper.jpg"]


def source_name(model: str) -> str:
    """The name of a model: of a run or file, without the folders above; a timm model name as it is."""
    path = Path(model).expanduser()
    if not path.exists():
        return model
    path = path.resolve()
    return path.parent.name if path.name in (BEST, LAST) else path.name
