"""The training log after kills and resumes, and the display with and without a terminal."""

import io
import json
import math
import re
import resource
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from smt_vision.engine import display as display_module
from smt_vision.engine.log import TrainingLog, read_log
from smt_vision.engine.tracker import RunTracker


def open_tracker(
    folder: Path,
    start_step: int = 0,
    display: bool = False,
    active: bool = True,
    primary_metric: str = "top1",
    best: float = -math.inf,
) -> RunTracker:
    return RunTracker(
        folder,
        loggers=("tensorboard",),
        config={},
        total_steps=40,
        total_epochs=4,
        primary_metric=primary_metric,
        label={"top1": "top-1", "mask_ap": "mask AP"}[primary_metric],
        display=display,
        start_step=start_step,
        best=best,
        active=active,
    )


def train(tracker: RunTracker, first: int, last: int) -> None:
    """Record these steps, with an evaluation every ten; a step's loss is 1 / step, top-1 is the step."""
    for step in range(first, last + 1):
        tracker.step(step, step / 10, loss=1 / step, lr=1e-3, images_per_s=500.0)
        if step % 10 == 0:
            tracker.evaluation(step, step // 10, {"top1": float(step), "loss": 2.0})


def tensorboard_steps(folder: Path, tag: str) -> list[int]:
    """The steps at which TensorBoard shows the tag."""
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [event.step for event in events.Scalars(tag)]


def test_log_and_tensorboard_hold_every_number(tmp_path):
    with open_tracker(tmp_path) as tracker:
        before = time.time()
        train(tracker, 1, 10)
        tracker.note("a class without images", name="owl", path=tmp_path)
    lines = read_log(tmp_path)
    assert [line["kind"] for line in lines] == ["train"] * 10 + ["eval", "note"]
    assert lines[3] | {"time": 0} == {
        "kind": "train", "time": 0, "step": 4, "epoch": 0.4, "loss": 0.25, "lr": 1e-3, "images_per_s": 500.0,
    }  # fmt: skip
    assert before - 1 <= lines[3]["time"] <= time.time() + 1
    assert (lines[10]["step"], lines[10]["epoch"], lines[10]["top1"]) == (10, 1, 10.0)
    assert (lines[11]["message"], lines[11]["name"], lines[11]["path"]) == (
        "a class without images", "owl", str(tmp_path),
    )  # fmt: skip
    assert tensorboard_steps(tmp_path, "train/loss") == list(range(1, 11))
    assert tensorboard_steps(tmp_path, "eval/top1") == [10]


def test_lines_are_flushed_at_once(tmp_path):
    with open_tracker(tmp_path) as tracker:
        train(tracker, 1, 3)
        assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3]


def test_incomplete_last_line_is_dropped(tmp_path):
    with open_tracker(tmp_path) as tracker:
        train(tracker, 1, 5)
    log = tmp_path / "log.jsonl"
    log.write_bytes(log.read_bytes()[:-20])  # as a kill leaves it
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3, 4]
    with open_tracker(tmp_path, start_step=4) as tracker:
        train(tracker, 5, 6)
    assert [line["step"] for line in read_log(tmp_path) if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    for text in log.read_text().splitlines():
        json.loads(text)


@pytest.mark.parametrize(
    "torn",
    [
        '{"kind": "train", "st',
        "[1, 2]",
        "7",
        "{}",
        '{"kind": "train", "step": "1"}',
        '{"kind": "eval", "step": 1, "top1": {}}',
        '{"kind": "train", "step": 1, "loss": 1' + "0" * 400 + "}",
        "[" * 100_000,
        "\0" * 512,
    ],
)
def test_unreadable_line_in_the_middle_is_left_out(tmp_path, caplog, torn):
    (tmp_path / "log.jsonl").write_text(torn + '\n{"kind": "train", "step": 1, "epoch": 0.5, "loss": 2.0}\n')
    assert [line["loss"] for line in read_log(tmp_path)] == [2.0]
    assert re.search(r"log\.jsonl.*: 1\b", caplog.text)


def test_missing_log(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"log\.jsonl.*{tmp_path.name}"):
        read_log(tmp_path)


def test_resumed_run_replaces_repeated_steps(tmp_path):
    with open_tracker(tmp_path) as tracker:
        train(tracker, 1, 23)
        tracker.note("before")
    with open_tracker(tmp_path, start_step=15) as tracker:
        tracker.step(16, 1.6, loss=7.0)
    lines = read_log(tmp_path)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 17))
    assert [line["step"] for line in lines if line["kind"] == "eval"] == [10]
    assert [line["step"] for line in lines if line["kind"] == "resume"] == [15]
    assert [line["message"] for line in lines if line["kind"] == "note"] == ["before"]
    assert lines[-1]["loss"] == 7.0
    assert tensorboard_steps(tmp_path, "train/loss") == list(range(1, 17))
    assert tensorboard_steps(tmp_path, "eval/top1") == [10]


