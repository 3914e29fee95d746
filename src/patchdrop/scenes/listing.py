"""Read lists of scenes: CSV, JSON lines, and STAC items.

Source: Radiant Earth, *SpatioTemporal Asset Catalog specification 1.1*, read by pystac.
"""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from patchdrop.errors import DataError, UsageError, first_line
from patchdrop.transport.opening import check_address
from patchdrop.transport.ranges import is_url

COLUMN = "scene"
LOW = "low"


class Source(NamedTuple):
    """A scene as a user names it: a file, a URL or the address of an object."""

    scene: str
    low: str | None = None
    """Another scene that its LR comes from; None: its own overview."""


class Row(NamedTuple):
    """One entry of a list; ``reason`` says why it names no scene, and is empty if it does."""

    where: str
    scene: str
    reason: str = ""
    low: str = ""


def sources_of(
    named: Sequence[str] | None,
    file: Path | None,
    asset: str | None,
    failed: Callable[[str], None],
    low: str | None = None,
) -> list[Source]:
    """Return the scenes that a user has named, then those of a list.

    Args:
        file: ``.csv`` (column ``scene``, perhaps ``low``), ``.jsonl`` (the same keys) or ``.json`` (a STAC item or item
            collection).
        asset: which asset of a STAC item; None: the one whose media type is GeoTIFF.
        low: the LR scene of those that have none of their own in the list.
        failed: called with the reason for each row that names no scene.

    Raises:
        UsageError: nothing was named, or ``asset`` without STAC items.
        DataError: the list cannot be read, or is empty.
    """
    if asset is not None and (file is None or file.suffix.lower() != ".json"):
        raise UsageError("--asset: picks an asset of STAC items; give them with --scenes FILE.json")
    if file is None:
        if not named:
            raise UsageError("no scene was given; name one, or a list of them with --scenes")
        return [Source(name, low) for name in named]
    found = [Source(name, low) for name in named or []]
    rows = list(_rows(file, asset))
    if not rows:
        raise DataError(f"{file}: holds no scene; add a row for each")
    for row in rows:
        reason = row.reason or _refused(row.scene) or (_refused(row.low) if row.low else "")
        if reason:
            failed(f"{file}: {row.where}: {reason}")
        else:
            found.append(Source(_beside(file, row.scene), _beside(file, row.low) if row.low else low))
    return found


def _beside(file: Path, name: str) -> str:
    return name if is_url(name) else str(file.parent / name)


def _refused(scene: str) -> str:
    try:
        check_address(scene)
    except UsageError as error:
        return str(error)
    return ""


def _rows(file: Path, asset: str | None) -> Iterator[Row]:
    kind = file.suffix.lower()
    try:
        if kind == ".csv":
            yield from _csv_rows(file)
        elif kind == ".jsonl":
            yield from _json_lines(file)
        elif kind == ".json":
            yield from _stac_items(file, asset)
        else:
            raise DataError(f"{file}: unknown kind of list; give .csv, .jsonl, or STAC items as .json")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}): check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is no UTF-8 text: save it as such") from error


def _csv_rows(file: Path) -> Iterator[Row]:
    with file.open(newline="", encoding="utf-8-sig") as stream:  # spreadsheets put a byte order mark in front
        reader = csv.DictReader(stream, strict=True)
        try:
            reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            if COLUMN not in reader.fieldnames:
                near = difflib.get_close_matches(COLUMN, reader.fieldnames, 1)
                advice = f"rename {near[0]!r}, if that is it" if near else "add it to the header"
                raise DataError(f"{file}: no column {COLUMN!r}: {advice}")
            for name in (COLUMN, LOW):
                like = [found for found in reader.fieldnames if found.lower() == name]
                if like not in ([], [name]):
                    raise DataError(f"{file}: {', '.join(map(repr, like))} in the header: keep one column {name!r}")
            for cells in reader:
                scene = (cells[COLUMN] or "").strip()
                reason = "" if scene else f"empty {COLUMN}: fill it in or remove the line"
                if None in cells:
                    reason = "more cells than columns: quote cells with commas"
                yield Row(f"line {reader.line_num}", scene, reason, (cells.get(LOW) or "").strip())
        except csv.Error as error:
            raise DataError(f"{file}: not a CSV file ({error}): save it as UTF-8 text with commas") from error


def _json_lines(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except ValueError:
                found = None
            values = [found.get(name) if isinstance(found, dict) else None for name in (COLUMN, LOW)]
            scene, low = (value.strip() if isinstance(value, str) else "" for value in values)
            reason = "" if scene else f'no scene: write {{"{COLUMN}": "FILE_OR_URL"}}'
            if not isinstance(values[1], str | None):
                reason = f"{LOW}: is no name: write it as text, or leave it out"
            yield Row(f"line {number}", scene, reason, low)


def _stac_items(file: Path, asset: str | None) -> Iterator[Row]:
    try:
        document = json.loads(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error}): save the STAC items again") from error
    kind = document.get("type") if isinstance(document, dict) else None
    items = document.get("features") if kind == "FeatureCollection" else [document] if kind == "Feature" else None
    if not isinstance(items, list):
        raise DataError(f"{file}: is no STAC item or item collection: save the items of a search as one")
    for number, item in enumerate(items, 1):
        yield _stac_row(f"item {number}", item, asset)


def _stac_row(where: str, document: Any, asset: str | None) -> Row:
    import pystac

    try:
        item = pystac.Item.from_dict(document)
        assets = {name: (found.href, found.media_type or "") for name, found in item.assets.items()}
    except Exception as error:  # an odd value may make pystac raise anything
        return Row(where, "", f"no STAC item ({type(error).__name__}: {first_line(error)}): correct or remove it")
    where = f"{where} ({item.id})"
    names = ", ".join(assets) or "none"
    if asset is not None:
        if asset not in assets:
            return Row(where, "", f"no asset {asset!r}, it has {names}: pick one with --asset")
        return Row(where, assets[asset][0])
    fit = [name for name, (_, media_type) in assets.items() if _geotiff(media_type)]
    if len(fit) != 1:
        said = f"several GeoTIFFs ({', '.join(fit)})" if fit else f"no GeoTIFF by media type, its assets are {names}"
        return Row(where, "", f"{said}: pick one with --asset")
    return Row(where, assets[fit[0]][0])


def _geotiff(media_type: str) -> bool:
    """Return whether a media type is GeoTIFF's, cloud-optimised or not, in its present or its old form."""
    kind, *parameters = (part.strip().lower() for part in media_type.split(";"))
    return kind == "image/vnd.stac.geotiff" or (kind == "image/tiff" and "application=geotiff" in parameters)
