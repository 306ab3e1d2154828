"""Both sides of a dial-back, over streams in memory and sockets on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from tests.fakes import FakeStreams, MemoryWriter, as_writer, reader_of, run_leaping, until
from understudy.node.p2p.addresses import Endpoint
from understudy.node.p2p.dial import GREETING, knock
from understudy.node.reach import sockets
from understudy.node.reach.answering import (
    DIAL_TIMEOUT_S,
    PER_PEER_MAX,
    PER_WINDOW_MAX,
    SPEAK_TIMEOUT_S,
    WINDOW_S,
    DialBack,
    seen_at,
    visible,
)
from understudy.node.reach.asking import ASK_TIMEOUT_S, choose_asked, find_reachability, understand
from understudy.node.reach.sockets import dials_from, local_ports, own_hosts
from understudy.node.reach.speaking import read_reach
from understudy.protocol.errors import NetworkError, PeerRefusedError, RemoteProtocolError
from understudy.protocol.ids import PeerId
from understudy.protocol.wire.reach import (
    DIAL_BACK_PROTOCOL,
    DialBackAnswer,
    DialBackRequest,
    DialOutcome,
    encode_reach,
)

PEER = "QmQxVxhUUihSfFE2PnQWxQ8Nb3gpxuh8RaQVZ4n2MwaG2W"
ASKER = PeerId("asker")
HOME = "/ip4/5.5.5.20/tcp/4001"
RELAYED = f"/ip4/5.5.5.1/tcp/4000/p2p/{PEER}/p2p-circuit"
Connected = dict[PeerId, tuple[str, ...]]


@dataclass
class Knocker:
    """Takes down where it was to knock; ``outcome`` says what came of it, and waits if it is to."""

    outcome: Callable[[], Awaitable[str]] | str = ""
    knocked: list[tuple[str, int]] = field(default_factory=list)

    async def __call__(self, host: str, port: int) -> str:
        self.knocked.append((host, port))
        return self.outcome if isinstance(self.outcome, str) else await self.outcome()


def server(knocker: Knocker, connected: Connected | None = None) -> DialBack:
    async def connections() -> Connected:
        return {ASKER: (HOME,)} if connected is None else connected

    return DialBack(connections, knocker)


async def ask(subject: DialBack, request: DialBackRequest, peer: PeerId = ASKER) -> DialBackAnswer:
    """One request; what came back."""
    return await read_reach(reader_of(await say(subject, encode_reach(request), peer)), DialBackAnswer)


async def say(subject: DialBack, data: bytes, peer: PeerId = ASKER) -> bytes:
    """These bytes and the stream's end; what came back."""
    writer = MemoryWriter()
    await subject.answer(peer, reader_of(data), as_writer(writer))
    return bytes(writer.data)


# --- the asked side ------------------------------------------------------------------------------


def test_it_dials_where_it_sees_the_asker() -> None:
    knocker = Knocker()
    told = run_leaping(ask(server(knocker), DialBackRequest((4001, 4002))))
    assert told == DialBackAnswer("5.5.5.20", 4001, (DialOutcome(4001, ""), DialOutcome(4002, "")))
    assert knocker.knocked == [("5.5.5.20", 4001), ("5.5.5.20", 4002)]


def test_it_dials_no_other_host_whatever_it_is_told() -> None:
    """A request has no room for a host; what is appended to it is not looked at."""
    body = msgspec.msgpack.encode(["dial_back", [4001], "9.9.9.9", ["/ip4/9.9.9.9/tcp/80"]])
    request = len(body).to_bytes(4, "little") + body
    knocker = Knocker()
    run_leaping(say(server(knocker), request))
    assert {host for host, _ in knocker.knocked} <= {"5.5.5.20"}


def test_a_port_is_dialled_once() -> None:
    knocker = Knocker()
    run_leaping(ask(server(knocker), DialBackRequest((4001, 4001))))
    assert knocker.knocked == [("5.5.5.20", 4001)]


@pytest.mark.parametrize("addresses", [(), (RELAYED,), ("/unix/tmp",), ("/dns4/a.org/tcp/1",)])
def test_who_is_seen_through_a_relay_only_is_not_dialled(addresses: tuple[str, ...]) -> None:
    knocker = Knocker()
    told = run_leaping(ask(server(knocker, {ASKER: addresses}), DialBackRequest((4001,))))
    assert told == DialBackAnswer("", 0, refusal="it is connected through a relay only, and cannot tell")
    assert knocker.knocked == []


