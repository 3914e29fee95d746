"""Tiled scenes: the pixels that rasterio reads, from the tiles that cover what was chosen and from no other byte."""

from __future__ import annotations

import io
import math
import struct
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from patchdrop.errors import DataError
from patchdrop.grid import Grid, Shape
from patchdrop.packed import gather
from patchdrop.read import tiled
from patchdrop.read.tiled import TiledScene
from patchdrop.tiff import decode as tiff_decode
from patchdrop.tiff import directory as tiff
from patchdrop.tiff import tiles
from patchdrop.tiff.resample import area_resampled
from patchdrop.transport.http import HttpFile
from patchdrop.transport.ledger import Cost, Ledger
from patchdrop.transport.ranges import LocalFile, Span
from pyramids import picture, write_cog, write_painted
from range_server import range_server

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
SIDE = 1024
SHAPE = Shape((256, 256), (64, 64), Grid(4, 4), 3)
LARGER = Shape((512, 512), (128, 128), Grid(4, 4), 3)
"""Its patches are the tiles of `pictures`."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One picture in each compression; tiles of 128 px."""
    root = tmp_path_factory.mktemp("pictures")
    return {c: write_cog(root / f"{c}.tif", picture(SIDE, SIDE), c) for c in ("DEFLATE", "JPEG", "WEBP")}


