"""Any bytes give the right pixels or one line that says why not."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from patchdrop.errors import DataError, UsageError
from patchdrop.read import images
from patchdrop.read.images import decode_image, read_image

RGB = (200, 100, 50)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_chunk(name: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def raw_png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + head + extra + data + png_chunk(b"IEND")


def raw_tiff(tags: dict[int, tuple[int, int]], pixels: bytes) -> bytes:
    """A little-endian TIFF of 2 x 1 px in one strip: tag -> (type, value)."""
    tags = {256: (4, 2), 257: (4, 1), 259: (3, 1), 277: (3, 1), 278: (4, 1), 279: (4, len(pixels)), **tags}
    tags[273] = (4, 8 + 2 + 12 * (len(tags) + 1) + 4)
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + pixels


def gradient(height: int, width: int) -> Image.Image:
    """Every pixel different: red is the row, green the column, blue their sum."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([rows, columns, rows + columns], -1).astype(np.uint8))


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def grey(data: bytes) -> list[int]:
    return decode_image(data, "image", None, channels=1).flatten().tolist()


def first_pixel(data: bytes) -> list[int]:
    return decode_image(data, "image", None)[:, 0, 0].tolist()


def refusal(data: bytes, size: tuple[int, int] | None = None, box: images.Box | None = None) -> str:
    with pytest.raises(DataError) as caught:
        decode_image(data, "the/image", size, 3, box)
    text = str(caught.value)
    assert text.startswith("the/image: ")
    assert "\n" not in text
    return text


# --- pixels


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_give_the_stored_pixels(tmp_path: Path, kind: str, options: dict[str, object]) -> None:
    path = tmp_path / "image.of-any-name"
    path.write_bytes(encoded(gradient(5, 7), kind, **options))
    pixels = read_image(path, None)
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()
    assert torch.equal(pixels, as_tensor(gradient(5, 7)))
    assert torch.equal(read_image(path, (5, 7)), pixels)


def test_jpeg_gives_the_stored_colour() -> None:
    pixels = decode_image(encoded(Image.new("RGB", (16, 16), RGB), "JPEG", quality=100), "image", None)
    assert (pixels.float() - torch.tensor(RGB).view(3, 1, 1)).abs().max() <= 1


def test_one_channel_is_the_luma_of_rgb() -> None:
    assert grey(encoded(Image.new("RGB", (1, 1), RGB), "PNG")) == [124]  # 0.299 R + 0.587 G + 0.114 B
    assert grey(encoded(Image.new("L", (1, 1), 77), "PNG")) == [77]


def test_grey_becomes_three_equal_channels() -> None:
    assert first_pixel(encoded(Image.new("L", (1, 1), 77), "PNG")) == [77, 77, 77]


def test_one_bit_becomes_black_and_white() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert grey(encoded(image, "PNG")) == [0, 255]


@pytest.mark.parametrize("kind", ["<u2", ">u2", "<i4"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_sixteen_bit_tiff_is_divided_by_257_not_clipped(kind: str, compression: str | None) -> None:
    levels = np.array([[0, 128, 129, 257, 25700, 65535]], kind)
    assert grey(encoded(Image.fromarray(levels), "TIFF", compression=compression)) == [0, 0, 1, 1, 100, 255]


def test_sixteen_bit_png_is_scaled_not_clipped() -> None:
    assert grey(raw_png(3, 1, 16, 0, b"\0" + struct.pack(">3H", 257, 25700, 65535))) == [1, 100, 255]
    assert first_pixel(raw_png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 257, 25700, 65535))) == [1, 100, 255]


def test_twelve_bit_tiff_uses_its_own_range() -> None:
    assert grey(raw_tiff({258: (3, 12), 262: (3, 1)}, bytes([0xFF, 0xF8, 0x00]))) == [255, 128]


@pytest.mark.parametrize(("bits", "pixels"), [(8, bytes([0, 255])), (16, struct.pack("<2H", 0, 65535))])
def test_tiff_whose_white_is_zero_is_turned_round(bits: int, pixels: bytes) -> None:
    assert grey(raw_tiff({258: (3, bits), 262: (3, 0)}, pixels)) == [255, 0]


