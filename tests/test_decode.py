"""The image decoder: known pixels for every kind of image, and errors that name the file."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from smt_vision.data.decode import UnreadableImage, decode, decode_input
from smt_vision.recipe import BandsInput


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def gray16(values: list[list[int]]) -> Image.Image:
    return Image.fromarray(np.array(values, dtype=np.uint16))


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("as_path", [False, True])
def test_rgb_jpeg_equals_pillow_bitwise(tmp_path: Path, as_path: bool) -> None:
    data = encoded(noise(37, 53), "JPEG", quality=80)
    (tmp_path / "a.jpg").write_bytes(data)
    image = decode(tmp_path / "a.jpg" if as_path else data, 3, name="a.jpg")
    assert image.mode == "RGB"
    assert np.array_equal(image, Image.open(io.BytesIO(data)).convert("RGB"))


def test_rgb_to_gray_and_gray_to_rgb() -> None:
    red = encoded(Image.new("RGB", (2, 2), (255, 0, 0)))
    gray = encoded(Image.new("L", (2, 2), 90))
    assert decode(red, 1, name="red").getpixel((0, 0)) == 76  # 0.299 * 255
    assert decode(gray, 3, name="gray").getpixel((1, 1)) == (90, 90, 90)
    assert decode(gray, 1, name="gray").mode == "L"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_not_clipped(kind: str) -> None:
    data = encoded(gray16([[0, 257, 32896], [65535, 300, 65280]]), kind)
    assert np.array_equal(decode(data, 1, name="x"), [[0, 1, 128], [255, 1, 254]])
    assert decode(data, 3, name="x").getpixel((0, 1)) == (255, 255, 255)


def test_dark_16_bit_images_are_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Of 12 bits, e.g. of a microscope, or of 8 bits in 32-bit integers."""
    monkeypatch.setattr("smt_vision.data.decode._dark_images", [])
    for largest in (0, 4096, 65535):
        decode(encoded(gray16([[0, largest]])), 3, name="fine.png")
    assert caplog.text == ""
    for name in ("first.png", "second.png"):
        decode(encoded(gray16([[0, 4095]])), 3, name=name)
    assert "first.png: the largest value of this 16-bit image is 4095" in caplog.text
    assert "set input.channels to 1 and input.max_value, e.g. to 4095 for values of 12 bits" in caplog.text
    assert "second.png" not in caplog.text
    advised = BandsInput(channels=1, max_value=4095)
    pixels = decode_input(encoded(gray16([[0, 4095]])), advised, name="first.png")
    assert pixels.flatten().tolist() == [0, 1]  # type: ignore[union-attr]


def test_16_bit_big_endian_tiff() -> None:
    image = Image.frombytes("I;16B", (2, 1), struct.pack(">HH", 514, 65535))
    assert np.array_equal(decode(encoded(image, "TIFF"), 1, name="x"), [[2, 255]])