def test_who_is_not_connected_at_all_is_not_dialled() -> None:
    knocker = Knocker()
    assert run_leaping(ask(server(knocker, {}), DialBackRequest((4001,)))).refusal
    assert knocker.knocked == []


@pytest.mark.parametrize(
    ("addresses", "host", "port", "transport"),
    [
        ((RELAYED, HOME), "5.5.5.20", 4001, "tcp"),
        (("/ip4/5.5.5.20/udp/7/quic-v1", HOME), "5.5.5.20", 4001, "tcp"),
        (("/ip4/5.5.5.20/udp/7/quic-v1",), "5.5.5.20", 7, "udp"),
        (("/ip6/2a00::1/tcp/9",), "2a00::1", 9, "tcp"),
    ],
)
def test_where_a_peer_is_seen(addresses: tuple[str, ...], host: str, port: int, transport: str) -> None:
    where = seen_at(addresses)
    assert where is not None
    assert (where.host, where.port, where.transport) == (host, port, transport)


def test_a_port_of_another_transport_is_not_told() -> None:
    quic = {ASKER: ("/ip4/5.5.5.20/udp/7/quic-v1",)}
    assert run_leaping(ask(server(Knocker(), quic), DialBackRequest((4001,)))).seen_port == 0


def test_a_silent_address_is_given_up() -> None:
    async def never() -> str:
        await asyncio.Event().wait()
        return ""

    async def main() -> DialBackAnswer:
        async with asyncio.timeout(DIAL_TIMEOUT_S + 0.1):
            return await ask(server(Knocker(never)), DialBackRequest((4001, 4002)))

    outcomes = run_leaping(main()).outcomes
    assert [outcome.failure for outcome in outcomes] == ["no answer within 3 s"] * 2


def test_one_request_of_a_peer_at_a_time() -> None:
    async def main() -> None:
        is_dialled = asyncio.Event()

        async def wait() -> str:
            await is_dialled.wait()
            return ""

        knocker = Knocker(wait)
        subject = server(knocker, {ASKER: (HOME,), PeerId("other"): ("/ip4/5.5.5.30/tcp/1",)})
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(ask(subject, DialBackRequest((4001,))))
            await until(lambda: knocker.knocked)
            second = await ask(subject, DialBackRequest((4002,)))
            assert second == DialBackAnswer("5.5.5.20", 4001, refusal="it is dialling for this peer already")
            other = tasks.create_task(ask(subject, DialBackRequest((5,)), PeerId("other")))
            await until(lambda: len(knocker.knocked) == 2)
            is_dialled.set()
        assert first.result().outcomes == (DialOutcome(4001, ""),)
        assert other.result().outcomes == (DialOutcome(5, ""),)
        assert not (await ask(subject, DialBackRequest((4001,)))).refusal

    run_leaping(main())


def test_so_many_a_minute_of_one_peer() -> None:
    async def main() -> None:
        knocker = Knocker()
        subject = server(knocker)
        for _ in range(PER_PEER_MAX):
            assert not (await ask(subject, DialBackRequest((1,)))).refusal
        assert (await ask(subject, DialBackRequest((1,)))).refusal == "it was asked too often within a minute"
        assert len(knocker.knocked) == PER_PEER_MAX
        await asyncio.sleep(WINDOW_S + 1)  # the loop's clock leaps
        assert not (await ask(subject, DialBackRequest((1,)))).refusal

    run_leaping(main())


def test_so_many_a_minute_of_all() -> None:
    async def main() -> None:
        peers = [PeerId(f"peer{number}") for number in range(PER_WINDOW_MAX + 1)]
        knocker = Knocker()
        subject = server(knocker, dict.fromkeys(peers, (HOME,)))
        told = [await ask(subject, DialBackRequest((1,)), peer) for peer in peers]
        assert [bool(answer.refusal) for answer in told] == [False] * PER_WINDOW_MAX + [True]
        assert len(knocker.knocked) == PER_WINDOW_MAX

    run_leaping(main())


