"""Pictures of every kind, whole and damaged: a picture as a person would see it, or one line."""

from __future__ import annotations

import io
import logging
import os
import random
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

import fuse
from fuse.images import ReadingOptions, open_image
from fuse.images.colours import as_seen
from fuse.images.damage import PNG_MARK
from fuse.images.formats import describe, readable_formats
from fuse.options import shown

RED, BLUE, GRAY = (200, 30, 40), (20, 60, 190), 137
LOSSLESS = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "GIF": {},
    "BMP": {},
    "DIB": {},
    "TIFF": {"compression": "tiff_lzw"},
    "JPEG2000": {},
    "ICO": {"sizes": [(48, 48)]},
    "PPM": {},
    "TGA": {},
    "PCX": {},
    "SGI": {},
    "IM": {},
    "DDS": {},
    "QOI": {},
    "ICNS": {},
}


def scene(width: int = 48, height: int = 48) -> Image.Image:
    """Draw a red corner at the top left and a blue one at the bottom right on gray."""
    picture = Image.new("RGB", (width, height), (GRAY, GRAY, GRAY))
    picture.paste(RED, (0, 0, width // 2, height // 4))
    picture.paste(BLUE, (3 * width // 4, height // 2, width, height))
    return picture


def ramp() -> np.ndarray:
    """Return gray levels that are all there, in 8 bits."""
    return np.arange(256, dtype=np.uint8).reshape(16, 16)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def opened(path: Path, data: bytes, options: ReadingOptions | None = None) -> np.ndarray:
    path.write_bytes(data)
    picture = open_image(path, options=options)
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int)


def refused(path: str | Path, options: ReadingOptions | None = None) -> str:
    """Return what is said of a file, which has to be one line that can be printed."""
    with pytest.raises(fuse.FuseError) as caught:
        open_image(path, options=options)
    message = str(caught.value)
    assert message.startswith("image=") and message.isprintable()
    return message


def near(found: np.ndarray, expected: Image.Image | np.ndarray, levels: int) -> bool:
    wanted = np.asarray(expected).astype(int)
    return found.shape == wanted.shape and int(np.abs(found - wanted).max()) <= levels


# Formats and colours


@pytest.mark.parametrize("kind", LOSSLESS)
def test_the_content_tells_the_format(tmp_path: Path, kind: str) -> None:
    picture = scene(128, 128) if kind == "ICNS" else scene()
    data = encoded(picture, kind, **LOSSLESS[kind])
    found = opened(tmp_path / "picture.txt", data)
    if kind == "ICNS":  # the largest of several sizes, which were made by resampling
        assert np.abs(found[4::8, 4::8] - np.asarray(picture)).mean() < 1
    else:
        assert near(found, picture, 1)


@pytest.mark.parametrize("kind", ["JPEG", "AVIF", "HEIF", "JXL"])
def test_formats_that_lose_something(tmp_path: Path, kind: str) -> None:
    if kind not in readable_formats():
        pytest.skip(f"{kind} comes with the extra `images`")
    found = opened(tmp_path / "picture.png", encoded(scene(), kind, quality=95))
    assert np.abs(found - np.asarray(scene())).mean() < 4


def tiff(values: np.ndarray, photometric: int, sample_format: int) -> bytes:
    """Write a picture of one channel without compression."""
    order, bits = "<", values.itemsize * 8
    height, width = values.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric)]
    tags += [(273, 200), (277, 1), (278, height), (279, values.nbytes), (339, sample_format)]
    directory = struct.pack(f"{order}H", len(tags))
    for tag, value in tags:
        directory += struct.pack(f"{order}HHII", tag, 4, 1, value)
    head = b"II*\0" + struct.pack("<I", 8) + directory + bytes(4)
    return head.ljust(200, b"\0") + values.tobytes()


GRAYS: dict[str, Callable[[], bytes]] = {
    "16.png": lambda: encoded(Image.fromarray(ramp().astype(np.uint16) * 257), "PNG"),
    "16.tif": lambda: encoded(Image.fromarray(ramp().astype(np.uint16) * 257), "TIFF"),
    "16_high_byte.tif": lambda: encoded(Image.fromarray(ramp().astype(np.uint16) << 8), "TIFF"),
    "16_big_endian.tif": lambda: encoded(
        Image.frombytes("I;16B", (16, 16), (ramp().astype(">u2") * 257).astype(">u2").tobytes()),
        "TIFF",
    ),
    "16.jp2": lambda: encoded(Image.fromarray(ramp().astype(np.uint16) * 257), "JPEG2000"),
    "16.pgm": lambda: b"P5 16 16 65535\n" + (ramp().astype(">u2") * 257).astype(">u2").tobytes(),
    "16_white_is_0.tif": lambda: tiff((255 - ramp()).astype("<u2") * 257, 0, 1),
    "32.tif": lambda: tiff(ramp().astype("<u4") * 16843009, 1, 1),
    "32_of_8.tif": lambda: tiff(ramp().astype("<i4"), 1, 2),
    "32_of_16.tif": lambda: tiff(ramp().astype("<i4") * 257, 1, 2),
    "signed.tif": lambda: tiff(ramp().astype("<i4") * 1000 - 90000, 1, 2),
    "float_of_1.tif": lambda: tiff(ramp().astype("<f4") / 255, 1, 3),
    "float_of_8.tif": lambda: tiff(ramp().astype("<f4"), 1, 3),
    "float_of_16.tif": lambda: tiff(ramp().astype("<f4") * 257, 1, 3),
    "float_of_any.tif": lambda: tiff(ramp().astype("<f4") * 1e6, 1, 3),
}


@pytest.mark.parametrize("name", GRAYS)
def test_more_than_8_bits_are_scaled(tmp_path: Path, name: str) -> None:
    found = opened(tmp_path / name, GRAYS[name]())
    assert near(found, np.repeat(ramp()[..., None], 3, axis=2), 1)


def test_numbers_that_are_not_finite_are_the_darkest_and_the_brightest(tmp_path: Path) -> None:
    values = ramp().astype("<f4") / 255
    values[0, :3] = np.nan, np.inf, -np.inf
    found = opened(tmp_path / "odd.tif", tiff(values, 1, 3))
    assert near(found[0, :3, 0], np.array([3, 255, 3]), 1)
    assert near(found[1:], np.repeat(ramp()[1:, :, None], 3, axis=2), 1)
    assert opened(tmp_path / "none.tif", tiff(np.full((4, 4), np.nan, "<f4"), 1, 3)).max() == 0


def test_the_clear_level_of_16_bits(tmp_path: Path) -> None:
    levels = np.full((4, 4), 20000, np.uint16)
    levels[0, 0] = 1000
    found = opened(
        tmp_path / "clear.png", encoded(Image.fromarray(levels), "PNG", transparency=1000)
    )
    assert found[0, 0].tolist() == [255] * 3
    assert found[1, 1].tolist() == [78] * 3


MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "LA", "PA", "La", "RGBa"]