def png(bits: int, color_type: int, pixels: bytes, width: int = 1) -> bytes:
    """A PNG file of one row."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, color_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" + pixels)) + chunk(b"IEND", b"")


def test_16_bit_rgb_png() -> None:
    data = png(16, 2, struct.pack(">HHH", 65535, 0, 128 * 257))
    assert decode(data, 3, name="x").getpixel((0, 0)) == (255, 0, 128)


@pytest.mark.parametrize(
    ("data", "max_value", "expected"),
    [
        (png(16, 0, struct.pack(">HH", 40000, 1), width=2), 65535, [40000, 1]),
        (png(4, 0, b"\x3f", width=2), 15, [3, 15]),
        (png(2, 0, b"\x60", width=2), 3, [1, 2]),
        (b"P5 2 1 4095 " + struct.pack(">HH", 2000, 4095), 4095, [2000, 4095]),
        (b"P5 2 1 100 " + bytes([7, 100]), 100, [7, 100]),
        (b"P5 2 1 65535 " + struct.pack(">HH", 2000, 4095), 4095, [2000, 4095]),
    ],
)
def test_values_of_any_number_of_bits_are_divided_by_max_value(
    data: bytes, max_value: float, expected: list[int]
) -> None:
    bands = decode_input(data, BandsInput(channels=1, max_value=max_value), name="x")
    assert bands.numpy().ravel() == pytest.approx(np.array(expected) / max_value, abs=1e-7)


@pytest.mark.parametrize(
    ("data", "channels"),
    [
        (png(16, 2, struct.pack(">HHH", 40000, 1, 2)), 3),
        (png(16, 6, struct.pack(">HHHH", 40000, 1, 2, 3)), 4),
        (b"P6 1 1 65535 " + struct.pack(">HHH", 40000, 1, 2), 3),
    ],
)
def test_bits_that_pillow_drops_are_missed(data: bytes, channels: int) -> None:
    with pytest.raises(UnreadableImage, match=r"x: .*only the upper 8 bits.*TIFF or \.npy"):
        decode_input(data, BandsInput(channels=channels, max_value=65535), name="x")


def test_16_bit_tiff_that_stores_white_as_0() -> None:
    stored = Image.fromarray(np.array([[0, 65535, 257]], dtype=np.uint16))
    data = encoded(stored, "TIFF", tiffinfo={262: 0})
    assert np.array_equal(decode(data, 1, name="x"), [[255, 0, 254]])
    assert np.array_equal(decode(Image.open(io.BytesIO(data)), 1, name="x"), [[255, 0, 254]])


def test_32_bit_integers_and_floats_raise() -> None:
    wide = Image.fromarray(np.array([[0, 70000]], dtype=np.int32))
    with pytest.raises(UnreadableImage, match=r"^wide\.tif: .*70000"):
        decode(encoded(wide, "TIFF"), 1, name="wide.tif")
    real = Image.fromarray(np.array([[0.0, 1.0]], dtype=np.float32))
    with pytest.raises(UnreadableImage, match=r"^real\.tif: .*float"):
        decode(encoded(real, "TIFF"), 3, name="real.tif")


def test_cmyk_palette_and_1_bit() -> None:
    cmyk = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    assert np.allclose(decode(cmyk, 3, name="x").getpixel((4, 4)), (255, 0, 0), atol=3)
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    assert np.array_equal(decode(encoded(palette), 3, name="x"), [[[10, 20, 30], [200, 100, 50]]])
    bits = Image.new("1", (2, 1))
    bits.putpixel((1, 0), 1)
    assert np.array_equal(decode(encoded(bits), 1, name="x"), [[0, 255]])


def test_transparency_is_composited_over_white() -> None:
    rgba = Image.new("RGBA", (3, 1))
    for x, pixel in enumerate([(10, 20, 30, 255), (10, 20, 30, 0), (0, 0, 0, 128)]):
        rgba.putpixel((x, 0), pixel)
    assert np.array_equal(decode(encoded(rgba), 3, name="x"), [[[10, 20, 30], [255, 255, 255], [127, 127, 127]]])
    la = Image.new("LA", (1, 1), (0, 0))
    assert decode(encoded(la), 1, name="x").getpixel((0, 0)) == 255


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_palette_with_transparent_entry(transparency: int | bytes) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    data = encoded(palette, transparency=transparency)
    assert np.array_equal(decode(data, 3, name="x"), [[[10, 20, 30], [255, 255, 255]]])


def stored_in(orientation: int, dtype: str = "uint8") -> tuple[np.ndarray, np.ndarray]:
    """A portrait image, and its pixels as stored with an EXIF orientation."""
    portrait = np.array([[1, 2, 3], [4, 5, 6]], dtype=dtype)
    # Stored pixels of the portrait image for each value of the tag (TIFF 6.0, tag 274).
    stored = {
        1: portrait, 2: portrait[:, ::-1], 3: portrait[::-1, ::-1], 4: portrait[::-1],
        5: portrait.T, 6: np.rot90(portrait, 1), 7: portrait[::-1, ::-1].T, 8: np.rot90(portrait, -1),
    }[orientation]  # fmt: skip
    return portrait, np.ascontiguousarray(stored)


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "compressed TIFF", "16-bit TIFF"])
def test_exif_orientation_of_content_paths_and_images_in_memory(orientation: int, kind: str, tmp_path: Path) -> None:
    portrait, stored = stored_in(orientation)
    image = Image.fromarray(stored if kind != "16-bit TIFF" else stored * np.uint16(257))
    options = {"compression": "tiff_lzw"} if kind.startswith("compressed") else {}
    data = encoded(image, kind.split()[-1], exif=with_orientation(orientation), **options)
    file = tmp_path / "x"
    file.write_bytes(data)
    assert np.array_equal(decode(data, 1, name="x"), portrait)
    assert np.array_equal(decode(file, 1, name="x"), portrait)
    with Image.open(file) as opened, Image.open(file) as loaded:
        assert np.array_equal(decode(opened, 1, name="x"), portrait)
        if kind.startswith("PNG"):  # Pillow turns TIFF files itself when it loads them, and uncompressed ones wrongly
            loaded.load()
            assert np.array_equal(loaded, stored)
            assert np.array_equal(decode(loaded, 1, name="x"), portrait)
            assert np.array_equal(loaded, stored)  # the caller's image stays as it is
            assert np.array_equal(decode(loaded, 1, name="x"), portrait)
            assert np.array_equal(decode(ImageOps.exif_transpose(loaded), 1, name="x"), portrait)
            assert np.array_equal(decode(loaded.convert("RGB"), 1, name="x"), portrait)
        decoded = decode(opened, 3, name="x")
        assert np.array_equal(decode(decoded, 1, name="x"), portrait)  # not turned again


MODES = ["1", "L", "P", "PA", "LA", "La", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB",
         "I", "I;16", "I;16B", "I;16L", "I;16N"]  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_exif_orientation_in_every_mode(mode: str) -> None:
    image = Image.new(mode, (3, 2))
    image.info["exif"] = with_orientation(6).tobytes()
    for channels in (1, 3):
        assert decode(image, channels, name="x").size == (2, 3)
    assert image.size == (3, 2)


@pytest.mark.parametrize("mode", MODES)
def test_white_and_gray_of_every_mode_in_memory(mode: str) -> None:
    """A gray of 51 beside white, opaque, in each of Pillow's modes."""
    values = np.array([[51, 255]], dtype=np.uint8)
    gray = Image.fromarray(values)
    if mode == "1":
        image = Image.fromarray(values > 51)
        values = np.array([[0, 255]], dtype=np.uint8)
    elif mode == "LAB":  # lightness is not linear in gray
        image = Image.merge("LAB", [gray, Image.new("L", (2, 1), 128), Image.new("L", (2, 1), 128)])
        values = np.asarray(image.convert("RGB"))[..., 1]
    elif mode.startswith("I;16"):
        wide = values.astype(np.uint16) * 257
        image = Image.frombytes(mode, (2, 1), (wide.byteswap() if mode.endswith("B") else wide).tobytes())
    elif mode == "I":
        image = Image.fromarray(values.astype(np.int32) * 257)
    elif mode == "La":
        image = Image.merge("LA", [gray, Image.new("L", (2, 1), 255)]).convert("La")
    else:
        image = gray.convert("RGBA").convert("P" if mode == "PA" else "RGB").convert(mode)
    before = image.tobytes()
    assert image.mode == mode
    assert np.abs(np.asarray(decode(image, 1, name="x"), dtype=int) - values).max() <= 1
    rgb = np.asarray(decode(image, 3, name="x"), dtype=int)
    assert np.abs(rgb - values[..., None]).max() <= 1
    assert (image.mode, image.tobytes()) == (mode, before)


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_transparent_pixels_of_every_mode_in_memory_are_white(mode: str) -> None:
    image = Image.new(mode, (1, 1))
    assert decode(image, 1, name="x").getpixel((0, 0)) == 255
    assert decode(image, 3, name="x").getpixel((0, 0)) == (255, 255, 255)


