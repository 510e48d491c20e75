"""The quick form of ``make soak``: the corpus, some hundred fuzzed inputs, and two kills; and properties of readers."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smt_vision import checkpoints
from smt_vision.data.decode import UnreadableImage, decode
from smt_vision.data.label_maps import decode_labels
from smt_vision.deploy.exported import load_used_images
from smt_vision.engine.log import TrainingLog, read_log
from smt_vision.study.results import read_result
from soak.fuzz import Fuzzing, summary

# A fixed number of examples, the same in each run; the folder of a test is shared by its examples.
property_test = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NUMBERS = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf]) | st.integers(-(2**62), 2**62)


def test_corpus_and_fuzzed_inputs(tmp_path: Path) -> None:
    report = Fuzzing(tmp_path, workers=1).run(60, progress=False)
    assert report["corpus"] > 20
    assert not report["failures"], "\n".join([summary(report), *map(json.dumps, report["failures"])])


def test_killed_runs_end_as_the_run_left_alone(tmp_path: Path) -> None:
    from soak.kills import CASES, Killing
    from soak.kills import summary as kills_summary

    cases = {"segmentation": CASES["segmentation"]}
    report = Killing(tmp_path, seed=1, cases=cases).run(2, per_chain=(2, 2), progress=False)
    assert report["kills"] == 2
    assert not report["failures"], "\n".join([kills_summary(report), *map(json.dumps, report["failures"])])


@pytest.mark.slow
def test_fuzzer_finds_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of failure is seen, and what comes after it is still read."""
    folder = tmp_path / "soak_of_a_bad_reader"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BAD_READER)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr("soak.fuzz.TIME_LIMIT", 10.0)
    report = Fuzzing(tmp_path / "out", names=["log"], workers=1).run(20, progress=False)
    found = {(row["kind"], row["place"].partition(" in ")[0]) for row in report["failures"]}
    assert found == {
        ("exception", "KeyError"), ("message", "ValueError"), ("memory", "more than 256 MiB"), ("crash", "SIGSEGV"),
        ("hang", "more than 10 s"),
    }  # fmt: skip
    assert report["inputs"] == 20
    assert sum(report["by_target"]["log"].values()) == 20 + report["corpus"]
    saved = [tmp_path / "out" / "failures" / f"log-{row['index']}" / "log.jsonl" for row in report["failures"]]
    assert all(path.is_file() for path in saved)


# A worker imports this first; the n-th input of all its children has the n-th failure.
BAD_READER = """
import os, signal, sys, time

if "worker" in sys.orig_argv:
    import soak.fuzz

    def judged(read, path, folder, judge=soak.fuzz.judge):
        with open(__file__ + ".count", "a+") as file:
            file.write("x")
            count = file.tell()

        def bad(path):
            if count == 3:
                raise KeyError("step")
            if count == 4:
                raise ValueError("without a name")
            if count == 5:
                b"x" * (300 << 20)
            if count == 6:
                os.kill(os.getpid(), signal.SIGSEGV)
            if count == 7:
                time.sleep(600)

        return judge(bad, path, folder)

    soak.fuzz.judge = judged
"""


@property_test
@given(
    content=st.binary(max_size=200),
    prefix=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"GIF89a", b"P6 "]),
)
def test_bytes_that_are_not_an_image(content: bytes, prefix: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(prefix + content)
    for read in (lambda: decode(path, 3, name=str(path)), lambda: decode_labels(path, name=str(path))):
        try:
            read()
        except UnreadableImage as error:
            assert str(path) in str(error)  # noqa: PT017


@property_test
@given(values=PLAIN)
def test_plain_data_that_is_not_a_checkpoint(values: Any, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    for content in (
        values,
        {"format": 2, "model": values, "spec": values},
        {"format": values, "spec": {"task": values}},
    ):
        torch.save(content, path)
        try:
            checkpoint = checkpoints.load(path)
            assert isinstance(checkpoint.weights, dict)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017


@property_test
@given(values=PLAIN)
def test_plain_data_that_is_not_a_result(values: Any) -> None:
    with pytest.raises(ValueError, match=r"results\.jsonl, line 3"):
        read_result(json.dumps(values), "results.jsonl, line 3")


@property_test
@given(lines=st.lists(st.dictionaries(st.text(max_size=8), PLAIN, max_size=3), max_size=4))
def test_training_log_round_trip(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").unlink(missing_ok=True)
    log = TrainingLog(tmp_path)
    for line in lines:
        log.write("note", **{"values": line})
    log.close()
    read = read_log(tmp_path)
    assert [line["kind"] for line in read] == ["note"] * len(lines)
    assert [line["values"] for line in read] == [as_stored(line) for line in lines]


def as_stored(value: Any) -> Any:
    """JSON has no NaN and no infinities: within a value they stay text."""
    if isinstance(value, dict):
        return {name: as_stored(each) for name, each in value.items()}
    if isinstance(value, list):
        return [as_stored(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@property_test
@given(values=st.dictionaries(st.sampled_from("abc"), NUMBERS))
def test_numbers_of_a_training_log_round_trip(values: dict[str, float], tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").unlink(missing_ok=True)
    log = TrainingLog(tmp_path)
    log.write("train", step=1, epoch=1, **values)
    log.close()
    (line,) = read_log(tmp_path)
    assert {name: repr(line[name]) for name in values} == {name: repr(value) for name, value in values.items()}


@property_test
@given(names=st.lists(st.text(max_size=8), max_size=3), shape=st.lists(st.integers(0, 3), max_size=3))
def test_tensors_that_are_not_fingerprints(names: list[str], shape: list[int], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "images.safetensors"
    save_file({name: torch.zeros(shape) for name in [*names, "train"]}, path)
    with pytest.raises(ValueError, match=r"images\.safetensors"):
        load_used_images(tmp_path)
