"""Draw a comparison's table in README.md anew, between ``<!-- results/<name> -->`` and ``<!-- end -->``.

python scripts/readme_table.py results/fmow-aid150
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from publish import README, into_readme

from patchdrop.compare.results import markdown_table
from patchdrop.files import read_json


def table(document: dict[str, Any]) -> str:
    """The seed's form of a comparison's ``results.json``, with the first line of its foot."""
    first = document["tables"][0]
    return f"{markdown_table(first['header'], first['lines'])}\n\n{document['foot'][0]}\n"


def main(folder: Path) -> None:
    """Replace the table of that folder's name in the README."""
    name = f"results/{folder.name}"
    if f"<!-- {name} -->" not in README.read_text(encoding="utf-8"):
        sys.exit(f"README.md has no place for it: put <!-- {name} --> and <!-- end --> where the table is to stand")
    into_readme(name, table(read_json(folder / "results.json")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
