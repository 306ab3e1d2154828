"""The door of an invited run: with real keys, and streams and calls of the DHT that are not."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from tests.fakes import MemoryWriter, as_writer, reader_of
from understudy.bootstrap.invites import make_invite
from understudy.node.admission.door import Door
from understudy.node.dht.guard import Guard
from understudy.node.p2p.addresses import JoinString, parse_join
from understudy.node.p2p.handshake import check, check_served, show
from understudy.node.p2p.identity import Identity
from understudy.protocol.admission.invite import Role
from understudy.protocol.admission.membership import MEMBERSHIP_BYTES_MAX, MEMBERSHIP_LENGTH
from understudy.protocol.admission.presence import Presence, decode_presence
from understudy.protocol.admission.revocation import RevocationList
from understudy.protocol.errors import NetworkError, RemoteProtocolError, SettingsError
from understudy.protocol.ids import PeerId

FOUNDER, OTHER = Identity.generate(), Identity.generate()
DIGEST = "0123456789ab" + "c" * 52
OTHER_DIGEST = "ba9876543210" + "c" * 52
ALICE, BOB = FOUNDER.peer_id.__class__(f"Qm{'A' * 44}"), PeerId(f"Qm{'B' * 44}")


def join_of(
    role: Role = "volunteer", expires_at: int = 0, *, digest: str = DIGEST, founder: Identity = FOUNDER
) -> JoinString:
    ticket = make_invite(digest, founder, "guest", role, expires_at).ticket(founder)
    address = f"/ip4/192.0.2.7/tcp/1/p2p/{founder.peer_id}"
    return JoinString(f"tiny-{digest[:12]}", digest, founder.peer_id, (address,), ticket)


def guest(peer: PeerId, join: JoinString | None = None) -> Door:
    door = Door.for_guest(join or join_of())
    assert door is not None
    door.enter(peer)
    return door


def founders() -> Door:
    door = Door.for_founder(DIGEST, FOUNDER, RevocationList())
    door.enter(FOUNDER.peer_id)
    return door


def signed_list(version: int, *peers: PeerId, invites: tuple[bytes, ...] = ()) -> RevocationList:
    unsigned = RevocationList(version, invites, peers)
    return msgspec.structs.replace(unsigned, signature=FOUNDER.sign(unsigned.signed_bytes(DIGEST)))


# --- join strings --------------------------------------------------------------------------------


def test_an_invited_join_string_is_one_word_and_comes_back() -> None:
    join = join_of()
    assert parse_join(f" {join}\n") == join
    assert str(join).isprintable()
    assert len(str(join)) < 1300
    assert "private" not in repr(join)
    assert "ticket" not in repr(join)


def test_an_open_run_has_no_door() -> None:
    assert Door.for_guest(replace(join_of(), ticket=None)) is None


@pytest.mark.parametrize(
    ("join", "complaint"),
    [
        (join_of(expires_at=int(time.time()) - 60), r"expired at 20\d\d-.*clock"),
        (replace(join_of(), founder=OTHER.peer_id), "not of the founder"),
        (replace(join_of(), digest=OTHER_DIGEST), "not signed by the run's founder"),
        (replace(join_of(), ticket=join_of(founder=OTHER).ticket), "not of the founder"),
        (
            replace(join_of(), ticket=msgspec.structs.replace(join_of().ticket, private_key=bytes(32))),
            "its invite and its key do not belong together",
        ),
    ],
)
def test_an_invite_that_is_of_no_use_is_refused_before_anything_is_started(join: JoinString, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        Door.for_guest(join)


def test_an_observers_join_string_is_not_for_a_node() -> None:
    assert Door.for_guest(join_of("observer")) is not None
    with pytest.raises(SettingsError, match="for observers"):
        Door.for_guest(join_of("observer"), must_train=True)


# --- who is let in -------------------------------------------------------------------------------


def test_members_know_each_other_and_nobody_else() -> None:
    alice, bob, seed = guest(ALICE), guest(BOB, join_of("observer")), founders()
    for door in (alice, bob, seed):
        assert door.objection_to(ALICE, alice.shown) == ""
        assert door.objection_to(BOB, bob.shown) == ""
        assert door.objection_to(FOUNDER.peer_id, seed.shown) == ""
        assert door.objection_to(BOB, alice.shown) == "stranger"
        assert door.objection_to(ALICE, b"") == "stranger"
        assert (door.is_observer(ALICE), door.is_observer(BOB)) == (False, True)
    foreign = guest(ALICE, join_of(digest=OTHER_DIGEST))
    assert alice.objection_to(ALICE, foreign.shown) == "stranger"


def test_a_membership_is_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And whether it is out by now is judged each time."""
    alice, seed = guest(ALICE), founders()
    assert seed.objection_to(ALICE, alice.shown) == ""
    verified = seed._check.cache_info().misses
    for _ in range(10):
        assert seed.objection_to(ALICE, alice.shown) == ""
    assert seed._check.cache_info().misses == verified
    seed.take(signed_list(1, ALICE))
    assert seed.objection_to(ALICE, alice.shown) == "revoked"


