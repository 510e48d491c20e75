"""Archives: all formats are read alike; damage is refused with its position, or used as far as it goes on request."""

import bz2
import gzip
import io
import lzma
import os
import random
import resource
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from command import run
from smt_vision.data import archive
from smt_vision.data.archive import TarIndex, open_tar
from smt_vision.tasks.classification.data.dataset import ImageDataset
from smt_vision.tasks.classification.data.sources import open_dataset

LONG = "a folder with a long name " * 5


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SMT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tars"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Two classes of four images of different lengths, and files of 0 and 512 bytes."""
    root = tmp_path / "set"
    for k, name in enumerate(("cat", "dög")):
        (root / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8 + 20 * i, 8), (20 * i, 20 * k, 0)).save(root / name / f"{i}.png")
    (root / "empty.txt").touch()
    (root / "block.txt").write_bytes(b"x" * 512)
    return root


def pack(files: Path, out: Path, mode: str = "w", **options: Any) -> Path:
    with tarfile.open(out, mode, **options) as tar:
        tar.add(files, arcname="set")
    return out


def contents(path: Path, **options: bool) -> dict[str, bytes]:
    index = open_tar(path, **options)
    return {name: index.read(row) for row, name in enumerate(index.names)}


def on_disk(files: Path, top: str = "set/") -> dict[str, bytes]:
    return {f"{top}{p.relative_to(files).as_posix()}": p.read_bytes() for p in files.rglob("*") if p.is_file()}


def images(dataset: ImageDataset) -> list[tuple[str, str]]:
    return [(dataset.id(i), dataset.classes[dataset.targets[i]]) for i in range(len(dataset))]


# --- intact archives ---


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_formats_of_tarfile(files: Path, tmp_path: Path, format: int) -> None:
    (files / LONG.strip()).mkdir()
    (files / LONG.strip() / f"{'n' * 90}.png").write_bytes(b"1")
    assert contents(pack(files, tmp_path / "x.tar", format=format)) == on_disk(files)


@pytest.mark.parametrize("format", ["v7", "oldgnu", "gnu", "ustar", "pax"])
@pytest.mark.parametrize("blocking", [1, 20, 2048])
def test_formats_and_blockings_of_the_tar_command(files: Path, tmp_path: Path, format: str, blocking: int) -> None:
    if "GNU tar" not in subprocess.run(["tar", "--version"], capture_output=True, text=True, check=False).stdout:
        pytest.skip("requires GNU tar")
    if format in ("oldgnu", "gnu", "pax"):
        (files / LONG.strip() / LONG.strip()).mkdir(parents=True)
        (files / LONG.strip() / LONG.strip() / f"{'n' * 90}.png").write_bytes(b"1")
    tar = tmp_path / "x.tar"
    command = ["tar", f"--format={format}", "-b", str(blocking), "-cf", tar, "-C", files, "."]
    subprocess.run(command, check=True, env=os.environ | {"LC_ALL": "C.UTF-8"})
    assert contents(tar) == on_disk(files, top="")


def test_one_zero_block_ends_an_archive(files: Path, tmp_path: Path) -> None:
    tar = pack(files, tmp_path / "x.tar")
    tar.write_bytes(tar.read_bytes()[: end_of(tar) + 512])
    assert contents(tar) == on_disk(files)


@pytest.mark.parametrize("name", ["x.tar", "x.TAR", "x.tar.gz", "x.tgz", "x.tar.bz2", "x.tar.xz", "x.Tar.XZ"])
@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
def test_the_content_decides_on_the_compression(files: Path, tmp_path: Path, name: str, compression: str) -> None:
    tar = pack(files, tmp_path / name, mode=f"w:{compression}")
    assert len(open_dataset(str(tar), "val", val_fraction=1.0)) == 8


@pytest.mark.parametrize("name", ["x.zip", "x.tar.zst", "x.7z"])
def test_other_archives_are_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    for path in (tmp_path / name, tmp_path / "x.tar"):
        path.write_bytes(b"PK\3\4" + bytes(600))
        with pytest.raises(ValueError, match=rf"{path.name}.*\bunpack\b"):
            open_dataset(str(path), "val")


def test_names_are_relative_to_the_top(tmp_path: Path) -> None:
    names = [
        "/abs/1.png",
        "./a/2.png",
        "././a/3.png",
        "../up/4.png",
        "a//b/../5.png",
        b"a/\xff\xfe.png".decode(errors="surrogateescape"),
    ]
    tar = write(tmp_path / "x.tar", names)
    assert open_tar(tar).names == ["abs/1.png", "a/2.png", "a/3.png", "up/4.png", "a/5.png", "a/\udcff\udcfe.png"]


