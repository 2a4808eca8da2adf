"""Reading of pictures: the cases behind the tables of docs/reference/inputs.md, damaged files, and a second decoder."""

import os
import re
import resource
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torchvision.io import ImageReadMode, decode_image

from mgmrn.data.pictures import ENDINGS, FORMATS, files_below, read_picture
from mgmrn.errors import UserError
from tests.exported import array_file, written

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::DeprecationWarning:torchvision")

DOCS = Path(__file__).resolve().parents[2] / "docs" / "reference" / "inputs.md"
SECTION = DOCS.read_text(encoding="utf-8").split("## Pictures\n")[1].split("\n## ")[0]
TABLES = (block for block in SECTION.split("\n\n") if "---" in block)
READ, REFUSED = (dict(re.findall(r"^\| (.+?) \| (.+) \|$", table, re.MULTILINE)[2:]) for table in TABLES)
ORIENTATION = 0x0112

PIXELS = np.kron(np.random.default_rng(0).integers(0, 256, (3, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
"""Blocks of colour, 24 × 32: no two turns look alike, and lossy formats keep the colours within some units."""
GREY = PIXELS[..., 0]
DEEP = GREY.astype(np.uint16) * 257
RGB = Image.fromarray(PIXELS)
CLEAR = np.arange(32) < 16
"""Columns that are transparent."""
HALF = Image.fromarray(np.dstack([PIXELS, np.where(CLEAR, 0, 255) * np.ones((24, 1))]).astype(np.uint8))


def saved(picture: Any, file_format: str, **options: Any) -> bytes:
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    return written(lambda file: picture.save(file, file_format, **options))


def exif(*entries: tuple[int, int, bytes], orientation: int = 6) -> bytes:
    """EXIF of an orientation and other entries: tag, type and value."""
    rows = sorted([(ORIENTATION, 3, struct.pack("<HH", orientation, 0)), *entries])
    body = b"".join(struct.pack("<HHI4s", tag, kind, 1, value) for tag, kind, value in rows)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(rows)) + body + bytes(4)


def with_tag(tiff: bytes, tag: int, value: int) -> bytes:
    """A TIFF with another value of one tag."""
    start = tiff.index(struct.pack("<HHI", tag, 3, 1)) + 8
    return tiff[:start] + struct.pack("<H", value) + tiff[start + 2 :]


def turned(orientation: int) -> np.ndarray:
    """The picture as it is shown with an orientation."""
    flipped = PIXELS[:, ::-1] if orientation in (2, 4, 5, 7) else PIXELS
    return np.rot90(flipped, {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}[orientation])


def on_white(pixels: np.ndarray) -> np.ndarray:
    return np.where(CLEAR[:, None], 255, pixels)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


PALETTE = RGB.quantize(12)
LAB = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
ODD = [(0x010E, 11, struct.pack("<f", 1.5)), (0x0100, 9, struct.pack("<i", -5)), (0x011A, 5, b"\xff\xff\xff\x7f")]
"""A float where text belongs, a negative number where none may be, and a fraction beyond the end."""
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
AVIF_WITH_BROKEN_EXIF = saved(RGB, "AVIF", quality=95, exif=exif()).replace(b"II*\0", b"XX*\0")
ODD_TIFF = saved(RGB, "TIFF", tiffinfo={270: "abc", ORIENTATION: 6}).replace(
    struct.pack("<HHI", 270, 2, 4), struct.pack("<HHI", 270, 11, 1)
)
NOISE = Image.effect_noise((64, 64), 90).convert("RGB")
OTHER = Image.new("RGB", (32, 24), "red")
LOSSY = {"AVIF", "JPEG", "MPO", "WEBP"}

SOUND: dict[str, list[tuple[bytes, np.ndarray]]] = {
    ", ".join(sorted({*FORMATS, "MPO"})): [
        (saved(RGB, name, **({"quality": 95} if name in LOSSY else {})), PIXELS)
        for name in sorted({*FORMATS, "MPO"} - {"GIF"})
    ]
    + [(saved(PALETTE, "GIF"), PIXELS)],
    "grey, palette, CMYK, YCbCr or Lab": [
        (saved(GREY, "JPEG", quality=95), grey(GREY)),
        (saved(PALETTE, "PNG"), PIXELS),
        (saved(RGB.convert("CMYK"), "JPEG", quality=95), PIXELS),
        (saved(RGB.convert("CMYK"), "TIFF"), PIXELS),
        (saved(RGB.convert("YCbCr"), "TIFF"), PIXELS),
        (saved(ImageCms.applyTransform(RGB, LAB), "TIFF"), PIXELS),
    ],
    "transparent in places": [
        *((saved(HALF, name), on_white(PIXELS)) for name in ("PNG", "TIFF", "QOI")),
        (saved(HALF, "WEBP", lossless=True), on_white(PIXELS)),
        (saved(HALF.convert("LA"), "PNG"), on_white(grey(np.asarray(RGB.convert("L"))))),
        (saved(GREY, "PNG", transparency=int(GREY[0, 0])), grey(np.where(GREY[0, 0] == GREY, 255, GREY))),
        *(
            (saved(PALETTE, name, transparency=PALETTE.getpixel((0, 0))), np.where(PIXELS[0, 0] == PIXELS, 255, PIXELS))
            for name in ("PNG", "GIF")
        ),
    ],
    "16 bits a value": [
        (saved(DEEP, "PNG"), grey(GREY)),
        (saved(DEEP, "TIFF"), grey(GREY)),
        (saved(Image.fromarray(DEEP.astype(">u2")), "TIFF"), grey(GREY)),
        (b"P6 32 24 65535\n" + (PIXELS.astype(">u2") * 257).tobytes(), PIXELS),
    ],
    "PGM or PPM with another maximum than 255": [
        (b"P5 32 24 65535\n" + DEEP.astype(">u2").tobytes(), grey(GREY)),
        (b"P5 32 24 4095\n" + (DEEP >> 4).astype(">u2").tobytes(), grey(GREY)),
        (b"P6 32 24 15\n" + (PIXELS >> 4).tobytes(), (PIXELS >> 4) * 17),
    ],
    "TIFF whose zero is white": [
        (with_tag(saved(GREY, "TIFF"), 262, 0), grey(255 - GREY)),
        (with_tag(saved(DEEP, "TIFF"), 262, 0), grey(255 - GREY)),
    ],
    "turned, by EXIF or XMP": [
        *((saved(RGB, "PNG", exif=exif(orientation=number)), turned(number)) for number in range(1, 9)),
        *((saved(RGB, name, exif=exif(), quality=95), turned(6)) for name in ("JPEG", "WEBP", "AVIF")),
        *((saved(RGB, "TIFF", exif=exif(), compression=kind), turned(6)) for kind in ("raw", "tiff_lzw")),
        (saved(RGB, "JPEG", xmp=XMP, quality=95), turned(6)),
    ],
    "EXIF that is damaged, or has odd values": [
        *(
            (saved(RGB, "PNG", exif=exif(*ODD, orientation=number)), turned(shown))
            for number, shown in ((6, 6), (0, 1), (9, 1))
        ),
        *((saved(RGB, name, exif=exif(*ODD), quality=95), turned(6)) for name in ("JPEG", "WEBP")),
        *((saved(RGB, name, exif=b"Exif\0\0rubbish", quality=95), PIXELS) for name in ("JPEG", "PNG", "WEBP")),
        (AVIF_WITH_BROKEN_EXIF, turned(6)),
        (ODD_TIFF, turned(6)),
    ],
    "several pictures in a file": [
        *((saved(RGB, name, save_all=True, append_images=[OTHER]), PIXELS) for name in ("PNG", "TIFF")),
        (saved(RGB, "MPO", save_all=True, append_images=[OTHER], quality=95), PIXELS),
        (saved(PALETTE, "GIF", save_all=True, append_images=[OTHER]), PIXELS),
    ],
    "JPEG of at least twice the needed size": [(saved(RGB.resize((64, 48)), "JPEG", quality=95), PIXELS)],
    "array `h w 3` or `h w` in a `.npy` file": [
        (array_file(PIXELS), PIXELS),
        (array_file(PIXELS + 0.9 - (PIXELS == 255)), PIXELS - (PIXELS == 255) * 1),
        (array_file(np.asfortranarray(GREY)), grey(GREY)),
    ],
}


@pytest.mark.parametrize("kind", list(READ))
def test_each_kind_of_picture_is_read_as_the_page_of_inputs_says(kind: str) -> None:
    at_least = 24 if kind.startswith("JPEG of at least") else None
    for content, expected in SOUND[kind]:
        picture = read_picture(content, "x", at_least=at_least)
        assert picture.dtype == torch.uint8
        found = picture.permute(1, 2, 0).numpy().astype(int)
        assert found.shape == expected.shape
        # Colours of two blocks differ by 80 on average, and lossy formats blur their borders.
        tolerance = 8 if re.match(rb"\xff\xd8|RIFF|....ftyp", content, re.DOTALL) else 2
        assert np.abs(found - expected).mean() < tolerance, content[:12]


def test_the_page_lists_formats_and_endings() -> None:
    assert set(SOUND) == set(READ) and set(WRONG) == set(REFUSED)
    assert set(re.findall(r"`(\.\w+)`", SECTION.split("Pictures end, ")[1])) == ENDINGS


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "WEBP"])
def test_another_decoder_finds_the_same_pixels(file_format: str) -> None:
    content = saved(Image.blend(NOISE, OTHER.resize(NOISE.size), 0.4), file_format)
    try:
        other = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    except RuntimeError:
        pytest.skip(f"torchvision was built without {file_format}")
    assert (read_picture(content, "x").int() - other.int()).abs().max() <= 1


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of things that are no files with pixels, all named like pictures."""
    folder = tmp_path_factory.mktemp("strange")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "nothing.jpg").symlink_to("gone")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(saved(RGB, "PNG"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(folder / "socket.jpg"))
        yield folder


WRONG: dict[str, list[bytes | str]] = {
    "empty file, text, resource fork of macOS (`._x.jpg`), HEIC, JPEG XL, SVG, raw camera file, file cut short in its head": [
        b"",
        b"no picture",
        saved(RGB, "TIFF", compression="tiff_lzw")[:-1],
        b"\0\5\x16\7\0\2\0\0Mac OS X        ",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        b"\xff\x0a\xfa\x1f",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ],
    "cut short or damaged, pickled objects, or more than 178 million pixels": [
        b"P4 20000 20000\n",
        *(saved(NOISE, name)[:-40] for name in FORMATS),
        array_file(PIXELS)[:-9],
        array_file(np.array([[print]], dtype=object)),
        array_file(np.zeros((1, 1, 3), np.uint8)).replace(b"(1, 1, 3), }      ", b"(99999,99999,3), }"),
        b"\x93NUMPY\x01\x00v\x00{",
    ],
    "32-bit integers, or floats": [
        *(saved((GREY / scale).astype(np.float32), "TIFF") for scale in (255, 1, 1 / 257)),
        saved(GREY.astype(np.int32), "TIFF"),
        b"Pf\n32 24\n-1.0\n" + (GREY / 255).astype("<f4").tobytes(),
    ],
    "12 or 14 bits in values of 16": [saved(DEEP >> bits, name) for name in ("PNG", "TIFF") for bits in (2, 4)],
    "16 bits a value and a transparent colour": [saved(Image.fromarray(DEEP), "PNG", transparency=257)],
    "transparent everywhere": [saved(Image.new("RGBA", (9, 9)), name) for name in ("PNG", "TIFF", "WEBP")],
    "more than 50 million pixels": [saved(Image.new("1", (7100, 7100)), "PNG")],
    "a side of more than 100 times the other": [
        saved(Image.new("RGB", size), "PNG") for size in ((20000, 1), (1, 20000))
    ],
    "array of another shape, or of other things than numbers": [
        *(array_file(np.zeros(shape)) for shape in ((8, 8, 4), (8,), (1, 8, 8, 3), (0, 8))),
        *(array_file(np.array(values)) for values in (["a"], [[True]], [[1j]])),
    ],
    "array with negative, large or unknown values": [
        array_file(np.full((8, 8, 3), value)) for value in (-1, 256, 65535.0, np.nan, np.inf)
    ],
    "array of floats up to 1": [array_file(np.full((8, 8), 0.5))],
    "folder": ["folder.jpg"],
    "pipe, socket or device": ["pipe.jpg", "socket.jpg", "device.jpg"],
    "missing file, link to nothing or to itself, file without permission": ["gone.jpg", "nothing.jpg", "loop.jpg"],
    "name that is not UTF-8": [os.fsdecode(b"caf\xe9.png")],
}


@pytest.mark.parametrize("kind", list(REFUSED))
def test_each_refused_picture_has_the_sentence_of_the_page_of_inputs(kind: str, strange: Path) -> None:
    sentence = re.escape(REFUSED[kind]).replace("…", ".+")
    for wrong in WRONG[kind]:
        source = strange / wrong if isinstance(wrong, str) else wrong
        with pytest.raises(UserError) as caught:
            read_picture(source, "" if isinstance(wrong, str) else "row 3")
        assert re.fullmatch(sentence, caught.value.message), (source, caught.value)
        place = str(strange / wrong).encode(errors="backslashreplace").decode() if isinstance(wrong, str) else "row 3"
        assert caught.value.where == place and caught.value.hint


def test_files_below_a_folder(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "b/._2.jpg", ".hidden/3.jpg", "elsewhere/4.JPG", "b/Thumbs.db", "a.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "elsewhere").rename(tmp_path / "elsewhere")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "b" / "up").symlink_to("..")
    found = [str(path.relative_to(tmp_path / "in")) for path in files_below(tmp_path / "in")]
    assert found == ["a.png", "b/2.jpg", "b/Thumbs.db", "linked/4.JPG"]
    with pytest.raises(UserError, match="the folder cannot be listed"):
        files_below(tmp_path / "gone")


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Content with some bytes changed, removed, repeated or cut off, mostly in its head, where sizes and metadata are."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        place = int(rng.integers(rng.choice([48, 240, len(content)])))
        number = int(rng.choice([0, 1, 12, 255, 32768, 65535, 2**31 - 1, 2**32 - 1]))
        form = str(rng.choice(["B", "<H", ">H", "<I", ">I"]))
        value = struct.pack(form, number % 256 ** struct.calcsize(form))
        removed = int(rng.choice([len(value), 0, 20, len(content)], p=[0.75, 0.05, 0.15, 0.05]))
        changed[place : place + removed] = value
    return bytes(changed)


@pytest.mark.parametrize("count", [300, pytest.param(200_000, marks=pytest.mark.long)])
def test_damaged_pictures_are_read_or_refused_in_bounded_time_and_memory(count: int) -> None:
    rng = np.random.default_rng(count)
    sound = [content for cases in SOUND.values() for content, _ in cases]
    slowest, before = 0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        content = damaged(sound[rng.integers(len(sound))], rng)
        start = time.process_time()
        try:
            assert read_picture(content, "x").dtype == torch.uint8
        except UserError as error:
            assert error.where == "x" and error.hint and "Type-check" not in error.message, content
        slowest = max(slowest, time.process_time() - start)
    assert slowest < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1.5 * 2**20, "kilobytes"