@pytest.mark.parametrize("mode", [*MODES, "RGBX", "I", "F", "I;16"])
def test_modes_are_seen_alike(mode: str) -> None:
    gray = Image.new("RGB", (4, 4), (128, 128, 128) if mode != "1" else (255, 255, 255))
    plain = gray.convert("L")
    if mode == "I;16":
        picture = Image.fromarray(np.full((4, 4), 128 * 257, np.uint16))
    elif mode == "P":
        picture = gray.quantize(2)
    elif mode in ("La", "PA"):
        picture = plain.convert("LA").convert(mode)
    elif mode == "RGBa":
        picture = gray.convert("RGBA").convert(mode)
    elif mode in ("I", "F", "1"):
        picture = plain.convert(mode)
    else:
        picture = gray.convert(mode)
    assert picture.mode == mode
    assert near(np.asarray(as_seen(picture).convert("RGB")).astype(int), gray, 2)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "La", "RGBa", "PA", "P"])
def test_transparent_parts_show_the_background(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 4, 8))
    if mode in ("La", "PA"):
        picture = picture.convert("LA")
    if mode in ("La", "RGBa", "LA"):
        seen = as_seen(picture.convert(mode))
        assert seen.mode == "RGBA" and seen.getpixel((0, 0))[3] == 0
        return
    kind = "GIF" if mode == "P" else "PNG"
    for background, colour in (("white", [255] * 3), ("#1040f0", [16, 64, 240])):
        options = ReadingOptions(background=background)
        found = opened(tmp_path / "clear", encoded(picture, kind), options)
        assert found[0, 0].tolist() == colour
        assert found[0, 7].tolist() == [0, 0, 0]


