"""Makes docs/tour.ipynb from docs/tour.md, the one source of the tour.

python -m benchmarks.notebook            # write
python -m benchmarks.notebook --check    # change nothing; fail where the file would change

A block of `>>>` lines becomes cells without the answers. A cell ends after every answer, because a
notebook shows only the last value of a cell. HTML comments of the page say what differs:
`<!-- notebook CODE -->` is a cell that only the notebook has, and what stands between
`<!-- page -->` and `<!-- /page -->` it does not have.
"""

import argparse
import doctest
import json
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
PAGE, NOTEBOOK = DOCS / "tour.md", DOCS / "tour.ipynb"
PARTS = re.compile(r"^```python\n(.*?)^```$|^<!-- notebook\n(.*?)^-->$", re.MULTILINE | re.DOTALL)
ONLY_IN_THE_PAGE = re.compile(r"^<!-- page -->\n.*?^<!-- /page -->\n", re.MULTILINE | re.DOTALL)
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def make(page: str) -> str:
    """The notebook of a page, as JSON, without outputs."""
    cells: list[dict[str, Any]] = []
    page = ONLY_IN_THE_PAGE.sub("", page)
    end = 0
    for part in PARTS.finditer(page):
        _add(cells, "markdown", page[end : part.start()])
        for source in [part[2]] if part[2] else _cells_of(part[1]):
            _add(cells, "code", source)
        end = part.end()
    _add(cells, "markdown", page[end:])
    content = {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _cells_of(block: str) -> list[str]:
    """The code of a block of `>>>` lines, a piece for every answer."""
    pieces = [""]
    for example in doctest.DocTestParser().get_examples(block):
        pieces[-1] += example.source
        if example.want:
            pieces.append("")
    return pieces


def _add(cells: list[dict[str, Any]], kind: str, source: str) -> None:
    if source := source.strip("\n"):
        cell = {"cell_type": kind, "id": f"cell-{len(cells)}", "metadata": {}}
        cell |= {"execution_count": None, "outputs": []} if kind == "code" else {}
        cells.append({**cell, "source": source.splitlines(keepends=True)})


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.notebook", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args(argv).check
    content = make(PAGE.read_text("utf-8"))
    if check and content != (NOTEBOOK.read_text("utf-8") if NOTEBOOK.exists() else ""):
        sys.exit(
            "docs/tour.ipynb is not what docs/tour.md makes; run python -m benchmarks.notebook"
        )
    if not check:
        NOTEBOOK.write_text(content, "utf-8")


if __name__ == "__main__":
    main()