@pytest.fixture(autouse=True)
def _short_first_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are small here: the usual first read would hold much of them."""
    monkeypatch.setattr(tiff, "HEADER_BYTES", 512)
    monkeypatch.setattr(tiff, "MORE_BYTES", 0)


def scene(path: Path, shape: Shape = SHAPE, gap: int = 0) -> TiledScene:
    return TiledScene(LocalFile(path), shape, gap)


def by_rasterio(path: Path, **options: Any) -> Tensor:
    with rasterio.open(path, driver="GTiff", **options) as file:
        return torch.from_numpy(file.read())


def some_choice(cells: int, seed: int = 0, share: float = 0.3) -> Tensor:
    return torch.rand(cells, 16, generator=torch.Generator().manual_seed(seed)) < share


def boxes_of(found: TiledScene, choice: Tensor) -> list[tuple[int, int, int, int]]:
    return [found.patch_box(cell, patch) for cell, patch in choice.nonzero().tolist()]


# --- what is read


@pytest.mark.parametrize("compress", ["DEFLATE", "JPEG", "WEBP"])
def test_a_pixels_value_tells_that_lr_came_from_the_overview_and_patches_from_full_resolution(
    tmp_path: Path, compress: str
) -> None:
    path = write_painted(tmp_path / "p.tif", 1024, {1: 200, 2: 150, 4: 100, 8: 50}, compress)
    for low, colour in ((128, 150), (100, 150), (64, 100), (48, 100), (32, 50), (16, 50)):
        found = scene(path, Shape((256, 256), (low, low), Grid(4, 4), 3))
        look = found.look(range(16))
        assert look.low.shape == (16, 3, low, low)
        assert (look.low.int() - colour).abs().max() <= (0 if compress == "DEFLATE" else 2)
        packed = found.reader(range(16))(some_choice(16))
        assert (packed.pixels.int() - 200).abs().max() <= (0 if compress == "DEFLATE" else 2)


def test_requests_ranges_and_bytes_of_a_known_choice_are_exact(pictures: dict[str, Path]) -> None:
    """Patches are tiles: cell 1 is tiles 4 to 7 of rows 0 to 3, its patch 5 is tile (1, 5)."""
    with range_server() as server:
        server.files["a.tif"] = pictures["JPEG"].read_bytes()
        file = HttpFile(server.url("a.tif"))
        found = TiledScene(file, LARGER)
        server.reset()
        choice = torch.zeros(4, 16, dtype=torch.bool)
        choice[1, 5] = choice[1, 6] = choice[2, 0] = True
        found.reader(range(4))(choice)
        tiles = [1 * 8 + 5, 1 * 8 + 6, 4 * 8 + 0]
        assert sorted((a.start, a.stop) for a in server.asked) == sorted(found.full.span(tile) for tile in tiles)
        expected = Cost(3, sum(int(found.full.counts[tile]) for tile in tiles))
        assert file.ledger.of("patch") == expected == Cost(len(server.asked), server.sent)
        file.close()


@pytest.mark.parametrize("compress", ["DEFLATE", "JPEG", "WEBP"])
def test_no_byte_of_an_unchosen_tile_is_read_and_the_ledger_is_the_servers_count(
    pictures: dict[str, Path], compress: str
) -> None:
    with range_server() as server:
        server.files["a.tif"] = pictures[compress].read_bytes()
        file = HttpFile(server.url("a.tif"))
        found = TiledScene(file, LARGER)
        choice = some_choice(4)
        for group in found.groups():
            found.look(group)
            found.reader(group)(choice)
        chosen = {tile for box in boxes_of(found, choice) for tile in tiles.covering(found.full, box)}
        read = np.zeros(len(server.files["a.tif"]), bool)
        for asked in server.asked:
            assert not read[asked.start : asked.stop].any(), "read twice"
            read[asked.start : asked.stop] = True
        for tile in range(len(found.full.counts)):
            assert read[slice(*found.full.span(tile))].all() == (tile in chosen)
            assert read[slice(*found.full.span(tile))].any() == (tile in chosen)
        assert file.ledger.total == Cost(len(server.asked), server.sent)
        own = sum(int(found.full.counts[tile]) for tile in chosen) + int(found.overview.counts.sum())
        header = file.ledger.of("header").bytes
        assert file.ledger.total.bytes == own + header
        file.close()


def test_tiles_are_decoded_while_others_are_still_on_their_way(
    pictures: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, in_time = threading.Event(), []
    plain = tiff_decode.decode

    def decode(*arguments: Any) -> tiff_decode.Pixels:
        decoded.set()
        return plain(*arguments)

    with range_server() as server, closing(HttpFile(server.url("a.tif"))) as file:
        server.files["a.tif"] = pictures["DEFLATE"].read_bytes()
        found = TiledScene(file, LARGER)
        last = found.full.span(len(found.full.counts) - 1)
        every = torch.ones(4, 16, dtype=torch.bool)

        def late(_: Any, asked: Any) -> bool:
            if asked.start == last.start:
                in_time.append(decoded.wait(10))
            return False

        server.misbehave = late
        monkeypatch.setattr(tiles, "decode", decode)
        packed = found.reader(range(4))(every)
    assert in_time == [True]
    assert torch.equal(packed.pixels, scene(pictures["DEFLATE"], LARGER).reader(range(4))(every).pixels)


def test_after_a_range_that_cannot_be_had_no_other_is_begun_and_those_on_their_way_count(
    pictures: dict[str, Path],
) -> None:
    with range_server() as server, closing(HttpFile(server.url("a.tif"), in_flight=4)) as file:
        server.files["a.tif"] = pictures["DEFLATE"].read_bytes()
        found = TiledScene(file, LARGER)
        first = found.full.span(0)

        def refuse(handler: Any, asked: Any) -> bool:
            if asked.start == first.start:
                handler.answer(416, b"")
                return True
            time.sleep(0.05)
            return False

        server.misbehave = refuse
        with pytest.raises(DataError, match="holds no such bytes"):
            found.reader(range(4))(torch.ones(4, 16, dtype=torch.bool))
        assert file.ledger.total == Cost(len(server.asked), server.sent)
        assert file.ledger.of("patch").requests < len(found.full.counts)
        server.misbehave = None
        read = found.reader(range(4))(torch.ones(4, 16, dtype=torch.bool))  # what came was kept
        assert torch.equal(read.pixels[0], by_rasterio(pictures["DEFLATE"])[:, :128, :128])


def test_of_a_joined_range_only_the_tiles_that_are_needed_later_are_held(
    pictures: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled, "GROUP_PIXELS", 256 * 256 * 3 * 6)
    found = scene(pictures["DEFLATE"], gap=10**9)
    for group in found.groups():
        held = found._high._held
        parts = {id(h.answer): len(h.answer.result()) for h in held.values()}
        assert sum(parts.values()) == sum(int(found.full.counts[tile]) for tile in held)
        found.look(group)
        found.reader(group)(torch.ones(len(group), 16, dtype=torch.bool))


def test_nothing_chosen_reads_nothing_of_full_resolution(pictures: dict[str, Path]) -> None:
    found = scene(pictures["JPEG"])
    packed = found.reader(range(16))(torch.zeros(16, 16, dtype=torch.bool))
    assert len(packed.pixels) == 0 and packed.batch == 16
    assert found.transport.ledger.of("patch") == Cost(0, 0)


def test_patches_across_tiles_count_every_tile_that_covers_them(tmp_path: Path) -> None:
    """Cells of 96 px over tiles of 128 px: patch 24 px, the second cell starts at 96, its patch 1 at 120."""
    path = write_cog(tmp_path / "a.tif", picture(512, 512), block=128)
    found = scene(path, Shape((96, 96), (24, 24), Grid(4, 4), 3))
    assert (found.rows, found.cols) == (6, 6)
    choice = torch.zeros(36, 16, dtype=torch.bool)
    choice[1, 1] = True
    assert found.patch_box(1, 1) == (0, 120, 24, 144)
    ledger = Ledger()
    found.price(range(36), choice, ledger)
    assert ledger.of("patch") == Cost(2, int(found.full.counts[0] + found.full.counts[1]))
    assert found.cell_box(35) == (416, 416, 512, 512)  # ends at the border
    assert found.cell_box(6) == (96, 0, 192, 96)


@pytest.mark.parametrize("ahead", [False, True])
def test_patches_that_share_a_tile_fetch_it_once_even_in_different_groups(
    pictures: dict[str, Path], monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    shape = Shape((64, 64), (16, 16), Grid(4, 4), 3)
    monkeypatch.setattr(tiled, "GROUP_PIXELS", 64 * 64 * 3 * 5)
    found = scene(pictures["DEFLATE"], shape)
    groups = list(found.groups())
    assert [cell for group in groups for cell in group] == list(range(256))
    assert {len(group) for group in groups} == {5, 1}
    found = scene(pictures["DEFLATE"], shape)
    asked = []
    for group in found.groups():
        every = torch.ones(len(group), 16, dtype=torch.bool)
        found.look(group)
        found.ask(group, every)
        asked.append((group, every))
        if len(asked) > ahead:
            before, choice = asked.pop(0)
            found.reader(before)(choice)
        assert len(found._high._held) <= 3 * 8
    assert found.transport.ledger.of("patch") == found.everything() == Cost(64, int(found.full.counts.sum()))
    assert found.transport.ledger.of("overview").bytes == int(found.overview.counts.sum())


@pytest.mark.parametrize("gap", [0, 8, 4096, 10**9])
def test_a_plan_costs_what_its_execution_costs(pictures: dict[str, Path], gap: int) -> None:
    choice = some_choice(16)
    planned, read = scene(pictures["DEFLATE"], gap=gap), scene(pictures["DEFLATE"], gap=gap)
    ledger = Ledger()
    for group in planned.groups():
        planned.price(group, choice[group.start : group.stop], ledger)
    for group in read.groups():
        read.reader(group)(choice[group.start : group.stop])
    assert ledger.of("patch") == read.transport.ledger.of("patch")
    assert planned.transport.ledger.of("patch") == Cost(0, 0)


def test_a_gap_trades_bytes_for_requests(pictures: dict[str, Path]) -> None:
    costs = []
    for gap in (0, 8, 10**9):
        found = scene(pictures["DEFLATE"], gap=gap)
        found.reader(range(16))(some_choice(16))
        costs.append(found.transport.ledger.of("patch"))
    assert [c.requests for c in costs] == sorted((c.requests for c in costs), reverse=True)
    assert costs[0].bytes < costs[1].bytes < costs[2].bytes
    assert costs[2].requests == 1


def test_tiles_within_the_first_read_are_not_read_again(
    pictures: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = scene(pictures["JPEG"]).look(range(16))
    monkeypatch.setattr(tiff, "HEADER_BYTES", 2**20)
    found = scene(pictures["JPEG"])
    assert torch.equal(found.look(range(16)).low, expected.low)
    found.reader(range(16))(torch.ones(16, 16, dtype=torch.bool))
    assert found.transport.ledger.total == Cost(1, pictures["JPEG"].stat().st_size)
    assert found.everything() == Cost(0, 0)


# --- which pixels


@pytest.mark.parametrize("shape", [SHAPE, Shape((96, 200), (24, 50), Grid(3, 5), 3)], ids=["aligned", "odd"])
def test_lazy_equals_eager_for_100_random_masks(tmp_path: Path, shape: Shape) -> None:
    path = write_cog(tmp_path / "a.tif", picture(512, 512))
    whole = by_rasterio(path)
    cells = scene(path, shape)
    high = torch.stack([whole[:, t:b, x:r] for t, x, b, r in map(cells.cell_box, range(cells.cells))])
    generator = torch.Generator().manual_seed(1)
    for _ in range(100):
        found = scene(path, shape)
        share = torch.rand(1, generator=generator)
        choice = torch.rand(found.cells, shape.grid.patches, generator=generator) < share
        ours, theirs = found.reader(range(found.cells))(choice), gather(high, choice, shape.grid)
        assert torch.equal(ours.pixels, theirs.pixels)
        assert torch.equal(ours.image, theirs.image) and torch.equal(ours.patch, theirs.patch)


@pytest.mark.parametrize(
    ("compress", "options"),
    [
        ("DEFLATE", {}),
        ("DEFLATE", {"PREDICTOR": "YES"}),
        ("LZW", {}),
        ("LZW", {"PREDICTOR": "YES"}),
        ("ZSTD", {"PREDICTOR": "YES"}),
        ("NONE", {}),
        ("WEBP", {"QUALITY": "100"}),
        ("DEFLATE", {"BIGTIFF": "YES"}),
        ("DEFLATE", {"INTERLEAVE": "BAND"}),
    ],
    ids=str,
)
def test_pixels_of_lossless_tiles_are_rasterios_to_the_bit(
    tmp_path: Path, compress: str, options: dict[str, str]
) -> None:
    path = write_cog(tmp_path / "a.tif", picture(300, 420), compress, **options)
    whole = by_rasterio(path)
    found = scene(path, Shape((128, 128), (32, 32), Grid(4, 4), 3))
    choice = some_choice(found.cells)
    packed = found.reader(range(found.cells))(choice)
    for pixels, (t, x, b, r) in zip(packed.pixels, boxes_of(found, choice), strict=True):
        assert torch.equal(pixels, whole[:, t:b, x:r])


@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
@pytest.mark.parametrize("interleave", ["PIXEL", "BAND"])
@pytest.mark.parametrize("kind", ["uint8", "uint16"])
@pytest.mark.parametrize("compress", ["DEFLATE", "PACKBITS"])
def test_plain_tiled_files_of_any_order_are_read(
    tmp_path: Path, endian: str, interleave: str, kind: str, compress: str
) -> None:
    pixels = picture(300, 420).astype(kind) * (257 if kind == "uint16" else 1)
    path = tmp_path / "a.tif"
    more = {"predictor": 2} if compress == "DEFLATE" else {}
    profile = {"count": 3, "height": 300, "width": 420, "dtype": kind, "tiled": True, "blockxsize": 128, **more}
    options = {"blockysize": 64, "ENDIANNESS": endian, "interleave": interleave, "compress": compress}
    with rasterio.open(path, "w", driver="GTiff", photometric="RGB", **profile, **options) as file:
        file.write(pixels)
        file.build_overviews([2, 4], rasterio.enums.Resampling.average)
    found = scene(path, Shape((128, 128), (32, 32), Grid(4, 4), 3))
    packed = found.reader(range(found.cells))(torch.ones(found.cells, 16, dtype=torch.bool))
    whole = torch.from_numpy(picture(300, 420))
    for window, (t, x, b, r) in zip(packed.pixels, boxes_of(found, torch.ones(found.cells, 16)), strict=True):
        assert torch.equal(window, whole[:, t:b, x:r])


def test_jpeg_tiles_have_the_pixels_that_the_decoder_of_training_gives(pictures: dict[str, Path]) -> None:
    """GDAL's differ, by its build's JPEG library: here by a few levels, most where colours change fast."""
    found = scene(pictures["JPEG"], LARGER)
    every = torch.ones(4, 16, dtype=torch.bool)
    packed = found.reader(range(4))(every)
    raw, level = pictures["JPEG"].read_bytes(), found.full
    for pixels, box in zip(packed.pixels, boxes_of(found, every), strict=True):
        start, stop = level.span(tiles.covering(level, box)[0])
        # A JFIF file with the same tables: every decoder takes such a file's colours as YCbCr.
        jfif = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00" + level.tables[2:-2]
        image = Image.open(io.BytesIO(jfif + raw[start + 2 : stop])).convert("RGB")
        assert torch.equal(pixels, torch.from_numpy(np.array(image)).permute(2, 0, 1))
    whole = by_rasterio(pictures["JPEG"])
    theirs = torch.stack([whole[:, t:b, x:r] for t, x, b, r in boxes_of(found, every)])
    difference = (packed.pixels.int() - theirs.int()).abs().float()
    assert difference.mean() < 2 and difference.max() < 40


def test_jpeg_tiles_stored_as_rgb_and_as_grey_are_read_as_such(tmp_path: Path) -> None:
    for bands, name in ((3, "rgb.tif"), (1, "grey.tif")):
        pixels = picture(256, 256, bands)
        path = tmp_path / name
        profile = {"count": bands, "height": 256, "width": 256, "dtype": "uint8", "blockxsize": 128, "blockysize": 128}
        more = {"photometric": "RGB"} if bands == 3 else {}
        options = {"tiled": True, "compress": "JPEG", "JPEG_QUALITY": "95", "interleave": "pixel", **more}
        with rasterio.open(path, "w", driver="GTiff", **profile, **options) as file:
            file.write(pixels)
            file.build_overviews([4], rasterio.enums.Resampling.average)
        found = scene(path, Shape((128, 128), (32, 32), Grid(4, 4), bands))
        every = torch.ones(4, 16, dtype=torch.bool)
        whole = by_rasterio(path).int()
        for window, (t, x, b, r) in zip(found.reader(range(4))(every).pixels, boxes_of(found, every), strict=True):
            assert (window.int() - whole[:, t:b, x:r]).abs().max() <= 1


@pytest.mark.parametrize("low", [64, 60, 40, 128])
def test_lr_is_the_overview_averaged_over_area(pictures: dict[str, Path], low: int) -> None:
    found = scene(pictures["DEFLATE"], Shape((256, 256), (low, low), Grid(4, 4), 3))
    factor = {64: 4, 60: 4, 40: 4, 128: 2}[low]
    overview = by_rasterio(pictures["DEFLATE"], overview_level={2: 0, 4: 1}[factor]).float()
    assert found.overview.width == SIDE // factor
    side = 256 // factor
    ours = found.look(range(16)).low
    for cell in range(16):
        y, x = cell // 4 * side, cell % 4 * side
        window = overview[:, y : y + side, x : x + side]
        common = math.gcd(low, side)
        repeated = window.repeat_interleave(low // common, 1).repeat_interleave(low // common, 2)
        plain = torch.nn.functional.avg_pool2d(repeated, side // common)
        assert (ours[cell] - plain).abs().max() <= 0.501


def test_area_resampling_of_a_shifted_box_weighs_pixels_by_their_share() -> None:
    values = np.array([[[10, 20, 40, 80]]], np.uint8)
    assert area_resampled(values, (0, 0, 1, 4), (0, 0, 1, 4), (1, 2)).tolist() == [[[15, 60]]]
    assert area_resampled(values, (0, 0.5, 1, 3.5), (0, 0, 1, 4), (1, 1)).tolist() == [[[35]]]
    assert area_resampled(values, (5, 7.5, 6, 8.5), (5, 7, 6, 11), (1, 1)).tolist() == [[[15]]]
    assert area_resampled(values, (0, 0, 1, 4), (0, 0, 1, 4), (1, 4)) is values


def test_what_is_nodata_or_transparent_is_black_and_cells_of_nothing_else_are_not_seen(tmp_path: Path) -> None:
    pixels = picture(256, 256).clip(1)
    pixels[:, :128, :130] = 0
    path = write_cog(tmp_path / "nodata.tif", pixels, profile={"nodata": 0})
    assert scene(path, Shape((128, 128), (32, 32), Grid(4, 4), 3)).look(range(4)).seen.tolist() == [False, *[True] * 3]
    alpha = np.where(pixels[:1] == 0, 0, 255).astype(np.uint8)
    bright = np.where(pixels == 0, 99, pixels)
    for compress in ("DEFLATE", "WEBP"):
        path = write_cog(
            tmp_path / f"alpha{compress}.tif", np.concatenate([bright, alpha]), compress, profile={"alpha": "YES"}
        )
        found = scene(path, Shape((128, 128), (32, 32), Grid(4, 4), 3))
        look = found.look(range(4))
        assert look.seen.tolist() == [False, *[True] * 3]
        assert not look.low[0].any()
        packed = found.reader(range(4))(torch.ones(4, 16, dtype=torch.bool))
        assert not packed.pixels[packed.image == 0].any()
        assert packed.pixels[packed.image == 3].float().mean() > 50


@pytest.mark.parametrize("bits", [8, 16])
def test_colours_stored_times_alpha_are_not_multiplied_again(tmp_path: Path, bits: int) -> None:
    kind = np.dtype(f"uint{bits}")
    scale = np.iinfo(kind).max // 255
    colours, alpha = np.full((3, 256, 256), 200, int), np.full((1, 256, 256), 102, int)
    alpha[:, :, :64], alpha[:, :, 64:128] = 255, 0
    times = (colours * alpha + 127) // 255
    found = {}
    for name, stored, value in (("YES", colours, "NON-PREMULTIPLIED"), ("PREMULTIPLIED", times, "PREMULTIPLIED")):
        pixels = (np.concatenate([stored, alpha]) * scale).astype(kind)
        path = tmp_path / f"{name}.tif"
        size = {"count": 4, "height": 256, "width": 256, "dtype": kind, "photometric": "RGB", "alpha": value}
        with rasterio.open(path, "w", driver="GTiff", tiled=True, blockxsize=128, blockysize=128, **size) as file:
            file.write(pixels)
            file.build_overviews([4], rasterio.enums.Resampling.nearest)
        opened = scene(path)
        assert opened.full.premultiplied == (name == "PREMULTIPLIED") and opened.full.alpha == 3
        found[name] = opened.reader([0])(torch.ones(1, 16, dtype=torch.bool)).pixels
    assert torch.equal(found["YES"], found["PREMULTIPLIED"])
    assert found["YES"][:, 0, 0, 0].tolist() == [200, 0, 80, 80] * 4


def test_bits_stored_last_to_first_are_refused(tmp_path: Path) -> None:
    path = write_cog(tmp_path / "a.tif", picture(512, 512))
    content = bytearray(path.read_bytes())
    (at,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, at)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        if struct.unpack_from("<H", content, entry) == (262,):  # photometric, whose place FillOrder takes
            struct.pack_into("<HHIHH", content, entry, 266, 3, 1, 2, 0)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"last to first \(FillOrder 2\): write the file again"):
        scene(path)


def test_tiles_that_are_not_stored_cost_nothing_and_are_nodata(tmp_path: Path) -> None:
    pixels = picture(256, 256).clip(1)
    pixels[:, :128, :128] = 0
    path = write_cog(tmp_path / "sparse.tif", pixels, profile={"nodata": 0}, SPARSE_OK="YES")
    found = scene(path, Shape((128, 128), (32, 32), Grid(4, 4), 3))
    assert found.full.counts.tolist()[0] == 0 and found.everything().requests == 3
    choice = torch.zeros(4, 16, dtype=torch.bool)
    choice[0] = True
    assert not found.reader(range(4))(choice).pixels.any()
    assert found.transport.ledger.of("patch") == Cost(0, 0)
    assert not found.look([0]).seen.any()


# --- what does not fit, and hostile files


def test_a_scene_that_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    cases: list[tuple[str, Any, Shape, str]] = [
        ("bands", write_cog(tmp_path / "4.tif", picture(512, 512, 4)), SHAPE, "4 bands, the model takes 3"),
        ("small", write_cog(tmp_path / "s.tif", picture(200, 512)), SHAPE, "512 x 200 px is smaller than the model's"),
        ("overview", write_cog(tmp_path / "o.tif", picture(512, 512), OVERVIEWS="NONE"), SHAPE, "has no overview"),
        (
            "float",
            write_cog(tmp_path / "f.tif", picture(512, 512).astype(np.float32)),
            SHAPE,
            "samples are float32, only uint8 and uint16",
        ),
        ("lerc", write_cog(tmp_path / "l.tif", picture(512, 512), "LERC"), SHAPE, "compression 34887 is not read"),
    ]
    strips = tmp_path / "strips.tif"
    with rasterio.open(strips, "w", driver="GTiff", count=3, height=512, width=512, dtype="uint8") as file:
        file.write(picture(512, 512))
    cases.append(("strips", strips, SHAPE, "is stored in strips, not in tiles"))
    for name, path, shape, words in cases:
        with pytest.raises(DataError, match=words) as caught:
            scene(path, shape)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value), name


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"II*\0",
        b"<VRTDataset rasterXSize='9' rasterYSize='9'><SourceFilename>/etc/passwd</SourceFilename></VRTDataset>",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"II*\0" + bytes(4000),
        b"II*\0\xff\xff\xff\x7f" + bytes(100),
        b"MM\0+\0\x08\0\0" + b"\xff" * 200,
    ],
    ids=["empty", "stub", "vrt", "png", "zeros", "beyond", "ones"],
)
def test_what_is_no_tiff_is_refused_whatever_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"no TIFF file|damaged TIFF header"):
        scene(path)


def patched(path: Path, tag: int, value: int) -> bytes:
    """A classic little-endian TIFF with one inline value of its first directory replaced."""
    data = bytearray(path.read_bytes())
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, entry)[0] == tag:
            struct.pack_into("<I", data, entry + 8, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("tag", "value"),
    [(256, 2**31), (257, 0), (277, 60_000), (322, 2**30), (323, 0), (324, 2**32 - 8), (259, 99), (317, 9), (284, 2)],
)
def test_absurd_tags_are_refused_before_memory_is_taken_for_them(
    pictures: dict[str, Path], tmp_path: Path, tag: int, value: int
) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(patched(pictures["DEFLATE"], tag, value))
    with pytest.raises(DataError):
        scene(path)


def retyped(data: bytes, tag: int, kind: int, count: int, value: bytes) -> bytearray:
    """A classic little-endian TIFF with one entry of its first directory replaced, 339 if there is none."""
    changed = bytearray(data)
    (at,) = struct.unpack_from("<I", changed, 4)
    (entries,) = struct.unpack_from("<H", changed, at)
    places = {struct.unpack_from("<H", changed, e)[0]: e for e in range(at + 2, at + 2 + 12 * entries, 12)}
    struct.pack_into("<HHI4s", changed, places.get(tag, places[339]), tag, kind, count, value)
    return changed


@pytest.mark.parametrize("tag", [254, 256, 257, 258, 259, 262, 277, 284, 317, 322, 323, 324, 325, 338, 339, 34735])
def test_a_tag_that_is_no_whole_number_is_one_of_our_errors(
    pictures: dict[str, Path], tmp_path: Path, tag: int
) -> None:
    for number in (math.nan, math.inf):
        (tmp_path / "a.tif").write_bytes(
            retyped(pictures["DEFLATE"].read_bytes(), tag, 11, 1, struct.pack("<f", number))
        )
        with suppress(DataError):
            scene(tmp_path / "a.tif")


def test_tags_that_name_the_same_bytes_over_and_over_take_no_memory(
    pictures: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff, "MAX_HEADER_BYTES", 20_000)
    data = pictures["DEFLATE"].read_bytes()
    for tag in (256, 257, 258):
        data = bytes(retyped(data, tag, 1, 8000, struct.pack("<I", 1000)))
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(DataError, match="header larger than"):
        scene(tmp_path / "a.tif")


def test_a_tile_that_claims_far_more_bytes_than_it_decodes_to_is_refused(
    pictures: dict[str, Path], tmp_path: Path
) -> None:
    data = pictures["DEFLATE"].read_bytes()
    counts = struct.pack("<64I", *[2 * 128 * 128 * 3 + 1025] * 64)
    path = tmp_path / "a.tif"
    path.write_bytes(retyped(data, 325, 4, 64, struct.pack("<I", len(data))) + counts)
    with pytest.raises(DataError, match="a tile of more than 99328 bytes"):
        scene(path)


def test_colours_that_are_not_rgb_are_refused_and_a_predictor_counts_only_where_there_is_one(tmp_path: Path) -> None:
    profile = {"count": 3, "height": 256, "width": 256, "dtype": "uint8", "blockxsize": 128, "blockysize": 128}
    for compress in ("DEFLATE", "PACKBITS", "NONE"):
        plain, path = tmp_path / "plain.tif", tmp_path / "a.tif"
        options = {"tiled": True, "photometric": "RGB", "compress": compress, "interleave": "pixel"}
        with rasterio.open(plain, "w", driver="GTiff", **profile, **options) as file:
            file.write(picture(256, 256))
            file.build_overviews([4], rasterio.enums.Resampling.average)
        shape = Shape((128, 128), (32, 32), Grid(4, 4), 3)
        for photometric in (6, 8):
            path.write_bytes(patched(plain, 262, photometric))
            with pytest.raises(DataError, match="only RGB and grey are read"):
                scene(path, shape)
        if compress != "DEFLATE":
            path.write_bytes(retyped(plain.read_bytes(), 317, 3, 1, struct.pack("<I", 2)))
            pixels = scene(path, shape).reader([0])(torch.ones(1, 16, dtype=torch.bool)).pixels
            assert torch.equal(pixels[0], by_rasterio(path)[:, :32, :32])


def test_a_tile_that_is_not_what_the_header_says_is_refused(pictures: dict[str, Path], tmp_path: Path) -> None:
    for compress in ("DEFLATE", "JPEG", "WEBP"):
        level = scene(pictures[compress]).full
        data = bytearray(pictures[compress].read_bytes())
        start, stop = level.span(0)
        data[start:stop] = bytes(stop - start)
        path = tmp_path / "a.tif"
        path.write_bytes(data)
        found = scene(path)
        with pytest.raises(DataError, match=f"damaged {compress.lower()} tile") as caught:
            found.reader(range(16))(torch.ones(16, 16, dtype=torch.bool))
        assert "\n" not in str(caught.value)
        path.unlink()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_gives_pixels_or_one_of_our_errors(
    pictures: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(pictures[data.draw(st.sampled_from(["DEFLATE", "JPEG", "WEBP"]))].read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, 4000))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(content), 3000, 700]))
    path = tmp_path_factory.mktemp("damaged") / "a.tif"
    path.write_bytes(content[:cut])
    with suppress(DataError):
        found = scene(path)
        found.look(range(min(4, found.cells)))
        found.reader(range(min(4, found.cells)))(some_choice(min(4, found.cells)))


def test_a_header_anywhere_in_the_file_is_read_in_few_requests(
    pictures: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff, "MORE_BYTES", 4096)
    for compress in pictures:
        assert scene(pictures[compress]).transport.ledger.of("header").requests <= 3
    path = tmp_path / "tail.tif"
    profile = {"count": 3, "height": 512, "width": 512, "dtype": "uint8", "tiled": True, "compress": "DEFLATE"}
    with rasterio.open(path, "w", driver="GTiff", blockxsize=128, blockysize=128, **profile) as file:
        file.write(picture(512, 512))
        file.build_overviews([2, 4, 8], rasterio.enums.Resampling.average)
    found = scene(path)
    assert [level.width for level in found.header.levels] == [512, 256, 128, 64]
    assert found.transport.ledger.of("header").requests <= 6


def test_spans_of_a_level_are_its_tiles(pictures: dict[str, Path]) -> None:
    level = scene(pictures["JPEG"]).full
    content = pictures["JPEG"].read_bytes()
    for tile in range(len(level.counts)):
        start, stop = level.span(tile)
        assert isinstance(level.span(tile), Span)
        assert content[start : start + 2] == b"\xff\xd8" and content[stop - 2 : stop] == b"\xff\xd9"
