"""What benchmarks write into the documentation: tables, the machine, sections between marks."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository."""


def machine() -> str:
    """The processor and how many of its cores there are."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = ("amx_tile", "avx512_bf16", "avx512f", "avx2")
    widest = [flag for flag in flags if re.search(rf"\b{flag}\b", text)]
    return f"{name.group(1) if name else 'unknown processor'}, {os.cpu_count()} cores" + (
        f", {widest[0]}" if widest else ""
    )


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table in Markdown.

    Args:
        columns: Heads.
        rows: Cells, as many a row as there are columns.
        left: How many columns are text; the others are numbers, and stand to the right.

    >>> print(markdown_table(["", "rows/s"], [["ours", "5"]]))
    |  | rows/s |
    |---|---:|
    | ours | 5 |
    """
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, *rows)]
    rule = "|" + "---|" * left + "---:|" * (len(columns) - left)
    return "\n".join([lines[0], rule, *lines[1:]])


def write_between(document: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- name:start -->` and `<!-- name:end -->` in a document.

    Markers that are not there yet are put at its end.
    """
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    body = document.read_text() if document.is_file() else "# Benchmarks\n"
    if start not in body or end not in body:
        body = f"{body.rstrip()}\n\n{start}\n{end}\n"
    before, rest = body.split(start, 1)
    document.write_text(f"{before}{start}\n{text.strip()}\n{end}{rest.split(end, 1)[1]}")