def test_samples_of_unknown_range_are_refused() -> None:
    assert "floating-point" in refusal(encoded(Image.fromarray(np.ones((1, 1), np.float32)), "TIFF"))
    for value in (-1, 65536):
        assert "0..65535" in refusal(encoded(Image.fromarray(np.full((1, 1), value, np.int32)), "TIFF"))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_composited_over_black(kind: str) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    image = Image.new("RGBA", (2, 1), (*RGB, 128))
    image.putpixel((1, 0), (*RGB, 0))
    pixels = decode_image(encoded(image, kind, **options), "image", None)
    assert pixels[:, 0].T.tolist() == [[100, 50, 25], [0, 0, 0]]


def test_grey_alpha_is_composited_over_black() -> None:
    assert grey(encoded(Image.new("LA", (1, 1), (200, 128)), "PNG")) == [100]
    assert grey(raw_png(1, 1, 16, 4, b"\0" + struct.pack(">2H", 65535, 0x8080))) == [128]


def test_the_transparent_colour_of_a_png_is_black() -> None:
    transparent = png_chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))
    two = decode_image(raw_png(2, 1, 8, 2, bytes([0, 1, 2, 3, 4, 5, 6]), transparent), "image", None)
    assert two[:, 0].T.tolist() == [[0, 0, 0], [4, 5, 6]]
    level = png_chunk(b"tRNS", struct.pack(">H", 25700))
    assert grey(raw_png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 25700, 65535), level)) == [0, 255]


def palette_image() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([*RGB, 1, 2, 3])
    image.putpixel((1, 0), 1)
    return image


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_palette_gives_its_colours(kind: str) -> None:
    pixels = decode_image(encoded(palette_image(), kind), "image", None)
    assert pixels[:, 0].T.tolist() == [list(RGB), [1, 2, 3]]


@pytest.mark.parametrize(("transparency", "first"), [(0, [0, 0, 0]), (b"\x80\xff", [100, 50, 25])])
def test_palette_transparency_is_composited_over_black(transparency: int | bytes, first: list[int]) -> None:
    pixels = decode_image(encoded(palette_image(), "PNG", transparency=transparency), "image", None)
    assert pixels[:, 0].T.tolist() == [first, [1, 2, 3]]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_gives_rgb(kind: str) -> None:
    assert first_pixel(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), kind)) == [255, 0, 0]


def test_lab_gives_rgb() -> None:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(Image.new("RGB", (1, 1), RGB), *profiles, outputMode="LAB")
    assert lab is not None
    assert first_pixel(encoded(lab, "TIFF")) == pytest.approx(RGB, abs=3)


STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,  # to be shown turned by 270 degrees
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", STORED_AS)
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    upright = gradient(2, 3)
    turn = STORED_AS[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if turn is None else upright.transpose(turn)
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(stored, kind, exif=exif, **options)
    assert torch.equal(decode_image(data, "image", None), as_tensor(upright))
    corner = decode_image(data, "image", None, 3, (2, 0, 3, 2))
    assert torch.equal(corner, as_tensor(upright)[:, :, 2:])


def test_exif_orientation_of_a_jpeg_is_applied_to_a_reduced_decode_too() -> None:
    upright = Image.new("RGB", (768, 384), (255, 0, 0))
    upright.paste((0, 0, 255), (384, 0, 768, 384))
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    pixels = decode_image(encoded(stored, "JPEG", quality=95, exif=exif), "image", (16, 32)).int()
    assert (pixels[:, :, :14] - torch.tensor([254, 0, 0]).view(3, 1, 1)).abs().max() <= 4
    assert (pixels[:, :, 18:] - torch.tensor([0, 0, 254]).view(3, 1, 1)).abs().max() <= 4


def test_damaged_exif_counts_as_upright() -> None:
    data = encoded(gradient(2, 3), "PNG", exif=b"Exif\0\0not a tiff header at all")
    assert torch.equal(decode_image(data, "image", None), as_tensor(gradient(2, 3)))


# --- size and box


def test_the_centre_is_cut_out_without_resampling_where_one_side_fits() -> None:
    wide, tall = encoded(gradient(4, 9), "PNG"), encoded(gradient(9, 4), "PNG")
    assert torch.equal(decode_image(wide, "image", (4, 4)), as_tensor(gradient(4, 9))[:, :, 2:6])
    assert torch.equal(decode_image(tall, "image", (4, 4)), as_tensor(gradient(9, 4))[:, 2:6])


def test_the_shorter_side_covers_the_wanted_size() -> None:
    image = Image.new("RGB", (40, 8), RGB)
    image.paste((0, 0, 0), (24, 0, 40, 8))
    image.paste((0, 0, 0), (0, 0, 16, 8))
    pixels = decode_image(encoded(image, "PNG"), "image", (4, 4))  # shows columns 16 to 24
    middle = pixels[:, :, 1:3].int() - torch.tensor(RGB).view(3, 1, 1)
    assert middle.abs().max() <= 2  # bicubic resampling overshoots a little beside an edge


def test_reduction_is_antialiased() -> None:
    board = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8))
    for image in (board, board.convert("1"), board.convert("P")):
        pixels = decode_image(encoded(image, "PNG"), "image", (16, 16))
        assert (pixels.float() - 127.5).abs().max() <= 1