def test_whoever_expires_is_out_and_named_once() -> None:
    now = time.time()
    alice, seed = guest(ALICE, join_of(expires_at=int(now) + 100)), founders()
    assert seed.objection_to(ALICE, alice.shown) == ""
    assert (seed.outcasts(), seed.is_out(ALICE), alice.why_out()) == ([], False, None)
    for door in (alice, seed):
        door._clock = lambda: now + 101
    assert (seed.is_out(ALICE), seed.outcasts(), seed.outcasts()) == (True, [ALICE], [])
    assert "expired" in str(alice.why_out())


def test_only_a_newer_list_of_the_founders_is_adopted() -> None:
    alice = guest(ALICE)
    alice.adopt(signed_list(2, BOB).encode())
    assert alice.has_news.is_set()
    alice.adopt(signed_list(1).encode())
    assert alice.revoked.version == 2
    assert alice.is_out(BOB)
    forged = msgspec.structs.replace(signed_list(3), version=9)
    with pytest.raises(RemoteProtocolError):
        alice.adopt(forged.encode())
    assert alice.revoked.version == 2


def test_streams_of_the_run_are_guarded_and_those_of_no_run_are_not() -> None:
    door = guest(ALICE)
    assert door.guards(f"/understudy/2/tiny-{DIGEST[:12]}/link")
    assert not door.guards("/understudy/2/dial-back")
    assert not door.guards(f"/understudy/2/tiny-{OTHER_DIGEST[:12]}/link")


# --- streams -------------------------------------------------------------------------------------


def shown_by(door: Door) -> bytes:
    writer = MemoryWriter()
    show(as_writer(writer), door)
    return bytes(writer.data)


def test_both_sides_of_a_stream_show_that_they_belong() -> None:
    async def main() -> None:
        alice, bob = guest(ALICE), guest(BOB)
        await check(reader_of(shown_by(alice) + b"more"), ALICE, bob)
        with pytest.raises(RemoteProtocolError, match="stranger"):
            await check(reader_of(shown_by(alice)), BOB, alice)
        with pytest.raises(RemoteProtocolError, match="at most"):
            await check(reader_of(MEMBERSHIP_LENGTH.pack(MEMBERSHIP_BYTES_MAX + 1) + bytes(1000)), ALICE, bob)
        with pytest.raises(EOFError):
            await check(reader_of(shown_by(alice)[:-1]), ALICE, bob)
        writer = MemoryWriter()
        with pytest.raises(NetworkError, match="does not show that it belongs"):
            await check_served(BOB, reader_of(MEMBERSHIP_LENGTH.pack(0)), as_writer(writer), alice)

    asyncio.run(main())


# --- the DHT -------------------------------------------------------------------------------------


class PingRequest(SimpleNamespace):
    pass


class StoreRequest(SimpleNamespace):
    pass


def message(kind: type[SimpleNamespace] = SimpleNamespace) -> Any:
    return kind(auth=SimpleNamespace(signature=b""), is_answered=False)


ANSWERS = SimpleNamespace(PingResponse=message, StoreResponse=message)


class Connection:
    """hivemind's connection: two of them are joined by `meet`, and count the calls that come through."""

    def __init__(self, peer: PeerId) -> None:
        self.peer_id, self.calls = peer, 0
        self._handlers: dict[type, Any] = {}
        self._other: Connection

    def meet(self, other: Connection) -> None:
        self._other, other._other = other, self

    async def add_protobuf_handler(self, name: str, handler: Any, request_type: type, **_: Any) -> None:
        self._handlers[request_type] = handler

    async def call_protobuf_handler(self, peer: PeerId, name: str, request: Any, answer_type: Any) -> Any:
        handler = self._other._handlers[type(request)]
        return await handler(request, SimpleNamespace(remote_id=self.peer_id))

    async def handle(self, request: Any, context: Any) -> Any:
        self.calls += 1
        answer = message()
        answer.is_answered = True
        return answer


async def connected(door: Door, peer: PeerId) -> Connection:
    connection = Connection(peer)
    Guard(door).stand_at(connection, ANSWERS)
    for kind in (PingRequest, StoreRequest):
        await connection.add_protobuf_handler(kind.__name__, connection.handle, kind)
    return connection


async def is_answered(caller: Connection, called: Connection, kind: type[SimpleNamespace] = PingRequest) -> bool:
    caller.meet(called)
    before = called.calls
    try:
        answer = await caller.call_protobuf_handler(called.peer_id, kind.__name__, message(kind), None)
    except RemoteProtocolError:
        return False
    return cast("bool", answer.is_answered) and called.calls == before + 1


