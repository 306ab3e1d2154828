"""The join string from a file: ``--join @FILE``, for a node that starts beside its seed and may be there first."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from understudy.node.addresses import JOIN_CHARS_MAX, JoinString, parse_join
from understudy.protocol.errors import NetworkError, SettingsError

FILE_MARK = "@"
LOOK_AGAIN_AFTER_S = 0.2


async def read_join(text: str, wait_s: float) -> JoinString:
    """The join string in ``text``, or in the file that ``@FILE`` names, which may take ``wait_s`` seconds to appear.

    Raises `SettingsError` for a damaged join string and `NetworkError` for a file that did not come.
    """
    if not text.startswith(FILE_MARK):
        return parse_join(text)
    path = Path(text.removeprefix(FILE_MARK))
    give_up_at = time.monotonic() + wait_s
    while not (found := _content(path)):
        if time.monotonic() >= give_up_at:
            raise NetworkError(
                f"no join string in {path} after {wait_s:g} s: start the seed, or wait longer with --wait"
            )
        await asyncio.sleep(LOOK_AGAIN_AFTER_S)
    return parse_join(found)


def write_join(path: Path, join: JoinString) -> None:
    """Write the file in one go: whoever reads it finds all of it or nothing."""
    aside = path.with_name(f"{path.name}.new")
    aside.write_text(f"{join}\n", encoding="utf-8")
    aside.replace(path)


def _content(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(JOIN_CHARS_MAX + 2).strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: it should hold a join string ({error})") from error