def test_a_smaller_image_is_enlarged() -> None:
    assert decode_image(encoded(Image.new("RGB", (2, 1), RGB), "PNG"), "image", (5, 7)).tolist() == [
        [[level] * 7] * 5 for level in RGB
    ]


def test_box_is_cut_out_to_the_pixel() -> None:
    data, whole = encoded(gradient(6, 8), "PNG"), as_tensor(gradient(6, 8))
    assert torch.equal(decode_image(data, "image", None, 3, (2, 1, 5, 5)), whole[:, 1:5, 2:5])
    assert torch.equal(decode_image(data, "image", (4, 3), 3, (2, 1, 5, 5)), whole[:, 1:5, 2:5])


def test_box_is_clamped_to_the_image() -> None:
    data, whole = encoded(gradient(6, 8), "PNG"), as_tensor(gradient(6, 8))
    assert torch.equal(decode_image(data, "image", None, 3, (-9, 4, 3, 99)), whole[:, 4:, :3])


@pytest.mark.parametrize(
    "box",
    [(8, 0, 9, 6), (-5, 0, 0, 6), (3, 3, 3, 4), (3.6, 3, 4.4, 5), (5, 0, 2, 6), (0, 0, float("nan"), 6)],
)
@pytest.mark.parametrize("size", [None, (2, 2)])
def test_box_without_a_pixel_is_refused(box: images.Box, size: tuple[int, int] | None) -> None:
    assert "correct" in refusal(encoded(gradient(6, 8), "PNG"), size, box)


@settings(max_examples=200, deadline=None)
@example((-19.55, 72.26, 82.49, 106.13), (1, 19), "PNG")  # rounded to just above the image
@example((0.28, 30.03, 116.1, 87.03), (21, 35), "PNG")  # rounded to just right of it
@given(
    st.tuples(*[st.floats(-20, 120)] * 4),
    st.none() | st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(["PNG", "JPEG"]),
)
def test_any_box_with_pixels_is_cut_out(box: images.Box, size: tuple[int, int] | None, kind: str) -> None:
    if min(min(box[2], 90) - max(box[0], 0), min(box[3], 90) - max(box[1], 0)) < 1.5:
        return  # may round to no pixel, which other tests are about
    pixels = decode_image(NINETY[kind], "image", size, 3, box)
    assert size is None or tuple(pixels.shape) == (3, *size)


NINETY = {kind: encoded(gradient(90, 90), kind) for kind in ("PNG", "JPEG")}


def test_reduced_decoding_of_a_jpeg_gives_what_full_decoding_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns = np.mgrid[:600, :900]
    waves = np.stack([128 + 100 * np.sin(rows / 40), 128 + 100 * np.sin(columns / 60), rows * 0 + 90], -1)
    data = encoded(Image.fromarray(waves.astype(np.uint8)), "JPEG", quality=95)
    for box in (None, (100.0, 50.0, 700.0, 450.0)):
        reduced = decode_image(data, "image", (24, 36), 3, box).int()
        with monkeypatch.context() as patch:
            patch.setattr(images, "_draft", lambda *_: 1)
            full = decode_image(data, "image", (24, 36), 3, box).int()
        assert not torch.equal(reduced, full)  # else nothing was reduced
        assert (reduced - full).abs().max() <= 2


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_channel_counts_are_a_usage_error(channels: int) -> None:
    with pytest.raises(UsageError, match=r"3 \(RGB\) or 1"):
        decode_image(encoded(gradient(2, 2), "PNG"), "image", None, channels)


def test_a_size_of_nothing_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        decode_image(encoded(gradient(2, 2), "PNG"), "image", (0, 4))


# --- limits, before anything is decoded