def test_restarted_run_replaces_all_steps(tmp_path):
    for _ in range(2):  # the first run ends before its first checkpoint
        with open_tracker(tmp_path) as tracker:
            train(tracker, 1, 3)
    assert [line["step"] for line in read_log(tmp_path) if line["kind"] == "train"] == [1, 2, 3]


def test_nan_and_infinity_round_trip(tmp_path):
    with open_tracker(tmp_path) as tracker:
        tracker.step(1, 0.1, loss=math.nan, grad_norm=math.inf, low=-math.inf)
    text = (tmp_path / "log.jsonl").read_text()

    def forbid(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    line = json.loads(text, parse_constant=forbid)
    assert (line["loss"], line["grad_norm"], line["low"]) == ("nan", "inf", "-inf")
    (read,) = read_log(tmp_path)
    assert math.isnan(read["loss"])
    assert (read["grad_norm"], read["low"]) == (math.inf, -math.inf)


def test_evaluation_writes_only_numbers(tmp_path):
    with open_tracker(tmp_path) as tracker:
        tracker.evaluation(1, 1, {"top1": 50.0, "count": 3, "confusion": None, "per_class": [{}]})
    (line,) = read_log(tmp_path)
    assert set(line) == {"kind", "time", "step", "epoch", "top1", "count"}


def test_inactive_tracker_does_nothing(tmp_path, capsys):
    with open_tracker(tmp_path / "run", display=True, active=False) as tracker:
        train(tracker, 1, 10)
        tracker.progress(10, loss=1.0)
        tracker.note("unseen")
        tracker.image("curves", 10, tmp_path / "no.png")
        with tracker.evaluating(5) as on_progress:
            on_progress(5)
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_image_is_written_to_tensorboard(tmp_path):
    Image.new("L", (6, 4), 200).save(tmp_path / "gray.png")
    with open_tracker(tmp_path) as tracker:
        tracker.image("samples", 1, tmp_path / "gray.png")
    (image,) = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Images("samples")
    assert (image.width, image.height, image.step) == (6, 4, 1)


def test_plain_lines_without_a_terminal(tmp_path, capsys, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(display_module.time, "monotonic", lambda: clock[0])
    with open_tracker(tmp_path, display=True) as tracker:
        for step in range(1, 41):
            clock[0] += 2  # 80 seconds in all
            tracker.progress(step, lr=1e-3, images_per_s=640.0)
            tracker.step(step, step / 10, loss=1.0)
            with tracker.evaluating(5) as on_progress:
                on_progress(5)
            if step % 20 == 0:
                tracker.evaluation(step, step // 10, {"top1": 60.0 - step, "loss": 2.0})
        tracker.note("done [b]at last[/b]", folder="runs/x")
    out = capsys.readouterr().out
    assert not any(ord(character) < 32 for character in out.replace("\n", ""))
    lines = out.splitlines()
    progress = [line for line in lines if "step" in line]
    assert len(progress) == 3  # after 5 s, then every 30 s
    assert progress[1] == ("epoch 2/4  step 18/40  loss 1.0000  lr 1.00e-03  640 images/s  0:00:36  0:00:44 left")
    assert [line for line in lines if "top-1" in line] == [
        "epoch 2/4  train loss 1.0000  eval loss 2.0000  top-1 40.00 %*  best 40.00 %  0:00:40",
        "epoch 4/4  train loss 1.0000  eval loss 2.0000  top-1 20.00 %   best 40.00 %  0:01:20",
    ]
    assert lines[-1] == "done [b]at last[/b]  folder=runs/x"


def test_best_metric_so_far_is_shown(tmp_path, capsys):
    with open_tracker(tmp_path) as tracker:
        train(tracker, 1, 30)  # top-1 reaches 20 by step 20, 30 by step 30
    with open_tracker(tmp_path, start_step=25, display=True, best=20.0) as tracker:
        tracker.evaluation(26, 2, {"top1": 15.0})
        tracker.evaluation(27, 2, {"top1": 21.0})
    first, second = capsys.readouterr().out.splitlines()
    assert "top-1 15.00 %   best 20.00 %" in first
    assert "top-1 21.00 %*  best 21.00 %" in second


def test_primary_metric_can_be_any_metric(tmp_path, capsys):
    with open_tracker(tmp_path, primary_metric="mask_ap", display=True) as tracker:
        tracker.evaluation(10, 1, {"mask_ap": 21.5, "box_ap": 30.0, "top1": 99.0})
        tracker.evaluation(20, 2, {"mask_ap": 20.0, "box_ap": 40.0})
    with open_tracker(tmp_path, primary_metric="mask_ap", start_step=20, display=True, best=21.5) as tracker:
        tracker.evaluation(30, 3, {"mask_ap": 21.0})
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("epoch 1/4  mask AP 21.50 %*  best 21.50 %  ")
    assert second.startswith("epoch 2/4  mask AP 20.00 %   best 21.50 %  ")
    assert third.startswith("epoch 3/4  mask AP 21.00 %   best 21.50 %  ")
    assert tensorboard_steps(tmp_path, "eval/box_ap") == [10, 20]


class Terminal(io.StringIO):
    """A stream whose ``isatty()`` is true."""

    def isatty(self) -> bool:
        return True


def test_live_display_on_a_terminal(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(display_module, "LIVE_SECONDS", 0.0)
    with open_tracker(tmp_path, display=True) as tracker:
        tracker.step(20, 2.0, loss=0.5, lr=2e-3, images_per_s=640.0)
        with tracker.evaluating(300) as on_progress:
            on_progress(150)
        tracker.evaluation(20, 2, {"top1": 75.0, "loss": 0.4})
        print("printed by someone else")
    text = terminal.getvalue()
    assert "\x1b[" in text
    for expected in ("training", "20/40", "evaluating", "150/300", "loss 0.5000", "lr 2.00e-03", "640 images/s",
                     "top-1 75.00 %*", "best 75.00 %", "printed by someone else"):  # fmt: skip
        assert expected in text, expected
    assert text.endswith("\x1b[?25h")  # the cursor is back


def test_progress_reads_no_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(display_module, "FIRST_PLAIN_SECONDS", 1e9)
    with open_tracker(tmp_path, display=True) as tracker:
        for step in range(3):
            tracker.progress(step, lr=1e-3, loss=torch.zeros(2))  # reading two elements as one number would raise


def test_close_twice(tmp_path):
    tracker = open_tracker(tmp_path)
    tracker.close()
    tracker.close()
    tracker.step(1, 0.1, loss=1.0)
    assert (tmp_path / "log.jsonl").read_text() == ""


def test_lines_that_cannot_be_written_are_written_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A limit on the size of files stands in for a full disk, which may end a write in the middle of a line."""
    log = TrainingLog(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        for step in range(1, 6):
            log.write("train", step=step, epoch=1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(read_log(tmp_path)) == 1
    assert (caplog.text.count("kept in memory"), caplog.text.count("File too large")) == (1, 1)
    log.write("train", step=6, epoch=1.0)
    log.close()
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_lines_that_are_lost_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = TrainingLog(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        log.write("note", message="a")
        log.write("note", message="b")
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "its last 2 lines are lost" in caplog.text
