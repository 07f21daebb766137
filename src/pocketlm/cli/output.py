"""What the commands share in writing: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable
from typing import Any


def configure_logging(level: int) -> None:
    logging.basicConfig(
        stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )


def print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False))


def print_table(rows: Iterable[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for row in rows:
        while len(table.columns) < len(row):
            table.add_column(overflow="fold")  # in a narrow terminal: longer, not cut off
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 200  # a pipe has no width to keep within
    Console(highlight=False, markup=False, width=width).print(table)


def note(text: str) -> None:
    print(text, file=sys.stderr)