def test_transparent_value_of_a_16_bit_png() -> None:
    data = encoded(gray16([[500, 65535, 600 * 50]]), transparency=500)
    assert Image.open(io.BytesIO(data)).mode == "I;16"
    assert np.array_equal(decode(data, 1, name="x"), [[255, 255, 117]])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_truncated_image_in_memory_is_unreadable_like_its_file(kind: str, tmp_path: Path) -> None:
    data = encoded(noise(64, 64), kind)
    file = tmp_path / "cut.img"
    file.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(UnreadableImage, match=r"^3: ") as from_file:
        decode(file, 3, name="3")
    with Image.open(file) as image, pytest.raises(UnreadableImage) as in_memory:
        decode(image, 3, name="3")
    assert str(in_memory.value) == str(from_file.value)


def test_closed_and_too_large_images_in_memory(tmp_path: Path) -> None:
    noise(30, 40).save(tmp_path / "a.png")
    image = Image.open(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match=r"^x: 40 x 30 .*max_pixels=1199"):
        decode(image, 3, name="x", max_pixels=1199)
    with pytest.raises(UnreadableImage, match=r"^x: 0 x 30 pixels"):
        decode(Image.new("RGB", (0, 30)), 3, name="x")
    image.close()
    with pytest.raises(UnreadableImage, match=r"^x: .*closed.*load\(\)"):
        decode(image, 3, name="x")