def test_cmyk_and_16_bit_colours(tmp_path: Path) -> None:
    found = opened(tmp_path / "a.jpg", encoded(scene().convert("CMYK"), "JPEG", quality=95))
    assert np.abs(found - np.asarray(scene())).mean() < 4
    deep = (np.asarray(scene()).astype(">u2") * 257).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    data = png((b"IHDR", struct.pack(">IIBBBBB", 48, 48, 16, 2, 0, 0, 0)), (b"IDAT", rows))
    assert near(opened(tmp_path / "deep.png", data), scene(), 1)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_is_taken(tmp_path: Path, kind: str) -> None:
    others = [Image.new("RGB", (48, 48), BLUE), Image.new("RGB", (48, 48), RED)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(scene(), kind, save_all=True, append_images=others, **options)
    assert sum(1 for _ in ImageSequence.Iterator(Image.open(io.BytesIO(data)))) == 3
    assert near(opened(tmp_path / "frames", data), scene(), 2)


# Which side is up


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_pictures_are_turned_upright(tmp_path: Path, kind: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    as_lying = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's own numbers of the inverse
    lying = scene(48, 32)
    if turn > 1:
        lying = lying.transpose(Image.Transpose(as_lying[turn]))
    found = opened(tmp_path / "turned", encoded(lying, kind, exif=exif.tobytes()))
    assert found.shape == (32, 48, 3)
    assert np.abs(found - np.asarray(scene(48, 32))).mean() < 4


def exif_of(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Write a directory of tags: number, type, count, value or where it stands."""
    body = b"".join(struct.pack("<HHI", *head) + value.ljust(4, b"\0") for *head, value in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4)


TURN = (0x0112, 3, 1, b"\6")
ODD_TAGS = {
    "a value beyond the end": (0x011A, 5, 1, b"\xff\xff\xff\x7f"),
    "a type that does not exist": (0x010F, 99, 1, b"\1"),
    "a maker that is no text": (0x010F, 7, 4, b"\xff\xfe\0\1"),
    "a pointer to itself": (0x8769, 4, 1, b"\x08"),
    "a place of bytes": (0x8825, 2, 4, b"abc"),
    "more values than there are": (0x011A, 5, 1 << 30, b"\0"),
}


@pytest.mark.parametrize("name", ODD_TAGS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_odd_tag_costs_nothing(tmp_path: Path, kind: str, name: str) -> None:
    tags = sorted([TURN, ODD_TAGS[name]])
    lying = scene(48, 32).transpose(Image.Transpose.ROTATE_90)
    found = opened(tmp_path / "odd", encoded(lying, kind, exif=exif_of(*tags)))
    assert found.shape == (32, 48, 3)
    assert np.abs(found - np.asarray(scene(48, 32))).mean() < 4


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0II", b"Exif\0\0nothing of the kind", exif_of(TURN)[:18]]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_where_no_turn_can_be_read_there_is_none(tmp_path: Path, kind: str, exif: bytes) -> None:
    found = opened(tmp_path / "odd", encoded(scene(48, 32), kind, exif=exif))
    assert np.abs(found - np.asarray(scene(48, 32))).mean() < 4


@pytest.mark.parametrize("value", [(3, b"\x09"), (3, b"\0"), (9, b"\xfa\xff\xff\xff"), (2, b"x")])
def test_a_turn_that_does_not_exist_is_none(tmp_path: Path, value: tuple[int, bytes]) -> None:
    exif = exif_of((0x0112, value[0], 1, value[1]))
    found = opened(tmp_path / "odd", encoded(scene(48, 32), "PNG", exif=exif))
    assert near(found, scene(48, 32), 0)


# Damage


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """Write a PNG file; what is in IDAT is compressed here."""
    parts = [PNG_MARK]
    for name, content in (*chunks, (b"IEND", b"")):
        content = zlib.compress(content) if name == b"IDAT" else content
        check = struct.pack(">I", zlib.crc32(name + content))
        parts.append(struct.pack(">I", len(content)) + name + content + check)
    return b"".join(parts)


def png_of_scene(*chunks: tuple[bytes, bytes], after: bool) -> bytes:
    head = (b"IHDR", struct.pack(">IIBBBBB", 48, 48, 8, 2, 0, 0, 0))
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(scene()))
    pixels = (b"IDAT", rows)
    return png(head, pixels, *chunks) if after else png(head, *chunks, pixels)


CHUNKS = {
    "gAMA": b"\1",
    "sRGB": b"",
    "cHRM": b"\0" * 5,
    "pHYs": b"\0\0",
    "iCCP": b"name\0\7" + b"x" * 9,
    "zTXt": b"name\0\0" + zlib.compress(bytes(9_000_000)),
    "iTXt": b"XML:com.adobe.xmp\0\0\0\0\0\xff\xfe\xff",
    "eXIf": b"II*\0",
    "acTL": b"\0",
}


@pytest.mark.parametrize("name", CHUNKS)
@pytest.mark.parametrize("after", [False, True])
def test_damage_beside_the_pixels_of_a_png(tmp_path: Path, name: str, after: bool) -> None:
    data = png_of_scene((name.encode(), CHUNKS[name]), after=after)
    assert near(opened(tmp_path / "odd.png", data), scene(), 0)


def test_a_turn_is_heeded_beside_damage(tmp_path: Path) -> None:
    lying = scene().transpose(Image.Transpose.ROTATE_90)
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(lying))
    head = (b"IHDR", struct.pack(">IIBBBBB", 48, 48, 8, 2, 0, 0, 0))
    data = png(head, (b"gAMA", b"\1"), (b"eXIf", exif_of(TURN)[6:]), (b"IDAT", rows))
    assert near(opened(tmp_path / "odd.png", data), scene(), 0)


@pytest.mark.parametrize("marker", [0xE1, 0xE2, 0xED, 0xFE])
def test_damage_beside_the_pixels_of_a_jpeg(tmp_path: Path, marker: int) -> None:
    data = encoded(scene(), "JPEG")
    names = {0xE1: b"Exif\0\0MM\0*", 0xE2: b"MPF\0II*\0", 0xED: b"Photoshop 3.0\x008BIM\4\4"}
    content = names.get(marker, b"") + b"\xff" * 9
    segment = struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
    found = opened(tmp_path / "odd.jpg", data[:2] + segment + data[2:])
    assert near(found, Image.open(io.BytesIO(data)), 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA"])
@pytest.mark.parametrize("share", [0.6, 0.9])
def test_what_is_cut_off_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    path = tmp_path / "cut.tga"
    path.write_bytes(data[: int(len(data) * share)])
    assert "fetch it anew" in refused(path)


FOREIGN = {
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
    "PDF": b"%PDF-1.7\n1 0 obj\n",
    "SVG": b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>",
    "web page": b"\n<!DOCTYPE html><title>403</title>",
    "WMF": b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<4hH", 0, 0, 10, 10, 96) + bytes(30),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(60),
    "GRIB": b"GRIB\0\0\0\1" + bytes(60),
    "MPEG": b"\0\0\1\xb3\x01\x00\x10" + bytes(60),
    "zeros": bytes(1000),
    "empty": b"",
    "not a picture": b"shopping list: bread, milk",
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("suffix", [".png", ".eps", ""])
def test_what_is_no_picture_is_named_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, suffix: str
) -> None:
    def no_program(*args: object, **options: object) -> None:
        raise AssertionError("a program was started")

    for function in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, function, no_program)
    path = tmp_path / f"photo{suffix}"
    path.write_bytes(FOREIGN[name])
    assert name in refused(path)


def test_nothing_is_opened_within_a_picture_by_any_format(tmp_path: Path) -> None:
    """IPTC would hand what it holds to Ghostscript, if it is EPS."""
    fields = [(3, 60, b"\3\1"), (3, 20, b"\0\x0a"), (3, 30, b"\0\x0a"), (3, 120, b"\5")]
    parts = [struct.pack(">BBBH", 0x1C, *tag, len(value)) + value for *tag, value in fields]
    content = struct.pack(">BBBH", 0x1C, 8, 10, len(FOREIGN["EPS"])) + FOREIGN["EPS"]
    (tmp_path / "a.iim").write_bytes(b"".join(parts) + content)
    assert "not a picture" in refused(tmp_path / "a.iim")
    assert not {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "FPX", "MIC", "IPTC"} & {
        *readable_formats()
    }


def test_a_plug_in_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse.images.formats.readable_formats", lambda: ())
    assert "pillow-heif" in describe(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    assert "pillow-jxl-plugin" in describe(b"\xff\x0a\x7f\0")


def test_what_is_known_is_not_guessed_to_be_something_else(tmp_path: Path) -> None:
    """The header of this film is also one of a TGA, which has no mark of its own."""
    head = bytearray(encoded(scene(), "TGA")[:18])
    head[:4] = b"\0\0\1\xb3"
    (tmp_path / "film.png").write_bytes(bytes(head) + bytes(100_000))
    assert "MPEG" in refused(tmp_path / "film.png")


def damaged(number: int) -> tuple[str, bytes]:
    """Return a picture with some bytes changed, cut out or doubled."""
    rng = random.Random(number)
    kinds = [kind for kind in ("AVIF", "HEIF", "JXL", "JPEG") if kind in readable_formats()]
    kind = rng.choice([*LOSSLESS, *kinds])
    exif = {"exif": exif_of(TURN)} if kind in ("PNG", "WEBP", "JPEG", "TIFF") else {}
    options = {**LOSSLESS.get(kind, {}), **exif}
    data = bytearray(encoded(scene(128, 128) if kind == "ICNS" else scene(), kind, **options))
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(min(len(data), rng.choice([40, 400, 1 << 20])))
        how = rng.randrange(4)
        if how == 0:
            data[at] = rng.randrange(256)
        elif how == 1:
            data[at : at + 4] = rng.choice([bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff"])
        elif how == 2:
            del data[at : at + rng.randint(1, 9)]
        else:
            data[at:at] = data[at : at + rng.randint(1, 30)]
        if not data:
            break
    return kind, bytes(data)


def check_damaged(path: Path, numbers: range) -> None:
    options = ReadingOptions(max_pixels=1_000_000)
    for number in numbers:
        kind, data = damaged(number)
        path.write_bytes(data)
        try:
            picture = open_image(path, options=options)
        except fuse.FuseError as error:
            assert str(error).isprintable(), (number, kind)
        else:
            assert picture.mode == "RGB" and min(picture.size) > 0, (number, kind)


def test_damage_of_any_kind_is_a_picture_or_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    check_damaged(tmp_path / "damaged", range(200))
    assert capfd.readouterr() == ("", "")


@pytest.mark.full
def test_more_damage(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check_damaged(tmp_path / "damaged", range(200, 2200))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "error",
    [struct.error, TypeError, RuntimeError, MemoryError, zlib.error, OverflowError, RecursionError],
)
def test_whatever_pillow_raises_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def raises(*args: object, **options: object) -> None:
        raise error("first line\nsecond line")

    (tmp_path / "a.png").write_bytes(encoded(scene(), "PNG"))
    monkeypatch.setattr(Image, "open", raises)
    assert "a.png" in refused(tmp_path / "a.png")


# Paths


def test_paths_that_lead_to_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "nowhere.png").symlink_to("not_there")
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    for name, reason in (
        ("pipe.png", "not a file"),
        ("nowhere.png", "link to nowhere"),
        ("self.png", "links"),
        ("zero.png", "not a file"),
        ("folder.png", "a folder"),
        ("missing.png", "no such file"),
        ("x" * 300, "too long"),
        ("a\0b", "null"),
        ("new\nline\x1b[31m.png", "no such file"),
    ):
        assert reason in refused(tmp_path / name), name
    assert "no path" in refused("")
    assert "empty" in refused("/proc/kmsg") or not Path("/proc/kmsg").exists()


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.png").write_bytes(encoded(scene(), "PNG"))
    monkeypatch.setattr(Path, "open", denied)
    assert "Permission denied" in refused(tmp_path / "a.png")


def test_names_that_a_terminal_would_obey(tmp_path: Path) -> None:
    name = "new\nline\x1b[31m.png"
    assert near(opened(tmp_path / name, encoded(scene(), "PNG")), scene(), 0)
    (tmp_path / name).write_bytes(b"nothing")
    assert "new\\nline\\x1b[31m.png" in refused(tmp_path / name)


# Options


def test_limits_are_checked_before_decoding(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    for side in (20_000, 60_000):
        head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        (tmp_path / "large.png").write_bytes(png((b"IHDR", head), (b"IDAT", b"")))
        assert "max_pixels=200000000" in refused(tmp_path / "large.png")
    (tmp_path / "a.png").write_bytes(encoded(scene(), "PNG"))
    assert "max_pixels=2000" in refused(tmp_path / "a.png", ReadingOptions(max_pixels=2000))
    assert "48 x 48" in refused(tmp_path / "a.png", ReadingOptions(max_pixels=2000))
    assert "max_bytes=50" in refused(tmp_path / "a.png", ReadingOptions(max_bytes=50))
    assert open_image(tmp_path / "a.png", options=ReadingOptions(max_pixels=2304)).size == (48, 48)
    assert before == Image.MAX_IMAGE_PIXELS


def test_the_size_of_jpeg_xl_is_read_before_decoding(tmp_path: Path) -> None:
    from fuse.images.jxl import CONTAINER, jxl_size

    # Not small; height 2**18 - 1 in 18 bits; as wide
    bits = 0 | (2 << 1) | (((1 << 18) - 2) << 3) | (1 << 21)
    stream = b"\xff\x0a" + bits.to_bytes(14, "little")
    text = struct.pack(">I4s", 12, b"Exif") + bytes(4)
    for data in (
        stream,
        CONTAINER + text + struct.pack(">I4s", 0, b"jxlc") + stream,
        CONTAINER + text + struct.pack(">I4sI", 0, b"jxlp", 0) + stream,
    ):
        assert jxl_size(io.BytesIO(data)) == ((1 << 18) - 1, (1 << 18) - 1)
        (tmp_path / "large.jxl").write_bytes(data)
        assert "max_pixels=" in refused(tmp_path / "large.jxl")
    assert jxl_size(io.BytesIO(encoded(scene(), "PNG"))) is None
    assert jxl_size(io.BytesIO(CONTAINER + text)) is None


@pytest.mark.parametrize(
    "options",
    [
        {"background": "whitish"},
        {"background": None},
        {"fit": "strech"},
        {"max_pixels": 0},
        {"max_pixels": True},
        {"max_bytes": "1 GB"},
    ],
)
def test_options_that_cannot_be_are_named(options: dict[str, object]) -> None:
    ((key, value),) = options.items()
    with pytest.raises(fuse.FuseError, match=f"{key}={shown(value)}: .*expected"):
        ReadingOptions(**options)  # type: ignore[arg-type]


def warned(
    caplog: pytest.LogCaptureFixture, path: Path, picture: Image.Image, **options: str
) -> str:
    """Return the warnings about a picture; each has to name the file."""
    picture.save(path)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        open_image(path, options=ReadingOptions(**options))  # type: ignore[arg-type]
    messages = [record.getMessage() for record in caplog.records]
    assert all(path.name in message for message in messages)
    return "\n".join(messages)


def test_a_picture_that_cannot_be_seen_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.png"
    drawing = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    drawing.paste((250, 252, 250, 255), (16, 16, 48, 48))
    assert "background=black" in warned(caplog, path, drawing)
    assert warned(caplog, path, drawing, background="navy") == ""
    drawing.paste((10, 10, 10, 255), (16, 16, 48, 20))
    assert warned(caplog, path, drawing) == ""
    assert "transparent" in warned(caplog, path, Image.new("RGBA", (9, 9), (9, 9, 9, 0)))
    assert "one colour" in warned(caplog, path, Image.new("RGB", (9, 9), "white"))
    assert warned(caplog, path, scene()) == ""
    assert warned(caplog, path, scene().convert("RGBA")) == ""


def test_what_a_crop_would_cut_off_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.png"
    for size in ((100, 30), (30, 100)):
        message = warned(caplog, path, scene(*size))
        assert "30%" in message and "fit=pad" in message
        assert warned(caplog, path, scene(*size), fit="pad") == ""
    assert warned(caplog, path, scene(160, 90)) == ""


def test_padding_keeps_all_of_the_picture(tmp_path: Path) -> None:
    scene(60, 20).save(tmp_path / "wide.png")
    options = ReadingOptions(fit="pad", background="#010203")
    found = open_image(tmp_path / "wide.png", options=options)
    assert found.size == (60, 60)
    assert found.getpixel((0, 0)) == found.getpixel((59, 59)) == (1, 2, 3)
    assert near(np.asarray(found.crop((0, 20, 60, 40))).astype(int), scene(60, 20), 0)
    scene(9000, 1).save(tmp_path / "strip.png")
    assert open_image(tmp_path / "strip.png", options=options).size == (2048, 2048)


def test_a_crop_reads_the_same_of_a_strip(tmp_path: Path) -> None:
    strip = Image.fromarray(np.random.default_rng(0).integers(0, 255, (4, 400, 3), np.uint8))
    strip.save(tmp_path / "strip.png")
    found = open_image(tmp_path / "strip.png")
    assert found.size == (64, 4)
    middle = strip.crop((198, 0, 202, 4))
    assert near(np.asarray(found.crop((30, 0, 34, 4))).astype(int), middle, 0)
