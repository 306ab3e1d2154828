"""What the parent of a local swarm says of a child that failed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from understudy.bootstrap.local.children import Child

SAID = {
    "understudy: the seed is gone: start it again\n": "the seed is gone: start it again",
    "2026-11-25 step\nunderstudy: port 1 is in use\n\n": "port 1 is in use",
    "Traceback\n  | ValueError: a bug\n  +------------------------------------\n": "ValueError: a bug",
    "": "it said nothing",
}


@pytest.mark.parametrize("text", SAID)
def test_its_last_line_is_quoted_without_our_name(text: str, tmp_path: Path) -> None:
    """Whoever quotes it says our name itself."""
    log = tmp_path / "log"

    async def main() -> str:
        child = await Child.start("child", "json.tool", ["--help"], log, ("env",))
        assert await child.wait(30.0)
        log.write_text(text, encoding="utf-8")
        return child.last_line

    assert asyncio.run(main()) == SAID[text]
