"""The first bytes of a stream in an invited run: each side shows that it belongs there, before anything else is read.

The opener's membership, behind its length, comes first; the serving process accepts the stream and shows its own. So a
stranger's stream costs nothing but these bytes, and no word of ours reaches a stranger, whoever named it to us.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from understudy.protocol.admission.membership import (
    MEMBERSHIP_BYTES_MAX,
    MEMBERSHIP_LENGTH,
    Objection,
    behind_its_length,
)
from understudy.protocol.errors import NetworkError, RemoteProtocolError
from understudy.protocol.ids import PeerId


class Gate(Protocol):
    """What streams need of a door (node/admission/door.py)."""

    shown: bytes

    def guards(self, protocol: str) -> bool: ...

    def objection_to(self, peer: PeerId, membership: bytes) -> Objection: ...


def show(writer: asyncio.StreamWriter, gate: Gate) -> None:
    """Write our membership."""
    writer.write(behind_its_length(gate.shown))


async def check(reader: asyncio.StreamReader, peer: PeerId, gate: Gate) -> None:
    """Read the peer's membership. The caller sets the deadline.

    Raises `RemoteProtocolError` if it is not let in, and `EOFError` if it shows none.
    """
    (length,) = MEMBERSHIP_LENGTH.unpack(await reader.readexactly(MEMBERSHIP_LENGTH.size))
    if length > MEMBERSHIP_BYTES_MAX:
        raise RemoteProtocolError(f"peer {peer} shows {length} bytes; at most {MEMBERSHIP_BYTES_MAX} are allowed")
    objection = gate.objection_to(peer, await reader.readexactly(length))
    if objection:
        raise RemoteProtocolError(f"peer {peer} is not let in: {objection}")


async def check_served(peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: Gate) -> None:
    """Whoever serves must belong there too: we are about to speak with it. Raises `NetworkError`."""
    is_checked = False
    try:
        await check(reader, peer, gate)
        is_checked = True
    except (RemoteProtocolError, OSError, EOFError) as error:
        raise NetworkError(f"peer {peer} does not show that it belongs to this run ({error})") from error
    finally:
        if not is_checked:
            writer.transport.abort()
