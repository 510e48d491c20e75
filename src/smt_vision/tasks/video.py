"""Prediction on video files: one line of JSON per frame, and a video with the results drawn."""

import json
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from ..bounds import Count, checked
from ..data.video import Frame, VideoReader, VideoWriter
from ..files import write_atomic
from .predictor import Predictor
from .results import DRAWN


@checked
def predict_video(
    model: Predictor[Any],
    path: str | Path,
    folder: str | Path,
    *,
    every: Count = 1,
    batch_size: Count | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    **options: Any,
) -> list[Path]:
    """Predict the frames of a video in order; a batch of frames is in memory at a time.

    Args:
        model: Predictor of any task.
        path: The video.
        folder: Output folder. ``NAME.jsonl`` has per frame its number, its time in seconds, and the result as plain
            data; ``drawn/NAME.mp4`` is the video with the results drawn, at the original speed, without sound. A
            segmenter writes the map of each frame, too, ``labels/NAME/000000.png`` and so on (binary: ``maps/``).
        every: Predict only every n-th frame.
        batch_size: Frames per forward pass.
        on_progress: Called with the number of predicted frames, and the total if the file states it.
        options: Options of the task's predictor.

    Returns:
        The two files, and for a segmenter the folder of the maps. They are written only if all frames can be read.

    Raises:
        FileNotFoundError: The video does not exist.
        ValueError: The video cannot be read; the message names the file and the frame.
        ImportError: PyAV is not installed.
    """
    path, folder = Path(path), Path(folder)
    model.check_options(**options)
    reader = VideoReader(path, every)
    lines, drawn = folder / f"{path.stem}.jsonl", folder / DRAWN / f"{path.stem}.mp4"

    maps = folder / model.frame_maps / path.stem if model.frame_maps else None
    new_maps = None if maps is None else maps.with_name(f".{maps.name}.new")

    def write(lines: Path, drawn: Path) -> None:
        writer = VideoWriter(drawn, reader.rate / every)
        try:
            with lines.open("w", encoding="utf-8") as file:
                for done, (frame, result) in enumerate(_results(model, reader, batch_size, options), 1):
                    values = {"frame": frame.number, "time": round(frame.time, 6), **model.to_dict(result, **options)}
                    del values["id"]  # the number of a frame among those that are predicted
                    file.write(json.dumps(values) + "\n")
                    if new_maps is not None and not result.error:
                        model.save_frame(result, new_maps / f"{frame.number:06d}.png")
                    writer.add(frame.image if result.error else model.draw(result, **options), frame.time)
                    on_progress(done, max(done, reader.total))
        finally:
            writer.close()

    try:
        write_atomic(lines, lambda new_lines: write_atomic(drawn, lambda new_drawn: write(new_lines, new_drawn)))
        if maps is None or new_maps is None or not new_maps.exists():
            return [lines, drawn]
        maps.mkdir(exist_ok=True)  # what else is there stays
        for file in new_maps.iterdir():
            file.replace(maps / file.name)
        return [lines, drawn, maps]
    finally:
        if new_maps is not None:
            shutil.rmtree(new_maps, ignore_errors=True)


def _results(
    model: Predictor[Any], frames: Iterable[Frame], batch_size: int | None, options: dict[str, Any]
) -> Iterator[tuple[Frame, Any]]:
    pending: deque[Frame] = deque()

    def images() -> Iterator[Image.Image]:
        for frame in frames:
            pending.append(frame)
            yield frame.image

    for result in model.stream(images(), batch_size, **options):
        yield pending.popleft(), result