def test_image_in_memory_stays_open_and_shows_its_current_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.tif") as image:
        image.seek(2)
        assert decode(image, 3, name="x").getpixel((0, 0)) == (0, 0, 255)
        assert image.tell() == 2
        image.seek(1)
        assert decode(image, 3, name="x").getpixel((0, 0)) == (0, 255, 0)
        assert image.filename
    assert decode(tmp_path / "a.tif", 3, name="x").getpixel((0, 0)) == (255, 0, 0)


def test_damaged_exif_is_ignored() -> None:
    data = encoded(noise(8, 8), "JPEG", exif=b"Exif\0\0no such thing")
    assert np.array_equal(decode(data, 3, name="x"), Image.open(io.BytesIO(data)).convert("RGB"))


def test_one_pixel() -> None:
    assert decode(encoded(Image.new("RGB", (1, 1), (1, 2, 3))), 3, name="x").getpixel((0, 0)) == (1, 2, 3)


def test_pil_image_is_converted() -> None:
    assert decode(Image.new("L", (2, 2), 7), 3, name="x").getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP"])
def test_truncated_file_raises(kind: str) -> None:
    data = encoded(noise(64, 64), kind)
    with pytest.raises(UnreadableImage, match=r"^cats/1\.img: "):
        decode(data[: len(data) * 2 // 3], 3, name="cats/1.img")


def test_invalid_file_raises(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match=r"^a\.jpg: .*5 bytes"):
        decode(b"hello", 3, name="a.jpg")
    with pytest.raises(UnreadableImage, match=r"^a\.jpg: .*empty"):
        decode(b"", 3, name="a.jpg")
    with pytest.raises(UnreadableImage, match=r"^a\.jpg: "):
        decode(tmp_path / "a.jpg", 3, name="a.jpg")


def test_max_pixels_is_checked_before_decoding() -> None:
    data = encoded(Image.new("L", (40, 30)))
    assert decode(data, 1, name="x", max_pixels=1200).size == (40, 30)
    with pytest.raises(UnreadableImage, match=r"^x: 40 x 30 .*max_pixels=1199"):
        decode(data, 1, name="x", max_pixels=1199)
    # A file of a few bytes whose header claims 10 gigapixels.
    bomb = bytearray(encoded(Image.new("1", (8, 8))))
    bomb[16:24] = struct.pack(">II", 100_000, 100_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    with pytest.raises(UnreadableImage, match=r"^bomb\.png: "):
        decode(bytes(bomb), 3, name="bomb.png")


def test_no_decompression_bomb_warning_below_pillow_limit() -> None:
    # Pillow warns from half of its limit on; warnings are errors in tests.
    large = bytearray(encoded(Image.new("1", (8, 8))))
    large[16:24] = struct.pack(">II", 10_000, 10_000)
    large[29:33] = struct.pack(">I", zlib.crc32(large[12:29]))
    with pytest.raises(UnreadableImage, match=r"10000 x 10000 .*max_pixels=1000"):
        decode(bytes(large), 3, name="x", max_pixels=1000)


def test_invalid_channels_raise() -> None:
    with pytest.raises(ValueError, match=r"channels.*4"):
        decode(b"", 4, name="x")
