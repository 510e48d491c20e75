"""Video files: frames read and written one at a time, with PyAV (extra ``video``)."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..extras import require
from .files import list_files

SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")
# FFmpeg goes by the content: of its many formats, some are lists of other files and addresses.
RESTRICTIONS = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm", "protocol_whitelist": "file"}
CODECS = ("libx264", "mpeg4")  # of written videos; the first that this build of FFmpeg has
TIME_BASE = Fraction(1, 90_000)  # of written videos, in seconds
REMEDY = "copy the file again, or convert it, e.g. with ffmpeg -i VIDEO NEW.mp4"


@dataclass(frozen=True)
class Frame:
    """A frame of a video.

    Args:
        number: Its number in the video, from 0.
        time: When it is shown, in seconds.
        image: The frame in RGB, upright.
    """

    number: int
    time: float
    image: Image.Image


def is_video(name: str | Path) -> bool:
    """Whether a file name has the suffix, in any case, of a video format that is read."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def find_videos(paths: Iterable[str | Path]) -> list[Path]:
    """The videos if these paths are of videos, and not of images: files, or directories without images, in order.

    Raises:
        ValueError: Some of the paths are of videos, and others are not.
    """
    videos: list[Path] = []
    others: list[Path] = []
    for path in (Path(os.path.expanduser(path)) for path in paths):
        if path.is_dir():
            listing = list_files(path)
            found = [] if listing.images else sorted(path / name for name in listing.others if is_video(name))
        else:
            found = [path] if is_video(path) else []
        videos += found
        others += [] if found else [path]
    if videos and others:
        raise ValueError(f"{videos[0]} is a video, and {others[0]} is not; predict videos and images in separate calls")
    return list(dict.fromkeys(videos))


# By the signs of the display matrix ((a, b), (c, d)), which takes the pixel (x, y) to (a x + c y, b x + d y).
_DISPLAYED: Mapping[tuple[int, ...], Image.Transpose] = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
}


class VideoReader:
    """The frames of a video file, decoded one at a time.

    Args:
        path: The file.
        every: Return only each n-th frame: 0, n, 2 n.

    Attributes:
        rate: Frames per second, on average.
        total: Number of returned frames as far as the file tells it; an estimate in Matroska and WebM.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It is not a video that can be read.
        ImportError: PyAV is not installed.
    """

    def __init__(self, path: Path, every: int = 1) -> None:
        self.path, self.every = path, every
        self.av = require("av", "video")
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        with self._open() as (_, stream):
            self.rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
            self.end = self._declared_end()
            frames = stream.frames or round((self.end or 0) * self.rate)
            self.total = -(-frames // every)

    @contextmanager
    def _open(self) -> Iterator[tuple[Any, Any]]:
        try:
            container = self.av.open(self.path, options=RESTRICTIONS, metadata_errors="replace")
        except (self.av.FFmpegError, OSError, ValueError) as error:
            size = self.path.stat().st_size
            raise ValueError(
                f"{self.path}: not a video that can be read ({size} bytes; {_reason(error)}); {REMEDY}"
            ) from error
        with container:
            self.container = container
            if not container.streams.video:
                raise ValueError(f"{self.path}: has no video stream, only {_streams(container)}; expected a video")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise ValueError(f"{self.path}: its video codec is not known to this version of PyAV; {REMEDY}")
            stream.thread_type = "AUTO"
            stream.codec_context.options = {"err_detect": "explode"}  # an error instead of guessed pixels
            yield container, stream

    def _declared_end(self) -> float | None:
        """When the last frame ends in seconds, as the file declares it."""
        container = self.container
        stream = container.streams.video[0]
        if stream.duration is not None:
            return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
        if match := re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", "")):
            return 3600 * int(match[1]) + 60 * int(match[2]) + float(match[3])
        if container.duration is not None and len(container.streams) == 1:
            return container.duration / self.av.time_base
        return None

    def __iter__(self) -> Iterator[Frame]:
        """Decode the frames in order.

        Raises:
            ValueError: A frame is damaged, or the file is truncated; the message has the number of the frame.
        """
        number, time, shown = 0, 0.0, 0.0
        with self._open() as (container, stream):
            frames = container.decode(stream)
            while True:
                try:
                    frame = next(frames, None)
                except (self.av.FFmpegError, OSError, ValueError) as error:
                    raise ValueError(
                        f"{self.path}: frame {number} cannot be decoded ({_reason(error)}); {REMEDY}"
                    ) from error
                if frame is None:
                    break
                if frame.is_corrupt:
                    raise ValueError(f"{self.path}: frame {number} is damaged; {REMEDY}")
                time = float(number / self.rate) if frame.time is None else frame.time
                shown = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
                if number % self.every == 0:
                    yield Frame(number, time, _as_displayed(frame))
                number += 1
            slack = max(1.5 / float(self.rate), shown) + 0.1
            fewer = not stream.frames or number < stream.frames
            if not number or (fewer and self.end is not None and time + slack < self.end):
                declared = f"{self.end:.2f} s" if self.end is not None else "more"
                raise ValueError(
                    f"{self.path}: truncated: there is no frame {number} after {time:.2f} s, although the file "
                    f"declares {declared}; {REMEDY}"
                )


class VideoWriter:
    """Writes images as the frames of an MP4 file, encoded one at a time; H.264 where FFmpeg has it.

    Images of an odd width or height get a black line, since the codecs need even ones.

    Args:
        path: The file.
        rate: Frames per second, on average.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        self.av = require("av", "video")
        self.container = self.av.open(path, "w", format="mp4")
        codec = next(name for name in CODECS if name in self.av.codecs_available)
        self.stream = self.container.add_stream(codec, rate=rate.limit_denominator(65_535))
        self.stream.pix_fmt = "yuv420p"
        self.stream.codec_context.time_base = TIME_BASE if codec == "libx264" else 1 / rate.limit_denominator(65_535)
        self.size: tuple[int, int] | None = None
        self.last = -1

    def add(self, image: Image.Image, time: float) -> None:
        """Append a frame that is shown at a time in seconds; all frames have the size of the first."""
        if self.size is None:
            self.size = image.size
            self.stream.width, self.stream.height = (side + side % 2 for side in image.size)
        elif image.size != self.size:  # of a video whose size changes
            image = image.resize(self.size)
        pixels = np.asarray(image.convert("RGB"))
        pixels = np.pad(pixels, ((0, image.height % 2), (0, image.width % 2), (0, 0)))
        frame = self.av.VideoFrame.from_ndarray(pixels, format="rgb24")
        time_base = self.stream.codec_context.time_base
        frame.pts = self.last = max(round(time / time_base), self.last + 1)
        frame.time_base = time_base
        self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        """Write what is left, and close the file."""
        if self.size is not None:
            self.container.mux(self.stream.encode())
        self.container.close()


def _as_displayed(frame: Any) -> Image.Image:
    """The image of a frame, turned and mirrored as its display matrix says, e.g. of a phone held upright."""
    image: Image.Image = frame.to_image()
    if (matrix := frame.side_data.get("DISPLAYMATRIX")) is None:
        return image
    a, b, _, c, d = np.frombuffer(bytes(matrix), dtype="<i4")[:5].tolist()
    if a == d == 0 or b == c == 0:
        operation = _DISPLAYED.get(tuple(np.sign([a, b, c, d]).tolist()))
        return image if operation is None else image.transpose(operation)
    return image.rotate(frame.rotation, expand=True)  # by another angle, in degrees counterclockwise


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _streams(container: Any) -> str:
    return ", ".join(stream.type for stream in container.streams) or "no streams"