def test_the_dht_answers_members_only_and_believes_members_only() -> None:
    async def main() -> None:
        alice, bob = guest(ALICE), guest(BOB)
        a, b = await connected(alice, ALICE), await connected(bob, BOB)
        assert await is_answered(a, b)
        assert await is_answered(a, b, StoreRequest)
        mallory = guest(PeerId(f"Qm{'M' * 44}"), join_of(digest=OTHER_DIGEST))
        m = await connected(mallory, PeerId(f"Qm{'M' * 44}"))
        assert not await is_answered(m, b)
        assert str(mallory.why_refused()).startswith("another run")
        assert not await is_answered(b, m)
        assert (b.calls, m.calls) == (2, 0)
        stranger = Connection(ALICE)  # without a guard: it shows nothing
        stranger.meet(b)
        refused = await stranger.call_protobuf_handler(BOB, "ping", message(PingRequest), None)
        presence = decode_presence(refused.auth.signature)
        assert (refused.is_answered, presence) == (False, Presence(DIGEST, refusal="stranger"))

    asyncio.run(main())


def test_a_stranger_that_answers_is_not_believed() -> None:
    async def main() -> None:
        alice = guest(ALICE)
        a, stranger = await connected(alice, ALICE), Connection(BOB)
        await stranger.add_protobuf_handler("ping", stranger.handle, PingRequest)
        assert not await is_answered(a, stranger)
        assert stranger.calls == 1

    asyncio.run(main())


def test_an_observer_stores_nothing() -> None:
    async def main() -> None:
        observer, bob = guest(ALICE, join_of("observer")), guest(BOB)
        o, b = await connected(observer, ALICE), await connected(bob, BOB)
        assert await is_answered(o, b)
        assert not await is_answered(o, b, StoreRequest)
        assert await is_answered(b, o, StoreRequest)

    asyncio.run(main())


def test_lists_travel_with_calls_and_answers_and_reach_whom_they_shut_out() -> None:
    async def main() -> None:
        alice, bob, seed = guest(ALICE), guest(BOB), founders()
        a, b, s = await connected(alice, ALICE), await connected(bob, BOB), await connected(seed, FOUNDER.peer_id)
        seed.take(signed_list(1))
        assert await is_answered(a, s)  # with an answer
        assert alice.revoked.version == 1
        assert await is_answered(a, b)  # with a call
        assert bob.revoked.version == 1
        assert alice.knows(FOUNDER.peer_id)
        alice.take(signed_list(2, BOB))
        assert not await is_answered(b, a)
        assert (bob.revoked.version, str(bob.why_out())) == (2, "the founder revoked this invite, or this peer")
        assert not await is_answered(a, b)
        assert a.calls == 0

    asyncio.run(main())


# --- records -------------------------------------------------------------------------------------


def subkey_of(identity: Identity) -> bytes:
    return b"record[owner:" + identity.public_key_bytes + b"]"


def test_records_are_stored_of_members_and_read_of_those_who_still_are() -> None:
    door = guest(OTHER.peer_id)
    mine, reader = Guard(door), Guard(guest(ALICE))
    packed = msgspec.msgpack.encode(mine.sealed(b"value"))
    assert reader.admits(subkey_of(OTHER), packed)
    assert reader.opened(subkey_of(OTHER), packed) == b"value"
    assert not reader.admits(subkey_of(Identity.generate()), packed)
    for malformed in (
        b"",
        b"\xc0",
        *(msgspec.msgpack.encode(data) for data in (b"", b"value", MEMBERSHIP_LENGTH.pack(700))),
    ):
        assert not reader.admits(subkey_of(OTHER), malformed)
        assert reader.opened(subkey_of(OTHER), malformed) is None
    assert reader._door is not None
    reader._door.take(signed_list(1, OTHER.peer_id))
    assert reader.admits(subkey_of(OTHER), packed)  # or others' answers that hold it would be dropped whole
    assert reader.opened(subkey_of(OTHER), packed) is None


def test_a_record_of_an_observer_is_none() -> None:
    mine = Guard(guest(OTHER.peer_id, join_of("observer")))
    assert not Guard(founders()).admits(subkey_of(OTHER), msgspec.msgpack.encode(mine.sealed(b"value")))


def test_the_founders_records_need_no_invite() -> None:
    packed = msgspec.msgpack.encode(Guard(founders()).sealed(b"value"))
    assert Guard(guest(ALICE)).opened(subkey_of(FOUNDER), packed) == b"value"


def test_an_open_runs_records_are_as_they_were() -> None:
    guard = Guard(None)
    packed = msgspec.msgpack.encode(guard.sealed(b"value"))
    assert guard.sealed(b"value") == b"value"
    assert guard.admits(b"anybody", packed)
    assert guard.opened(b"anybody", packed) == b"value"
    assert guard.opened(b"anybody", b"\xc0") is None