def test_pixel_limit_holds_for_the_header_alone() -> None:
    for data in (
        raw_png(4097, 4096, 8, 2, b""),
        raw_tiff({256: (4, 4097), 257: (4, 4096), 258: (3, 8), 262: (3, 1)}, b""),
        encoded(Image.new("L", (4097, 4096)), "JPEG", progressive=True),
    ):
        assert "4097 x 4096 px" in refusal(data, (8, 8))


def test_a_whole_jpeg_has_the_same_limit_but_a_reduced_one_has_a_larger() -> None:
    data = encoded(Image.new("L", (4097, 4096), 9), "JPEG")
    assert "16.8 megapixels" in refusal(data)
    assert decode_image(data, "image", (1, 1), 1).tolist() == [[[9]]]


def test_a_jpeg_counts_as_large_as_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_JPEG_PIXELS", 64 * 64)
    data = encoded(Image.new("RGB", (512, 512)), "JPEG")
    assert decode_image(data, "image", (16, 16)).shape == (3, 16, 16)  # decoded at 1/8
    assert "128 x 128 px" in refusal(data, (32, 32))  # at 1/4


def test_a_jpeg_with_a_scan_for_each_colour_is_held_whole_and_counts_so() -> None:
    data = bytearray(encoded(Image.new("RGB", (4097, 4096)), "JPEG"))
    scan = data.index(b"\xff\xda")
    assert data[scan + 4] == 3
    data[scan + 4] = 1
    assert "4097 x 4096 px" in refusal(bytes(data), (8, 8))


def test_pillows_own_limit_is_not_called_damage() -> None:
    assert "too large for Pillow's own limit: cut" in refusal(raw_png(20_000, 10_000, 8, 0, b""))


def test_side_limit() -> None:
    assert f"{images.MAX_SIDE} px a side" in refusal(raw_png(1, images.MAX_SIDE + 1, 8, 0, b""))


def test_byte_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(encoded(gradient(2, 2), "PNG"))
    data = path.read_bytes()
    monkeypatch.setattr(images, "MAX_BYTES", 16)
    assert "larger than" in refusal(data)
    monkeypatch.delattr(Path, "read_bytes")  # nothing is read
    with pytest.raises(DataError, match="larger than"):
        read_image(path, None)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_several_frames_are_refused(kind: str) -> None:
    second = Image.new("RGB", (8, 8), (0, 0, 255))
    data = encoded(Image.new("RGB", (8, 8), RGB), kind, save_all=True, append_images=[second])
    assert "save one image a file" in refusal(data)


@pytest.mark.parametrize("subfile", [1, 4])
def test_overviews_and_masks_of_a_tiff_are_no_pages(subfile: int) -> None:
    overview = Image.new("RGB", (2, 2), (0, 0, 255))
    image = Image.new("RGB", (4, 4), RGB)
    data = bytearray(encoded(image, "TIFF", save_all=True, append_images=[overview], tiffinfo={254: 0}))
    assert "holds 2 pages" in refusal(bytes(data))
    data[data.rindex(struct.pack("<HHI", 254, 4, 1)) + 8] = subfile  # of the second image
    assert first_pixel(bytes(data)) == list(RGB)


def test_previews_behind_a_phones_jpeg_are_passed_over() -> None:
    second = Image.new("RGB", (16, 16), (0, 0, 255))
    data = encoded(Image.new("RGB", (16, 16), RGB), "MPO", save_all=True, append_images=[second], quality=100)
    assert first_pixel(data) == pytest.approx(RGB, abs=1)


def test_other_formats_are_refused() -> None:
    for kind in ("GIF", "BMP", "PPM"):
        assert "not a JPEG, PNG, WebP or TIFF image" in refusal(encoded(gradient(2, 2), kind))


