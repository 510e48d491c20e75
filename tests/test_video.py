"""Prediction on video files."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import smt_vision
from command import answer, refusal
from smt_vision import load
from smt_vision.data.video import VideoReader
from tiny_run import COLORS

av = pytest.importorskip("av", reason="the extra video is not installed")
FRAMES = ["red", "red", "blue", "green", "blue", "blue", "green", "red", "green", "blue"]


def write_video(path: Path, size: tuple[int, int] = (48, 36), rotation: int = 0, noise: int = 0) -> Path:
    """Ten frames, 8 per second, each of one color."""
    codec = {".webm": "libvpx", ".avi": "mpeg4"}.get(path.suffix, "libx264")
    random = np.random.default_rng(0)
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for color in FRAMES:
            pixels = np.full((size[1], size[0], 3), COLORS[color]) + random.integers(
                -noise, noise + 1, (*size[::-1], 3)
            )
            image = pixels.clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def av_images(path: Path) -> Iterator[Image.Image]:
    """The frames as they are stored."""
    with av.open(path) as container:
        yield from (frame.to_image() for frame in container.decode(video=0))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".MOV", ".mkv", ".webm"])
def test_each_frame_of_a_video(suffix: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = write_video(tmp_path / f"clip{suffix.lower()}").rename(tmp_path / f"clip{suffix}")
    out = tmp_path / "out"
    (result,) = answer(capsys, "predict", trained, video, "--out", out, "--batch_size", "4")
    assert (result["frames"], result["written"]) == (10, [str(out / "clip.jsonl"), str(out / "drawn" / "clip.mp4")])
    found = rows(out / "clip.jsonl")
    assert [row["label"] for row in found] == FRAMES
    assert [row["frame"] for row in found] == list(range(10))
    assert [row["time"] for row in found] == pytest.approx([i / 8 for i in range(10)], abs=2e-3)
    with av.open(out / "drawn" / "clip.mp4") as container:
        drawn = list(container.decode(video=0))
    assert [frame.time for frame in drawn] == pytest.approx([i / 8 for i in range(10)], abs=2e-3)
    for frame, color in zip(drawn, FRAMES, strict=True):
        assert np.abs(frame.to_ndarray(format="rgb24")[-1, -1].astype(int) - COLORS[color]).max() < 25
        assert frame.to_ndarray(format="rgb24")[:4, :4].min() > 150  # the caption


def test_every_third_frame_plays_at_the_same_speed(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "clip.mp4")
    answer(capsys, "predict", trained, tmp_path / "videos", "--out", tmp_path / "out", "--every", "3")
    found = rows(tmp_path / "out" / "clip.jsonl")
    assert [(row["frame"], row["label"]) for row in found] == [(i, FRAMES[i]) for i in (0, 3, 6, 9)]
    assert [row["time"] for row in found] == pytest.approx([0, 0.375, 0.75, 1.125])
    with av.open(tmp_path / "out" / "drawn" / "clip.mp4") as container:
        assert [frame.time for frame in container.decode(video=0)] == pytest.approx([0, 0.375, 0.75, 1.125], abs=2e-3)


def test_the_frames_of_a_telephone_are_upright(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", size=(64, 48), rotation=90)
    assert next(iter(VideoReader(video))).image.size == (48, 64)


@pytest.mark.parametrize(
    ("a", "b", "c", "d"),
    [
        (1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0), (0, 1, -1, 0),
        (0, -1, 1, 0),
    ],
)  # fmt: skip
def test_frames_are_turned_and_mirrored_as_displayed(a: int, b: int, c: int, d: int, tmp_path: Path) -> None:
    width, height = 64, 48
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:16, :24] = 255  # around the pixel (11.5, 7.5)
    path = tmp_path / "clip.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    matrix = data.index(b"tkhd") + 44
    one = 1 << 16
    values = (a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data[:matrix] + struct.pack(">9i", *values) + data[matrix + 36 :])
    (frame,) = VideoReader(path)
    found = np.asarray(frame.image.convert("L")) > 128
    # The pixel (x, y), counted from the center, is shown at (a x + c y, b x + d y).
    x, y = 11.5 - (width - 1) / 2, 7.5 - (height - 1) / 2
    shown_width, shown_height = frame.image.size
    assert (shown_width, shown_height) == ((width, height) if a else (height, width))
    expected = a * x + c * y + (shown_width - 1) / 2, b * x + d * y + (shown_height - 1) / 2
    rows, columns = found.nonzero()
    assert (columns.mean(), rows.mean()) == pytest.approx(expected, abs=0.3)
    with av.open(path) as container:
        rotation = next(container.decode(video=0)).rotation
    if a * d - b * c == 1:  # without a mirror
        assert frame.image == next(av_images(path)).rotate(rotation, expand=True)


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".mp4"])
def test_a_last_frame_that_is_shown_for_long(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"clip{suffix}"
    options = {"movflags": "frag_keyframe+empty_moov"} if suffix == ".mp4" else {}
    with av.open(path, "w", options=options) as container:
        stream = container.add_stream("libvpx" if suffix == ".webm" else "libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 48, 36, "yuv420p"
        pixels = np.zeros((36, 48, 3), dtype=np.uint8)
        packets = [p for _ in range(5) for p in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24"))]
        packets += stream.encode()
        last = max(packets, key=lambda packet: packet.pts)
        last.duration = round(3 / last.time_base)
        for packet in packets:
            container.mux(packet)
    assert len(list(VideoReader(path))) == 5


@pytest.mark.parametrize("fixture", ["detector_run", "segmenter_run"])
def test_videos_of_detectors_and_segmenters(fixture: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model = load(request.getfixturevalue(fixture))
    video = write_video(tmp_path / "clip.mp4", size=(66, 50))
    progress: list[tuple[int, int]] = []
    (tmp_path / "out" / "labels" / "clip").mkdir(parents=True)
    (tmp_path / "out" / "labels" / "clip" / "mine.txt").touch()  # stays
    lines, drawn, *maps = smt_vision.predict_video(
        model, video, tmp_path / "out", every=5, on_progress=lambda done, total: progress.append((done, total))
    )
    assert progress == [(1, 2), (2, 2)]
    images = [frame.image for frame in VideoReader(video, 5)]
    expected = [{k: v for k, v in model.to_dict(result).items() if k != "id"} for result in model(images)]
    assert [{k: v for k, v in row.items() if k not in ("frame", "time")} for row in rows(lines)] == expected
    with av.open(drawn) as container:
        assert [(frame.width, frame.height) for frame in container.decode(video=0)] == [(66, 50)] * 2
    if fixture == "detector_run":
        assert not maps
        return
    assert maps == [tmp_path / "out" / "labels" / "clip"]
    assert sorted(path.name for path in maps[0].iterdir()) == ["000000.png", "000005.png", "mine.txt"]
    for path, result in zip(sorted(maps[0].glob("*.png")), model(images), strict=True):
        assert np.array_equal(np.array(Image.open(path)), result.class_ids)
    assert not [path for path in (tmp_path / "out" / "labels").iterdir() if path.name != "clip"]


def test_damaged_videos_name_the_file_and_the_frame(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = write_video(tmp_path / "whole.mkv", noise=60).read_bytes()
    short = tmp_path / "short.mkv"
    short.write_bytes(whole[: 6 * len(whole) // 10])
    damaged = bytearray(write_video(tmp_path / "whole.mp4", noise=60).read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 2000] = np.random.default_rng(0).bytes(2000)
    (tmp_path / "damaged.mp4").write_bytes(damaged)
    (tmp_path / "text.mp4").write_bytes(b"no video")
    (tmp_path / "empty.mov").write_bytes(b"")
    Image.new("RGB", (32, 32)).save(tmp_path / "gif.mp4", "GIF")  # FFmpeg would read it, but it is no video format
    for name, expected in (
        ("short.mkv", "no frame "), ("damaged.mp4", "frame "), ("text.mp4", "not a video"), ("empty.mov", "(0 bytes"),
        ("gif.mp4", "not a video"), ("none.mp4", "no such file"),
    ):  # fmt: skip
        error = refusal(capsys, 1, "predict", trained, tmp_path / name, "--out", tmp_path / "out")
        assert f"{name}: " in error
        assert expected in error
        assert error.count("\n") == 1
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_options_of_videos_and_images(
    trained: Path, colored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = write_video(tmp_path / "clip.mp4")
    (tmp_path / "other").mkdir()
    same = write_video(tmp_path / "other" / "clip.mkv")
    assert "separate calls" in refusal(capsys, 1, "predict", trained, video, colored)
    beside = write_video(tmp_path / "clip.mkv")
    assert "same name" in refusal(capsys, 1, "predict", trained, video, beside)
    out = tmp_path / "out"
    answer(capsys, "predict", trained, video, same, "--every", "5", "--out", out)
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.jsonl")} == {"clip.jsonl", "other/clip.jsonl"}
    assert "--every" in refusal(capsys, 1, "predict", trained, colored, "--every", "2")
    assert "--every" in refusal(capsys, 1, "predict", trained, video, "--every", "0")