def test_names_with_backslashes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"backslashes.*cat\\1\.png"):
        open_dataset(str(write(tmp_path / "x.tar", ["cat\\1.png", "dog\\1.png"])), "val")


def test_links_to_files_in_the_archive_are_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "set/cat/1.png", b"one")
        for kind, name, target in (
            (tarfile.LNKTYPE, "set/cat/hard.png", "set/cat/1.png"),
            (tarfile.SYMTYPE, "set/dog/soft.png", "../cat/1.png"),
            (tarfile.SYMTYPE, "set/dog/chain.png", "soft.png"),
            (tarfile.SYMTYPE, "set/dog/outside.png", "/data/1.png"),
            (tarfile.SYMTYPE, "set/dog/above.png", "../../../set/cat/1.png"),
            (tarfile.SYMTYPE, "set/dog/loop.png", "loop.png"),
            (tarfile.LNKTYPE, "set/dog/missing.png", "set/none.png"),
            (tarfile.FIFOTYPE, "set/dog/pipe.png", ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
    found = contents(tmp_path / "x.tar")
    assert found == dict.fromkeys(
        ["set/cat/1.png", "set/cat/hard.png", "set/dog/soft.png", "set/dog/chain.png"], b"one"
    )
    assert "ignored 5 members" in caplog.text


def test_hard_links_of_the_tar_command(files: Path, tmp_path: Path) -> None:
    os.link(files / "cat" / "1.png", files / "dög" / "copy.png")
    assert contents(pack(files, tmp_path / "x.tar")) == on_disk(files)


def test_the_last_of_several_members_with_one_name_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, data in (("a/1.png", b"old"), ("a/2.png", b"2"), ("./a/1.png", b"new")):
            add(tar, name, data)
    assert contents(tmp_path / "x.tar") == {"a/1.png": b"new", "a/2.png": b"2"}
    assert "1 files are replaced" in caplog.text


def test_sparse_files_are_refused(tmp_path: Path) -> None:
    with open(tmp_path / "holes.bmp", "wb") as file:
        file.seek(1 << 20)
        file.write(b"x")
    for format in ("gnu", "pax"):
        command = [
            "tar",
            f"--format={format}",
            "--sparse",
            "-cf",
            tmp_path / f"{format}.tar",
            "-C",
            tmp_path,
            "holes.bmp",
        ]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("requires GNU tar")
        with pytest.raises(ValueError, match=r"holes\.bmp.*--sparse"):
            open_tar(tmp_path / f"{format}.tar", allow_damaged=True)


def test_a_later_volume_is_refused(tmp_path: Path) -> None:
    tar = write(tmp_path / "x.tar", ["a/1.png", "a/2.png"])
    tar.write_bytes(set_field(tar.read_bytes(), 0, 156, b"M"))
    with pytest.raises(ValueError, match=r"x\.tar: .*a/1\.png from another volume"):
        open_tar(tar, allow_damaged=True)


def test_one_image_per_sample_of_a_shard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for key in ("1", "2"):
            for ending, data in (("mask.png", b"mask"), ("cls", key.encode()), ("jpg", f"image {key}".encode())):
                add(tar, f"{key}.{ending}", data)
    (tmp_path / "._x.tar").write_bytes(b"left by a file manager")
    dataset = open_dataset(str(tmp_path), "val", val_fraction=1.0)
    assert [dataset.read(i)[0] for i in range(len(dataset))] == [b"image 1", b"image 2"]
    assert "ignored 2 others, e.g. 1.mask.png" in caplog.text


# --- damaged archives ---


def add(tar: tarfile.TarFile, name: str, data: bytes = b"") -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name in names:
            add(tar, name, b"content")
    return path


def headers(path: Path) -> list[int]:
    """Positions of all header blocks, those of extended headers included."""
    with tarfile.open(path) as tar:
        return sorted({offset for member in tar for offset in (member.offset, member.offset_data - 512)})


def end_of(path: Path) -> int:
    """Position of the end-of-archive marker."""
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
        return last.offset_data + -(-last.size // 512) * 512


def set_field(data: bytes, header: int, start: int, value: bytes) -> bytes:
    """The tar with a header field replaced and its checksum computed again."""
    block = bytearray(data[header : header + 512])
    block[start : start + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return data[:header] + bytes(block) + data[header + 512 :]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_that_is_cut_anywhere_is_refused(files: Path, tmp_path: Path, format: int) -> None:
    (files / "cat" / f"{'n' * 120}.png").write_bytes(b"1")
    tar = pack(files, tmp_path / "x.tar", format=format)
    data, end, whole = tar.read_bytes(), end_of(tar), on_disk(files)
    cut = tmp_path / "cut.tar"
    rng = random.Random(0)
    for length in [*range(0, end + 1, 512), *(rng.randrange(end + 512) for _ in range(100))]:
        cut.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"cut\.tar: (damaged archive: .*; read \d+ members|not a tar)"):
            TarIndex(cut)
    for length in (end + 512, end + 1024, len(data)):
        cut.write_bytes(data[:length])
        assert contents(cut) == whole


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_flipped_bit_in_a_header_loses_nothing_silently(files: Path, tmp_path: Path, format: int) -> None:
    (files / "cat" / f"{'n' * 120}.png").write_bytes(b"1")
    tar = pack(files, tmp_path / "x.tar", format=format)
    data, whole = tar.read_bytes(), on_disk(files)
    flipped = tmp_path / "flipped.tar"
    rng = random.Random(1)
    refused = 0
    for header in headers(tar):
        for _ in range(12):
            damaged = bytearray(data)
            damaged[header + rng.randrange(512)] ^= 1 << rng.randrange(8)
            flipped.write_bytes(damaged)
            try:
                found = contents(flipped)
            except ValueError:
                refused += 1
            else:  # a bit that has no meaning, e.g. behind the end of the checksum
                assert found == whole
    assert refused > 100


@pytest.mark.parametrize(
    "size",
    [b"77777777777\0", b"\x80" + bytes(3) + b"\xff" * 8, b"\x80\0\0\0\x7f" + b"\xff" * 7, b"\xff" * 12,
     b"\xff" * 11 + b"\0", b"-0000000001\0", b"no number...", b"00000000000\0", b"00001000000\0"],
)  # fmt: skip
def test_hostile_sizes_are_refused(files: Path, tmp_path: Path, size: bytes) -> None:
    (files / "cat" / f"{'n' * 120}.png").write_bytes(b"1")
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        tar = pack(files, tmp_path / "x.tar", format=format)
        data = tar.read_bytes()
        for header in [header for header in headers(tar) if data[header + 124 : header + 136].strip(b"0\0")]:
            tar.write_bytes(set_field(data, header, 124, size))
            with pytest.raises(ValueError, match=r"x\.tar: damaged archive: .*; read \d+ members"):
                TarIndex(tar)


def test_the_message_has_the_position_and_the_number_of_members(tmp_path: Path) -> None:
    tar = write(tmp_path / "x.tar", ["a/1.png", "a/2.png", "b/3.png"])
    data = tar.read_bytes()
    for damaged, problem in (
        (data[:2048], "ends at byte 2048, without an end-of-archive marker; read 2 members"),
        (data[:2565], "b/3.png at byte 2048 should have 7 bytes, but the file ends at byte 2565; read 2 members"),
        (data[:2048] + b"?" + data[2049:], "invalid header at byte 2048; read 2 members"),
        (data[:2048] + bytes(1024) + data[2048:], "more data at byte 3072, behind .* at byte 2048.*; read 2 members"),
        (data + data, f"more data at byte {len(data)}, behind .* at byte 3072.*; read 3 members"),
        (data + b"rest", "more data .*; read 3 members"),
        (set_field(data, 2048, 124, b"77777777777\0"), "b/3.png at byte 2048 .* 8589934591 bytes.*; read 2 members"),
        (set_field(set_field(data, 2048, 124, b"77777777777\0"), 2048, 156, b"L"), "byte 2048; read 2 members"),
    ):
        tar.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"x\.tar: damaged archive: .*({problem}).*allow_damaged"):
            TarIndex(tar)


def test_an_unfinished_download_that_was_preallocated_is_refused(tmp_path: Path) -> None:
    tar = write(tmp_path / "x.tar", ["a/1.png", "a/2.png"])
    with open(tar, "r+b") as file:
        file.truncate(100_000_000)
    with pytest.raises(ValueError, match=r"zero bytes from byte 2048"):
        TarIndex(tar)


@pytest.mark.parametrize("record", [b"x", b"5 path=", b"99 path=a\n", b"11 size=-1\n", b"0 path=a\n"])
def test_invalid_extended_headers_are_refused(files: Path, tmp_path: Path, record: bytes) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        add(tar, "a/1.png", b"content")
        header = tarfile.TarInfo("pax")
        header.type, header.size = tarfile.XHDTYPE, len(record)
        tar.addfile(header, io.BytesIO(record))
        add(tar, "a/2.png", b"content")
    with pytest.raises(ValueError, match=r"damaged archive: .*extended header.*; read 1 members"):
        TarIndex(tmp_path / "x.tar")


def test_a_damaged_tar_is_used_as_far_as_it_goes_on_request(
    files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tar = pack(files, tmp_path / "x.tar")
    with tarfile.open(tar) as opened:
        end = opened.getmember("set/dög/2.png").offset
    tar.write_bytes(tar.read_bytes()[:end])
    train = open_dataset(str(tar), "train", val_fraction=0.5, allow_damaged=True)
    val = open_dataset(str(tar), "val", val_fraction=0.5, allow_damaged=True)
    assert sorted(images(train) + images(val)) == [
        *((f"cat/{i}.png", "cat") for i in range(4)), *((f"dög/{i}.png", "dög") for i in range(2))
    ]  # fmt: skip
    (warning,) = (message for message in caplog.messages if "damaged archive" in message)
    assert f"the file ends at byte {end}" in warning
    assert "the 10 members before, 6 of them images" in warning
    tar.write_bytes(b"nothing" * 1000)
    with pytest.raises(ValueError, match="not a tar"):
        open_tar(tar, allow_damaged=True)


def write_shard(path: Path) -> bytes:
    """Write a shard of four samples in eight members of 1 KiB each; returns its content."""
    with tarfile.open(path, "w") as tar:
        for key in range(4):
            add(tar, f"{key}.jpg", b"image")
            add(tar, f"{key}.cls", b"%d" % (key % 2))
    return path.read_bytes()


def test_a_damaged_shard_is_refused_and_used_on_request(tmp_path: Path) -> None:
    data = write_shard(tmp_path / "x.tar")
    (tmp_path / "x.tar").write_bytes(data[: 6 * 1024])
    with pytest.raises(ValueError, match="read 6 members"):
        open_dataset(f"wds/{tmp_path}/x.tar", "val")
    assert len(open_dataset(f"wds/{tmp_path}/x.tar", "val", val_fraction=1.0, allow_damaged=True)) == 3


def test_a_sample_cut_before_its_class_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_shard(tmp_path / "x.tar")
    (tmp_path / "x.tar").write_bytes(data[: 7 * 1024])
    images = open_dataset(f"wds/{tmp_path}/x.tar", "val", val_fraction=1.0, allow_damaged=True)
    assert [images.id(i) for i in range(len(images))] == ["x.tar:0", "x.tar:1", "x.tar:2"]
    assert "ignored 1 images without a class at the end of damaged shards" in caplog.text


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_long_name_lost_to_zeros_is_damage(tmp_path: Path, format: int) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=format) as tar:
        add(tar, "1.png", b"image")
        add(tar, f"{LONG}/2.png", b"image")
    data = (tmp_path / "x.tar").read_bytes()
    start = 3 * 512  # content of the extended header behind the first member
    (tmp_path / "x.tar").write_bytes(data[:start] + bytes(512) + data[start + 512 :])
    with pytest.raises(ValueError, match=r"damaged archive: .*; read 1 members"):
        TarIndex(tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file ends at byte 0, .*; read 0 members. Download or pack it again$"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a tar file"),
        (b"<html>404</html>", "not a tar file"),
        (bytes(1000), "the file ends at byte 1000|no images"),
    ],
)
def test_a_file_without_members_is_refused_also_on_request(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_dataset(str(tmp_path / "x.tar"), "val", allow_damaged=True)


# --- compressed archives ---

COMPRESS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("kind", COMPRESS)
def test_a_damaged_compressed_tar(
    files: Path, tmp_path: Path, kind: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for k in range(6):
        (files / "cat" / f"noise{k}.png").write_bytes(random.Random(k).randbytes(300_000))
    data = COMPRESS[kind](pack(files, tmp_path / "x.tar").read_bytes())
    path = tmp_path / f"x.tar.{kind}"
    flipped = bytearray(data)
    flipped[2 * len(data) // 3] ^= 0x10
    for damaged in (data[: 2 * len(data) // 3], data[:-5], bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"damaged archive: the compressed data .*; read \d+ members.*allow_damaged"
        ):
            open_tar(path)
        assert list(cache.iterdir()) == []
    path.write_bytes(data[: 2 * len(data) // 3])
    found = contents(path, allow_damaged=True)
    assert 1 <= len(found) < len(on_disk(files))
    assert found.items() <= on_disk(files).items()
    assert "damaged archive" in caplog.text
    with pytest.raises(ValueError, match="damaged archive"):  # what is kept of the damaged file is not taken for it
        open_tar(path)


def test_several_gzip_members_are_one_file_and_joined_tars_are_refused(files: Path, tmp_path: Path) -> None:
    data = pack(files, tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tgz").write_bytes(gzip.compress(data[:3000]) + gzip.compress(data[3000:]))
    assert contents(tmp_path / "x.tgz") == on_disk(files)
    (tmp_path / "two.tgz").write_bytes(2 * gzip.compress(data))
    with pytest.raises(ValueError, match=r"two\.tgz: .*more data"):
        open_tar(tmp_path / "two.tgz")
    (tmp_path / "tail.tgz").write_bytes(gzip.compress(data) + b"garbage")
    with pytest.raises(ValueError, match=r"tail\.tgz: damaged"):
        open_tar(tmp_path / "tail.tgz")


@pytest.mark.parametrize("damage", [lambda data: data[:1500], lambda data: data[:1024] + b"?" + data[1025:]])
def test_a_damaged_unpacked_tar_is_unpacked_again(
    files: Path, tmp_path: Path, cache: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = pack(files, tmp_path / "x.tar.gz", "w:gz")
    open_tar(path)
    (unpacked,) = cache.iterdir()
    unpacked.write_bytes(damage(unpacked.read_bytes()))
    assert contents(path) == on_disk(files)
    assert list(cache.iterdir()) == [unpacked]


def test_unpacking_leaves_disk_space_free(
    files: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(files, tmp_path / "x.tar.gz", "w:gz")
    monkeypatch.setattr(archive, "MIN_FREE", shutil.disk_usage(tmp_path).total)
    with pytest.raises(ValueError, match=r"x\.tar\.gz: .*disk is full.*SMT_CACHE_DIR"):
        open_tar(path)
    assert list(cache.iterdir()) == []


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 1 MB, so that writing fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_failed_write_is_one_clear_error(tmp_path: Path, cache: Path, small_files: None) -> None:
    (tmp_path / "bomb.tar.gz").write_bytes(gzip.compress(bytes(20_000_000)))
    with pytest.raises(ValueError, match=r"bomb\.tar\.gz: cannot unpack .*SMT_CACHE_DIR"):
        open_tar(tmp_path / "bomb.tar.gz")
    assert list(cache.iterdir()) == []


# --- the commands ---


def test_commands_say_how_to_use_a_damaged_tar(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    tar = pack(files, tmp_path / "x.tar")
    tar.write_bytes(tar.read_bytes()[: end_of(tar)])
    out = tmp_path / "run"
    words = ["train", "finetune", "--data", tar, "--run", out, "--model", "smt_atto", "--pretrained", "false",
             "--epochs", "1", "--batch_size", "4", "--input.size", "32", "--input.workers", "0",
             "--engine.precision", "32-true"]  # fmt: skip
    assert run(*words) == 1
    assert "--input.allow_damaged true" in capsys.readouterr().err
    assert run(*words, "--input.allow_damaged", "true") == 0
    assert "damaged archive" in caplog.text
    capsys.readouterr()
    assert run("train", "--resume", out, "--input.allow_damaged", "false") == 1  # the field may differ, not the data
    assert "damaged archive" in capsys.readouterr().err
    other = tmp_path / "other.tar"
    shutil.copy(tar, other)
    assert run("eval", out, "--data", other, "--workers", "0", "--input.allow_damaged", "false") == 1
    assert run("eval", out, "--data", other, "--workers", "0", "--input.allow_damaged", "true") == 0


def test_an_archive_that_changes_while_it_is_read_is_an_error(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the old offsets, there may be another image."""
    path = tmp_path / "set.tar"
    subprocess.run(["tar", "-cf", path, "-C", files, "."], check=True)
    index = open_tar(path)
    assert index.read(0) is not None
    archive._open_file.cache_clear()  # as with more shards than may be open
    os.utime(path, (0, 0))
    with pytest.raises(OSError, match=r"set\.tar: the archive has changed since it was opened"):
        index.read(0)


def test_partly_unpacked_files_of_killed_processes_are_removed(files: Path, tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "set.tar.gz"
    subprocess.run(["tar", "-czf", path, "-C", files, "."], check=True)
    (unpacked,) = [open_tar(path).path]
    unpacked.unlink()
    abandoned, present = (cache / f"{unpacked.name}{i}.partial" for i in range(2))
    for each in (abandoned, present):
        each.touch()
    os.utime(abandoned, (0, 0))
    archive._indices.clear()
    open_tar(path)
    assert (abandoned.exists(), present.exists(), unpacked.exists()) == (False, True, True)


def test_a_compressed_archive_below_a_folder_whose_name_is_not_utf_8(files: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    subprocess.run(["tar", "-czf", folder / "set.tar.gz", "-C", files, "."], check=True)
    assert len(open_tar(folder / "set.tar.gz")) > 0
