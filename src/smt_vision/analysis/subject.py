"""What is analyzed: a model with its preprocessing, and images as it sees them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.dataset import Raw
from ..data.decode import decode_for_resize
from ..data.padding import pad_together
from ..data.transforms import channel_statistics
from ..deploy.exported import ExportedModel
from ..tasks import get_task
from ..tasks.backbone import find_backbone
from ..tasks.load import Overrides, create_published, load
from ..tasks.predictor import Predictor

MAX_PIXELS = 1_200_000  # of an image of a detector or segmenter; 800 x 1333, as usual in detection, fits
SEED = 0  # of random weights


@dataclass(frozen=True)
class Sample:
    """An image as the network sees it.

    Attributes:
        name: Name for files and titles.
        path: The image file.
        pixels: Network input ``(1, C, H, W)``, on the model's device.
        picture: The same before normalization, ``(H, W, 3)``.
        reduced: How it was reduced to bound memory; empty if it was not.
    """

    name: str
    path: Path
    pixels: Tensor
    picture: npt.NDArray[np.uint8]
    reduced: str = ""


class Subject:
    """A model to analyze.

    Args:
        predictor: The model with its preprocessing.
        name: Name for files and titles.

    Attributes:
        network: The timm model of a classifier, or the one inside the backbone of a detector or segmenter.
        is_classifier: Whether the network has the classifier.

    Raises:
        ValueError: The model is an export, which has no layers.
    """

    def __init__(self, predictor: Predictor[Any], name: str) -> None:
        self.predictor = predictor
        self.name = name
        for module in predictor.model.modules():
            if isinstance(module, ExportedModel):
                source = module.manifest.name
                raise ValueError(f"{name} is an export, a program without layers; use its source model, {source}")
        self.is_classifier = predictor.spec.task == "classify"
        backbone = find_backbone(predictor.model)
        self.network: nn.Module = predictor.model if backbone is None else backbone.network

    def sample(self, path: Path, name: str) -> Sample:
        """Decode and preprocess an image, see :meth:`pixels`.

        Raises:
            UnreadableImage: The file cannot be decoded.
        """
        pixels, reduced = self.pixels(path, str(path))
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in channel_statistics(self.predictor.spec.input))
        shown = (pixels * std + mean).clamp(0, 1)[: 3 if len(pixels) >= 3 else 1]
        picture = (shown * 255).round().byte().expand(3, -1, -1).permute(1, 2, 0)
        return Sample(name, path, pixels[None].to(self.predictor.device), picture.numpy(), reduced)

    def pixels(self, data: Raw, name: str) -> tuple[Tensor, str]:
        """Decode and preprocess an image.

        That of a classifier is resized and cropped as in prediction. That of a detector or segmenter is resized as in
        prediction, reduced to about 1.2 million pixels if it has more, and zero-padded to multiples of 32; windows,
        scales and flips of a segmenter's prediction are not applied.

        Args:
            data: Content of an image file, its path, or an image in memory.
            name: Name of the image in error messages.

        Returns:
            The network's input ``(C, H, W)`` on the CPU, and how it was reduced to bound memory, as in :class:`Sample`.

        Raises:
            UnreadableImage: The image cannot be decoded.
        """
        pixels = self.predictor.transform(decode_for_resize(data, self.predictor.spec.input, name=name))
        reduced = ""
        if not self.is_classifier:
            height, width = pixels.shape[-2:]
            if height * width > MAX_PIXELS:
                scale = (MAX_PIXELS / (height * width)) ** 0.5
                size = max(1, int(height * scale)), max(1, int(width * scale))
                pixels = F.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]
                reduced = f"reduced from {height} x {width} to {size[0]} x {size[1]} pixels to bound memory"
            pixels = pad_together([pixels])[0][0]
        return pixels, reduced

    @torch.no_grad()
    def check(self, sample: Sample) -> None:
        """Run the network once.

        Raises:
            ValueError: It cannot process an image of this size.
        """
        try:
            self.network(sample.pixels)
        except (AssertionError, RuntimeError) as error:
            height, width = sample.pixels.shape[-2:]
            raise ValueError(f"{self.name} cannot process an image of {height} x {width} pixels: {error}") from error


def load_subject(
    source: str, name: str, device: str = "cpu", overrides: Overrides | None = None, untrained: bool = False
) -> Subject:
    """Load a model to analyze.

    Args:
        source: Run folder, checkpoint or timm model name, as :func:`smt_vision.load` takes it.
        name: Name for files and titles.
        device: Device to run on.
        overrides: Values that differ from training, by recipe group.
        untrained: Give a timm model random weights, of seed 0, instead of its pretrained ones.

    Raises:
        ValueError: The source is not a model, is an export, or is a file or folder although ``untrained`` is set.
        PretrainedWeightsError: The model has no pretrained weights, or they could not be downloaded.
    """
    if not untrained:
        return Subject(load(source, device, overrides, require_classes=False), name)
    if Path(source).expanduser().exists():
        raise ValueError(f"{source} is a file or folder, whose weights are trained; expected a timm model name")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model, spec = create_published(source, overrides or {}, pretrained=False)
    predictor: Any = get_task("classify").predictor
    return Subject(predictor(model, spec, source, device), f"{name} (random weights)")


def model_names(sources: Iterable[str]) -> list[str]:
    """A name for each model that is a valid file name: its own, or that of the run's folder, and of the checkpoint.

    Raises:
        ValueError: Two models have the same name.
    """
    names: dict[str, str] = {}
    for source in sources:
        path = Path(source).expanduser()
        text = f"{path.resolve().parent.name}-{path.stem}" if path.is_file() else source
        text = path.resolve().name if path.is_dir() else text
        name = re.sub(r"[^\w.\-]+", "_", text)
        if name in names:
            raise ValueError(f"{names[name]} and {source} have the same name, {name}; rename one of them")
        names[name] = source
    return list(names)


def image_names(paths: Iterable[Path]) -> list[str]:
    """A name for each image: its file name without suffix, numbered if another has it, in whichever case.

    ``distance`` counts as taken: attention-distance is the file of the mean over all images.
    """
    taken, next_number, names = {"distance"}, dict[str, int](), []
    for path in paths:
        name, key = path.stem, path.stem.casefold()
        while name.casefold() in taken:
            number = next_number.get(key, 2)
            name, next_number[key] = f"{path.stem}-{number}", number + 1
        taken.add(name.casefold())
        names.append(name)
    return names