def test_files_made_to_be_slow_are_refused_at_once() -> None:
    assert "overlong header" in refusal(b"\xff\xd8\xff" + b"\xff" * 2**17)
    assert "overlong header" in refusal(b"\xff\xd8\xff" + b"\xd0\xff" * 2**17)
    assert "overlong header" in refusal(b"\xff\xd8" + b"\xff\xe1\0\2" * 2**17)
    assert "overlong header" in refusal(b"\xff\xd8" + (b"\xff\xe1\xff\xff" + b"\0" * 65533) * 260)
    scans = encoded(gradient(8, 8), "JPEG") + b"\xff\xda" * images.MAX_JPEG_SCANS
    assert "scans" in refusal(scans)
    assert "chunks" in refusal(raw_png(1, 1, 8, 0, b"\0\0", png_chunk(b"abCd") * images.MAX_PARTS))
    strips = struct.pack("<IHHHII", 8, 1, 273, 4, images.MAX_TIFF_VALUES + 1, 0)
    assert "too many strips" in refusal(b"II*\0" + strips + b"\0" * 4)
    wide = raw_tiff({258: (3, 8), 262: (3, 1), 322: (4, 2**16), 323: (4, 2**16)}, b"\0\0")
    assert "overlarge tiles" in refusal(wide)
    assert "too many tags" in refusal(b"II*\0" + struct.pack("<IH", 8, 5000) + b"\0" * 16)
    chain = b"".join(struct.pack("<HI", 0, 14 + 6 * i) for i in range(100))
    assert "more than 64 images" in refusal(b"II*\0" + struct.pack("<I", 8) + chain)


# --- damaged files


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.png: no such file: check"):
        read_image(tmp_path / "absent.png", None)
    with pytest.raises(DataError, match="not a file: check"):
        read_image(tmp_path, None)
    with pytest.raises(DataError, match="check the path"):
        read_image(Path("a\0b"), None)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "image.png").touch()
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(DataError, match=r"image\.png: cannot be read .*Permission denied"):
        read_image(tmp_path / "image.png", None)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "image.png")
    with pytest.raises(DataError, match="not a file"):
        read_image(tmp_path / "image.png", None)


SAMPLES = {
    "JPEG": encoded(gradient(24, 17), "JPEG"),
    "progressive JPEG": encoded(gradient(24, 17), "JPEG", progressive=True),
    "PNG": encoded(gradient(24, 17), "PNG"),
    "palette PNG": encoded(gradient(24, 17).quantize(8), "PNG", transparency=0),
    "WebP": encoded(gradient(24, 17), "WEBP"),
    "TIFF": encoded(gradient(24, 17), "TIFF"),
    "LZW TIFF": encoded(gradient(24, 17), "TIFF", compression="tiff_lzw"),
    "16-bit TIFF": encoded(Image.fromarray(np.arange(99, dtype=np.uint16).reshape(9, 11)), "TIFF"),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_file_cut_in_half_is_refused(kind: str) -> None:
    assert "replace or remove it" in refusal(SAMPLES[kind][: len(SAMPLES[kind]) // 2])


def image_or_refusal(data: bytes) -> None:
    try:
        pixels = decode_image(data, "image", (8, 8))
    except DataError as error:
        told = str(error)
    else:
        told = f"{tuple(pixels.shape)} {pixels.dtype}"
        assert told == "(3, 8, 8) torch.uint8"
    assert "\n" not in told


FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MAGIC = [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x40\0\0\0WEBPVP8 ", b"II*\0", b"MM\0*", b"II+\0"]


@pytest.mark.filterwarnings("ignore")
@FUZZ
@given(st.sampled_from(MAGIC), st.binary(max_size=300))
def test_random_bytes_give_an_image_or_a_data_error(magic: bytes, rest: bytes) -> None:
    image_or_refusal(magic + rest)


@pytest.mark.filterwarnings("ignore")
@FUZZ
@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_truncated_files_give_an_image_or_a_data_error(kind: str, data: st.DataObject) -> None:
    whole = SAMPLES[kind]
    image_or_refusal(whole[: data.draw(st.integers(0, len(whole)))])


@pytest.mark.filterwarnings("ignore")
@settings(FUZZ, max_examples=400)
@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_files_with_flipped_bits_give_an_image_or_a_data_error(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(SAMPLES[kind])
    # Headers are short and decide the most, so half of the damage is done to them.
    place = st.integers(0, 63) | st.integers(0, len(damaged) - 1)
    for at, bit in data.draw(st.lists(st.tuples(place, st.integers(0, 7)), min_size=1, max_size=8)):
        damaged[at] ^= 1 << bit
    image_or_refusal(bytes(damaged))


def test_no_exception_of_a_decoder_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (MemoryError, SyntaxError, struct.error, ValueError, EOFError, Image.DecompressionBombWarning):

        def fail(*_: object, kind: type[Exception] = kind) -> None:
            raise kind("first line\nsecond line")

        monkeypatch.setattr(images, "_to_eight_bit", fail)
        assert "first line second line" in refusal(encoded(gradient(2, 2), "PNG"))
