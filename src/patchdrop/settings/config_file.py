"""Read the file or profile of ``--config`` as defaults for the flags, before the command line is parsed."""

from __future__ import annotations

from typing import Any

from cyclopts.config import Dict

from patchdrop.settings.comparison import PROFILES, split_mapping
from patchdrop.settings.flat import EARLIER_NAME, MARKERS, from_mapping, read_profile


def defaults(arguments: list[str]) -> list[Dict]:
    """Return defaults for the flags of a command line, given as its words in order.

    Raises:
        UsageError: the file cannot be read, or has a key or value that does not exist.
    """
    files = {"train": _of_train, "compare": _of_compare}
    return files[arguments[0]](arguments) if arguments and arguments[0] in files else []


def _of_train(arguments: list[str]) -> list[Dict]:
    """Read the file or profile that ``--config`` names as defaults for the flags; check its keys and values."""
    source = _value_of("--config", arguments)
    if source is None:
        return []
    values = read_profile(source)
    from_mapping(values, source)
    return [_defaults(values, source)]


def _of_compare(arguments: list[str]) -> list[Dict]:
    """Do the same for ``compare``: its file may name table and rows too, and each table has its own profile."""
    source = _value_of("--config", arguments)
    if source is None:
        table, profile = _value_of("--table", arguments) or "", _value_of("--profile", arguments) or "cpu"
        source = PROFILES.get((table, profile), "")
        values = read_profile(source) if source else {}  # an unknown name is refused later as a flag's value
    else:
        values = read_profile(source)
    split_mapping(values, source)
    # A table is made of the user's images: the embedded ones, the default of `train`, have to be asked for.
    return [_defaults({"data": "", **{k: v for k, v in values.items() if v is not None}}, source)]


def _value_of(flag: str, arguments: list[str]) -> str | None:
    for index, token in enumerate(arguments):
        name, equals, value = token.partition("=")
        if name == flag:
            return value if equals else "".join(arguments[index + 1 : index + 2])
    return None


def _defaults(values: dict[str, Any], source: str) -> Dict:
    if values.get("layout") == EARLIER_NAME:  # said when the file was checked
        values = {**values, "layout": MARKERS}
    flags = {key.replace("_", "-"): value for key, value in values.items()}
    return Dict(flags, use_commands_as_keys=False, source=source)
