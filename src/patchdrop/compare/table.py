"""Define the forms of the paper's tables: which rows, which columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from patchdrop.compare.bench import POLICY_STAGES
from patchdrop.compare.rows import BAGNET_ROWS, FULL_ROWS, Row
from patchdrop.errors import UsageError
from patchdrop.settings.flat import nearest


@dataclass(frozen=True)
class Form:
    """The form of one of the paper's tables.

    Attributes:
        rows: the paper's, in its order, then those beyond it.
        stages: stages that the table has a column for.
        one_s: whether S of all stages stands in one last column, rather than S beside each stage.
        time: whether a last column holds milliseconds per image.
    """

    rows: tuple[Row, ...]
    stages: tuple[str, ...] = POLICY_STAGES
    one_s: bool = False
    time: bool = False


FORMS = {
    "fmow": Form(FULL_ROWS),
    "imagenet": Form(FULL_ROWS, one_s=True),
    "bagnet": Form(BAGNET_ROWS, stages=("pt", "ft1"), time=True),
}


def _nearest(name: str, methods: Sequence[str]) -> str:
    """Do as `nearest`, in whatever case a name was typed."""
    alike = [method for method in methods if method.lower() == name.lower()]
    return nearest(alike[0] if alike else name, methods)


def chosen_rows(form: Form, names: Sequence[str]) -> list[Row]:
    """Return the rows with these names in the table's order; all of them if none is named.

    Raises:
        UsageError: the table has no row of a name; the nearest one is offered.
    """
    methods = [row.method for row in form.rows]
    for name in names:
        if name not in methods:
            raise UsageError(f"--rows: there is no row {name!r}{_nearest(name, methods)} (rows: {'; '.join(methods)})")
    return [row for row in form.rows if not names or row.method in names]
