"""Asking the person at the terminal whether this machine may read what a founder chose on the Hugging Face hub."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

from understudy.node.data.access import TextAccess
from understudy.node.ui.telemetry import logger
from understudy.protocol.manifest import DataSettings

ANSWER_TIMEOUT_S = 60.0
"""The swarm does not wait for it, but the node does."""
ANSWER_BYTES_MAX = 4096
YES = {b"y", b"yes"}


async def with_consent(access: TextAccess, data: DataSettings, terminal: int = 0) -> TextAccess:
    """The access, with the hub if the person says so. Nobody is asked where nobody sits, or where there is no need."""
    if access.may_ask_hub or not data.hub_names or not _is_attended(terminal):
        return access
    logger.warning(
        "to take S0, this machine would read %s from the Hugging Face hub: the founder chose it, and the hub would see "
        "this machine's address. Type y to allow it; anything else, or nothing for %g s, leaves S0 to others",
        " and ".join(data.hub_names),
        ANSWER_TIMEOUT_S,
    )
    return replace(access, may_ask_hub=await _answer(terminal) in YES)


def _is_attended(terminal: int) -> bool:
    """Whether somebody can answer there: a job in the background that reads is stopped by its shell."""
    try:
        return os.isatty(terminal) and os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False


async def _answer(terminal: int) -> bytes:
    """The line that is typed, or nothing if none is in time."""
    loop = asyncio.get_running_loop()
    typed: asyncio.Future[bytes] = loop.create_future()

    def read() -> None:
        loop.remove_reader(terminal)
        typed.set_result(os.read(terminal, ANSWER_BYTES_MAX))

    loop.add_reader(terminal, read)
    try:
        return (await asyncio.wait_for(typed, ANSWER_TIMEOUT_S)).strip().lower()
    except (TimeoutError, OSError):
        return b""
    finally:
        loop.remove_reader(terminal)