def test_who_says_nothing_is_not_waited_for() -> None:
    async def main() -> None:
        writer = MemoryWriter()
        async with asyncio.timeout(SPEAK_TIMEOUT_S + 0.1):
            await server(Knocker()).answer(ASKER, asyncio.StreamReader(), as_writer(writer))
        assert not writer.data

    run_leaping(main())


@pytest.mark.parametrize("data", [b"", b"\x01", b"\xff" * 8, b"\x03\x00\x00\x00abc", b"\x09\x00\x00\x00abc"])
def test_nonsense_is_not_answered(data: bytes) -> None:
    assert run_leaping(say(server(Knocker()), data)) == b""


def test_what_the_system_says_is_made_fit_to_be_sent() -> None:
    assert visible("é\x1b[2J") == "??[2J"
    assert len(visible("x" * 1000)) == 160


# --- knocking ------------------------------------------------------------------------------------


@asynccontextmanager
async def listening(says: bytes) -> Any:
    """A port on loopback that says this to whoever connects, and hangs up."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(says)
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as opened:
        yield opened.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        (GREETING, ""),
        (GREETING + b"more", ""),
        (b"", "something answers there, but it is no libp2p peer"),
        (b"HTTP/1.0 200 OK\r\n\r\n", "something answers there, but it is no libp2p peer"),
        (GREETING[:-1], "something answers there, but it is no libp2p peer"),
    ],
)
def test_only_a_libp2p_peer_counts(says: bytes, expected: str) -> None:
    async def main() -> str:
        async with listening(says) as port:
            return await knock("127.0.0.1", port)

    assert asyncio.run(main()) == expected


def test_a_closed_port_refuses() -> None:
    async def main() -> str:
        async with listening(b"") as port:
            pass
        return await knock("127.0.0.1", port)

    assert asyncio.run(main()) == "connection refused"


# --- the asking side -----------------------------------------------------------------------------


@dataclass
class FakePeers:
    """A `P2PNode` whose connections are these; every stream is served by ``answer``."""

    connected: Connected
    streams: FakeStreams

    async def connections(self) -> Connected:
        return self.connected

    async def open_stream(self, peer: PeerId, protocol: str, timeout_s: float) -> Any:
        assert protocol == DIAL_BACK_PROTOCOL
        return await self.streams.open_stream(peer, protocol, timeout_s)


THREE: Connected = {PeerId(f"peer{number}"): (f"/ip4/5.5.5.{number}/tcp/4000",) for number in (1, 2, 3)}


def always(port: int, host: str, remote_port: int) -> bool:
    return True


def find(streams: FakeStreams, ports: tuple[int, ...] = (4001,)) -> Any:
    async def main() -> Any:
        async with asyncio.TaskGroup() as streams.tasks:
            async with asyncio.timeout(ASK_TIMEOUT_S + 0.1):
                return await find_reachability(FakePeers(THREE, streams), (), ports, always)

    return run_leaping(main())


def telling(answer: DialBackAnswer) -> FakeStreams:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_reach(reader, DialBackRequest)
        writer.write(encode_reach(answer))

    return FakeStreams(serve=serve)


def test_a_node_asks_and_is_told() -> None:
    assert find(telling(DialBackAnswer("5.5.5.20", 4001, (DialOutcome(4001, ""),)))).reachability == "public"
    closed = DialBackAnswer("5.5.5.20", 4001, (DialOutcome(4001, "connection refused"),))
    verdict = find(telling(closed))
    assert verdict.reachability == "punchable"
    assert "none of 3 peers could dial it: connection refused" in verdict.reason


def test_a_node_without_a_port_asks_nobody() -> None:
    streams = FakeStreams()
    assert find(streams, ()).reachability == "unknown"
    assert streams.opened == []


def test_peers_that_do_not_know_the_question_are_passed_over() -> None:
    streams = telling(DialBackAnswer("5.5.5.20", 4001, (DialOutcome(4001, ""),)))
    streams.outcomes = [PeerRefusedError("no"), NetworkError("gone"), None]
    assert find(streams).reason == "1 of 1 peer dialled it"


def test_peers_that_stay_silent_are_not_waited_for() -> None:
    assert find(FakeStreams()).reachability == "unknown"


def test_an_answer_of_damaged_bytes_costs_the_answer() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\xff" * 64)

    assert find(FakeStreams(serve=serve)).reachability == "unknown"


def test_who_is_asked() -> None:
    def at(host: int, *more: str) -> tuple[str, ...]:
        return (*more, f"/ip4/5.5.5.{host}/tcp/4000")

    connected = {
        PeerId("relayed"): (RELAYED,),
        PeerId("a"): at(1),
        PeerId("same host as a"): at(1),
        **{PeerId(f"p{number}"): at(number) for number in range(2, 8)},
        PeerId("seed"): at(9, RELAYED),
    }
    asked = choose_asked(connected, [PeerId("seed"), PeerId("away"), PeerId("seed")])
    assert [each.peer for each in asked] == ["seed", "a", "p2", "p3", "p4"]
    assert asked[0].where.host == "5.5.5.9"


def test_what_an_answer_means() -> None:
    where = Endpoint("5.5.5.1", "ip4", "tcp", 4000)
    told = DialBackAnswer("5.5.5.20", 777, (DialOutcome(4001, "connection refused"), DialOutcome(9, "")))
    answer = understand(told, where, (4001,), always)
    assert (answer.peer_host, answer.seen_at, answer.is_reached) == ("5.5.5.1", "5.5.5.20:777", False)
    assert understand(told, where, (4001, 9), always).is_reached is True
    assert understand(told, where, (4001, 9), always).seen_port == 0, "it may have been dialled from either"
    assert understand(told, where, (4001,), lambda *_: False).seen_port == 0
    assert understand(told, Endpoint("5.5.5.1", "ip4", "udp", 4000), (4001,), always).seen_port == 0
    assert understand(DialBackAnswer("", 0, refusal="no"), where, (4001,), always).is_reached is None
    with pytest.raises(RemoteProtocolError, match="no IP address"):
        understand(DialBackAnswer("nowhere", 1), where, (4001,), always)


# --- this machine's sockets ----------------------------------------------------------------------


def test_a_row_of_the_system_table() -> None:
    rows = [
        "   0: 0201A8C0:0FA1 01050505:0FA0 01 00000000:00000000 00:00000000 00000000     0        0 1",
        "   1: 0201A8C0:8AE1 02050505:0FA0 01 00000000:00000000 00:00000000 00000000     0        0 1",
        "   2: 00000000000000000000000001000000:0FA1 0000002A000000000000000001000000:0FA0 01",
        "garbage",
    ]
    assert local_ports(rows, "5.5.5.1", 4000) == {4001}
    assert local_ports(rows, "5.5.5.2", 4000) == {0x8AE1}
    assert local_ports(rows, "5.5.5.2", 4001) == set()
    assert local_ports(rows, "2a00::1", 4000) == {4001}


def test_the_port_that_a_connection_comes_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    async def main() -> None:
        async with listening(GREETING) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            own = writer.get_extra_info("sockname")[1]
            assert dials_from(own, "127.0.0.1", port)
            assert not dials_from(own % 65535 + 1, "127.0.0.1", port)
            writer.close()

    asyncio.run(main())
    monkeypatch.setattr(sockets, "TABLES", (tmp_path / "not there",))
    assert dials_from(1, "127.0.0.1", 1)


def test_own_hosts() -> None:
    assert "127.0.0.1" in own_hosts(["127.0.0.1"])
    assert own_hosts(["a name"]) == own_hosts([])


def test_a_proxy_on_the_own_machine_is_not_dialled_for_others() -> None:
    """It sees everybody at its own address: to dial there would show strangers its ports."""
    knocker = Knocker()
    subject = server(knocker, {ASKER: ("/ip4/127.0.0.1/tcp/40000",)})
    answer = asyncio.run(ask(subject, DialBackRequest((22, 4001))))
    assert "proxy" in answer.refusal
    assert knocker.knocked == []


def test_a_peer_behind_a_proxy_cannot_tell_whether_we_are_reached() -> None:
    told = DialBackAnswer("172.17.0.1", 40000, (DialOutcome(4001, "connection refused"),))
    answer = understand(told, Endpoint("5.5.5.9", "ip4", "tcp", 4001), (4001,), lambda *_: True)
    assert answer.is_reached is None
    assert answer.seen_at == ""
