"""Pages whose tables are generated: Markdown tables, and the marks between which they stand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from understudy.protocol.errors import SettingsError

Row = Sequence[str]


def render(header: Row, rows: Sequence[Row]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def fill_in(text: str, parts: dict[str, str]) -> str:
    """Replace what stands between the marks ``<!-- name -->`` and ``<!-- /name -->``.

    Raises `SettingsError` unless each is there once.
    """
    for name, content in parts.items():
        pieces = re.split(rf"(<!-- /?{name} -->)", text)
        if pieces[1::2] != [f"<!-- {name} -->", f"<!-- /{name} -->"]:
            raise SettingsError(
                f"the page needs the marks <!-- {name} --> and <!-- /{name} -->, once and in this order"
            )
        pieces[2] = f"\n\n{content}\n\n"
        text = "".join(pieces)
    return text


def write_parts(page: Path, parts: dict[str, str]) -> None:
    """Bring these parts of a page up to date. Raises `SettingsError` if it lacks their marks."""
    page.write_text(fill_in(page.read_text(encoding="utf-8"), parts), encoding="utf-8")
