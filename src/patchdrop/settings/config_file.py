"""The file or profile of ``--config`` as the flags' defaults, read before the command line is."""

from __future__ import annotations

from typing import Any

from cyclopts.config import Dict

from patchdrop.settings.comparison import PROFILES, split_mapping
from patchdrop.settings.flat import from_mapping, read_profile


def defaults(arguments: list[str]) -> list[Dict]:
    """Defaults for the flags of a command line, its words in order.

    Raises:
        UsageError: the file cannot be read, or has a key or value that does not exist.
    """
    files = {"train": _of_train, "compare": _of_compare}
    return files[arguments[0]](arguments) if arguments and arguments[0] in files else []


def _of_train(arguments: list[str]) -> list[Dict]:
    """The file or profile named by ``--config`` as defaults for the flags, its keys and values checked."""
    source = _value_of("--config", arguments)
    if source is None:
        return []
    values = read_profile(source)
    from_mapping(values, source)
    return [_defaults(values, source)]


def _of_compare(arguments: list[str]) -> list[Dict]:
    """The same for ``compare``, where a file may name table and rows too, and the table has a profile of its own."""
    source = _value_of("--config", arguments)
    if source is None:
        table, profile = _value_of("--table", arguments) or "", _value_of("--profile", arguments) or "cpu"
        source = PROFILES.get((table, profile), "")
        values = read_profile(source) if source else {}  # a name that is none is refused as a flag's value
    else:
        values = read_profile(source)
    split_mapping(values, source)
    # A table is of somebody's images: those of `train`'s default, the embedded images, have to be asked for.
    return [_defaults({"data": "", **{k: v for k, v in values.items() if v is not None}}, source)]


def _value_of(flag: str, arguments: list[str]) -> str | None:
    for index, token in enumerate(arguments):
        name, equals, value = token.partition("=")
        if name == flag:
            return value if equals else "".join(arguments[index + 1 : index + 2])
    return None


def _defaults(values: dict[str, Any], source: str) -> Dict:
    flags = {key.replace("_", "-"): value for key, value in values.items()}
    return Dict(flags, use_commands_as_keys=False, source=source)
