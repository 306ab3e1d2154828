"""The DHT of an invited run: its calls are for members only, in both directions, and so are its records.

hivemind's own hook, the ``authorizer``, sees a request without its sender, so a membership could be shown by whoever
saw it once. Here the two methods of its connection are wrapped through which every call of the DHT goes
(hivemind 1.1.12, ``P2P.add_protobuf_handler`` and ``call_protobuf_handler``): they know who is at the other end. What
peers show travels in a field of that hook, ``auth.signature``, which nobody else uses.

A record carries its owner's membership in front of its value. Whether it may lie in the DHT depends on the record
alone, for all time: hivemind drops an answer whole that holds one record which its reader refuses. What has expired or
was revoked is left out by whoever reads.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec

from understudy.node.admission.door import Door
from understudy.node.dht.signing import owner_in_tag
from understudy.protocol.admission.membership import (
    MEMBERSHIP_BYTES_MAX,
    MEMBERSHIP_LENGTH,
    Objection,
    behind_its_length,
)
from understudy.protocol.admission.presence import Presence, decode_presence
from understudy.protocol.errors import RemoteProtocolError, SettingsError
from understudy.protocol.ids import PeerId

SEAL_BYTES_MAX = MEMBERSHIP_LENGTH.size + MEMBERSHIP_BYTES_MAX
"""What lies in front of a record's value."""
STORE_REQUEST = "StoreRequest"


class Guard:
    """Between hivemind and the door; without a door, everybody is let through and records are as they are."""

    def __init__(self, door: Door | None) -> None:
        self._door = door
        self._is_uninvited = False

    def stand_at(self, connection: Any, answers: Any) -> None:
        """Once per connection, before its DHT node is made. ``answers``: the module that holds the answers' types."""
        door = self._door
        if door is None:
            self._look_for_refusals(connection)
            return
        door.enter(PeerId(str(connection.peer_id)))
        add, call = connection.add_protobuf_handler, connection.call_protobuf_handler

        async def add_guarded(name: str, handler: Any, request_type: Any, **options: Any) -> None:
            answer_type = getattr(answers, request_type.__name__.replace("Request", "Response"))

            async def guarded(request: Any, context: Any) -> Any:
                peer = PeerId(str(context.remote_id))
                objection = _objection(door, peer, request.auth.signature)
                if not objection and request_type.__name__ == STORE_REQUEST and door.is_observer(peer):
                    objection = "observer"
                answer = answer_type() if objection else await handler(request, context)
                answer.auth.signature = door.presence_for(peer, objection).encode()
                return answer

            await add(name, guarded, request_type, **options)

        async def call_guarded(peer_id: Any, name: str, request: Any, answer_type: Any) -> Any:
            peer = PeerId(str(peer_id))
            request.auth.signature = door.presence_for(peer).encode()
            answer = await call(peer_id, name, request, answer_type)
            presence = decode_presence(answer.auth.signature)
            _check_answer(door, peer, presence)
            return answer

        connection.add_protobuf_handler, connection.call_protobuf_handler = add_guarded, call_guarded

    def _look_for_refusals(self, connection: Any) -> None:
        """Of an invited run, which a join string for an open one leads to."""
        call = connection.call_protobuf_handler

        async def call_watched(peer_id: Any, name: str, request: Any, answer_type: Any) -> Any:
            answer = await call(peer_id, name, request, answer_type)
            self._is_uninvited |= bool(answer.auth.signature)
            return answer

        connection.call_protobuf_handler = call_watched

    def why_refused(self) -> SettingsError | None:
        """What to tell a person who was not let in; None: nobody said why."""
        if self._is_uninvited:
            return SettingsError("only who is invited may join this run: ask its founder for a join string")
        return self._door.why_refused() if self._door is not None else None

    # --- records ---

    def sealed(self, value: bytes) -> bytes:
        """What is stored: the value, with our membership in front of it."""
        return value if self._door is None else behind_its_length(self._door.shown) + value

    def admits(self, subkey: bytes, packed: bytes) -> bool:
        """Whether a record of this owner may lie in the DHT. ``packed``: its value as hivemind wrote it."""
        if self._door is None:
            return True
        owner, (membership, value) = owner_in_tag(subkey), _split(packed)
        return owner is not None and value is not None and self._door.is_volunteers(owner, membership)

    def opened(self, subkey: bytes, packed: bytes) -> bytes | None:
        """The value; None for what is none, or whose owner is out by now."""
        if self._door is None:
            return _unpacked(packed)
        owner, (membership, value) = owner_in_tag(subkey), _split(packed)
        return None if owner is None or self._door.objection_to(owner, membership) else value

    # --- the list of what was revoked ---

    async def greet(self, dht: Any, *, everybody: bool) -> int:
        """Call peers of hivemind's DHTNode, who learn our list so, or we theirs: all of them, or any one.

        How many know ours afterwards. Never raises: ``call_ping`` has its own timeout and answers None.
        """
        peers = [peer for peer in dht.protocol.routing_table.peer_id_to_uid if peer != dht.peer_id]
        if self._door is None or not peers:
            return 0
        called = peers if everybody else [random.choice(peers)]
        await asyncio.gather(*map(dht.protocol.call_ping, called))
        return sum(self._door.knows(PeerId(str(peer))) for peer in called)


def _objection(door: Door, peer: PeerId, shown: bytes) -> Objection:
    """Of whatever a peer shows with a call."""
    try:
        return door.objection_to_presence(peer, decode_presence(shown))
    except RemoteProtocolError:
        return "stranger"


def _check_answer(door: Door, peer: PeerId, presence: Presence) -> None:
    """Raises `RemoteProtocolError`: to hivemind, the call failed, and the peer is none of the DHT's."""
    objection = door.objection_to_presence(peer, presence)
    if presence.refusal:
        door.note_refusal(presence.refusal)
        raise RemoteProtocolError(f"peer {peer} does not let us in: {presence.refusal}")
    if objection:
        if objection == "another run":
            door.note_refusal(objection)
        raise RemoteProtocolError(f"peer {peer} is not let in: {objection}")


def _split(packed: bytes) -> tuple[bytes, bytes | None]:
    """Membership and value; no value if it is malformed."""
    sealed, size = _unpacked(packed) or b"", MEMBERSHIP_LENGTH.size
    length = MEMBERSHIP_LENGTH.unpack_from(sealed)[0] if len(sealed) >= size else MEMBERSHIP_BYTES_MAX + 1
    if length > MEMBERSHIP_BYTES_MAX or size + length > len(sealed):
        return b"", None
    return sealed[size : size + length], sealed[size + length :]


def _unpacked(packed: bytes) -> bytes | None:
    """What hivemind packed; None if that was no bytes."""
    try:
        return msgspec.msgpack.decode(packed, type=bytes)
    except msgspec.DecodeError:
        return None
