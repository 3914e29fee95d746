"""Lists of scenes: the same scenes from every form, one line for each row that names none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from patchdrop.errors import DataError, PatchDropError, UsageError
from patchdrop.scenes.listing import Source, sources_of

COG = "image/tiff; application=geotiff; profile=cloud-optimized"


def item(name: str, **assets: tuple[str, str]) -> dict[str, Any]:
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "geometry": None,
        "properties": {"datetime": "2026-01-01T00:00:00Z"},
        "links": [],
        "assets": {key: {"href": href, "type": kind} for key, (href, kind) in assets.items()},
    }


def collection(*items: Any) -> str:
    return json.dumps({"type": "FeatureCollection", "features": list(items)})


LISTS = {
    "list.csv": "name, scene ,\nx,a.tif,\ny,,\nz,sub/b.tif,\nu,s3://bucket/c.tif,\nv,a,b,c,d\nw,ftp://h/x.tif,\n",
    "list.jsonl": '{"scene": "a.tif"}\n\n{"scen": 1}\n{"scene": "sub/b.tif"}\n{"scene": "s3://bucket/c.tif"}\nno\n'
    '{"scene": "ftp://h/x.tif"}\n',
    "list.json": collection(
        item("one", data=("a.tif", COG), thumbnail=("t.png", "image/png")),
        {"type": "Feature", "id": "broken"},
        item("two", data=("sub/b.tif", "image/vnd.stac.geotiff; cloud-optimized=true")),
        item("three", data=("s3://bucket/c.tif", COG)),
        item("four", thumbnail=("t.png", "image/png")),
        item("five", data=("ftp://h/x.tif", COG)),
    ),
}


@pytest.mark.parametrize("name", LISTS)
def test_every_form_names_the_same_scenes_and_each_bad_row_is_one_line(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text(LISTS[name])
    said: list[str] = []
    found = sources_of(["first.tif"], file, None, said.append)
    names = ["first.tif", str(tmp_path / "a.tif"), str(tmp_path / "sub/b.tif"), "s3://bucket/c.tif"]
    assert found == [Source(name) for name in names]
    assert len(said) == 3
    assert all(line.startswith(f"{file}: ") and "\n" not in line for line in said)
    assert "begins with http://" in said[-1]


def test_the_asset_is_the_one_geotiff_or_the_one_that_is_named(tmp_path: Path) -> None:
    file = tmp_path / "item.json"
    file.write_text(json.dumps(item("x", red=("r.tif", COG), green=("/data/g.tif", COG))))
    said: list[str] = []
    assert sources_of(None, file, None, said.append) == []
    assert "several GeoTIFFs (red, green): pick one with --asset" in said[0]
    assert sources_of(None, file, "green", said.append) == [Source("/data/g.tif")]
    assert sources_of(None, file, "blue", said.append) == []
    assert "no asset 'blue', it has red, green" in said[1]


@pytest.mark.parametrize(
    ("name", "content", "asset", "kind", "words"),
    [
        ("a.txt", "a.tif", None, DataError, "unknown kind of list"),
        ("a.csv", "scenes\na.tif\n", None, DataError, "no column 'scene': rename 'scenes'"),
        ("a.csv", "", None, DataError, "no column 'scene'"),
        ("a.csv", "scene,Low\na.tif,b.tif\n", None, DataError, "'Low' in the header: keep one column 'low'"),
        ("a.csv", "scene,low,low\na.tif,b.tif,c.tif\n", None, DataError, "keep one column 'low'"),
        ("a.csv", "scene\n", None, DataError, "holds no scene"),
        ("a.csv", 'scene\n"a', None, DataError, "not a CSV file"),
        ("a.csv", b"scene\n\xff\n", None, DataError, "no UTF-8"),
        ("a.json", "{}", None, DataError, "no STAC item"),
        ("a.json", "[", None, DataError, "not JSON"),
        ("a.jsonl", None, None, DataError, "cannot be read"),
        ("a.csv", "scene\na.tif\n", "red", UsageError, "--asset: picks an asset of STAC items"),
    ],
)
def test_a_list_that_cannot_be_read_is_one_line(
    tmp_path: Path, name: str, content: str | bytes | None, asset: str | None, kind: type[PatchDropError], words: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(kind) as error:
        sources_of(None, file, asset, pytest.fail)
    assert words in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UsageError, match="no scene was given"):
        sources_of(None, None, None, pytest.fail)
