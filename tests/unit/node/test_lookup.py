"""Reading from the DHT: who is asked, how often, and what is made of the answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Self

from understudy.node.dht.lookup import KEYS_PER_CALL_MAX, ROUNDS_MAX, Entries, look_up

WIDTH = 3
"""Peers that answer for a key, where hivemind has 20."""


class NodeId(int):
    """A place in the space of keys."""

    @classmethod
    def generate(cls, key: str) -> Self:
        return cls(key.removeprefix("key"))

    def xor_distance(self, other: int) -> int:
        return self ^ other


Answer = tuple[Any, dict[NodeId, str]]


def holding(**entries: tuple[bytes, float]) -> Any:
    """A record of the DHT with these subkeys."""
    return SimpleNamespace(value={subkey.encode(): entry for subkey, entry in entries.items()})


@dataclass
class Blacklist:
    banned: set[str] = field(default_factory=set)

    def __contains__(self, peer: str) -> bool:
        return peer in self.banned

    def register_failure(self, peer: str) -> None:
        self.banned.add(peer)

    def register_success(self, peer: str) -> None:
        self.banned.discard(peer)


class Dht:
    """What `look_up` needs of a DHTNode: node 0, which knows ``known`` and calls peers that answer by ``answer``."""

    def __init__(self, known: Iterable[int], answer: Callable[[int, NodeId], Answer | None]) -> None:
        self.node_id = NodeId(0)
        self.blacklist = Blacklist()
        self.calls: list[tuple[int, list[int]]] = []
        self.own: dict[int, Any] = {}
        self._answer = answer
        table = SimpleNamespace(get_nearest_neighbors=lambda key, _: [(NodeId(one), str(one)) for one in known])
        self.protocol = SimpleNamespace(
            bucket_size=WIDTH, routing_table=table, storage=SimpleNamespace(get=self.own.get), call_find=self._find
        )

    async def _find(self, peer: str, keys: list[NodeId]) -> dict[NodeId, Answer] | None:
        self.calls.append((int(peer), sorted(keys)))
        answers = {key: self._answer(int(peer), key) for key in keys}
        return None if None in answers.values() else answers  # type: ignore[return-value]

    def read(self, *keys: int) -> dict[str, Entries]:
        return asyncio.run(look_up(self, [f"key{key}" for key in keys]))


def nobody(peer: int, key: NodeId) -> Answer:
    return None, {}


def test_each_peer_is_called_once_for_all_keys() -> None:
    dht = Dht([1, 2, 3], nobody)
    assert dht.read(4, 5, 6, 7) == {"key4": {}, "key5": {}, "key6": {}, "key7": {}}
    assert sorted(dht.calls) == [(peer, [4, 5, 6, 7]) for peer in (1, 2, 3)]


def test_many_keys_are_asked_for_in_several_calls() -> None:
    dht = Dht([1], nobody)
    dht.read(*range(10, 10 + 2 * KEYS_PER_CALL_MAX + 1))
    assert [len(keys) for _, keys in dht.calls] == [KEYS_PER_CALL_MAX, KEYS_PER_CALL_MAX, 1]


def test_answers_are_united_and_the_latest_of_each_subkey_wins() -> None:
    said = {
        1: holding(a=(b"old", 1.0), b=(b"only 1 knows", 1.0)),
        2: holding(a=(b"new", 2.0)),
        3: holding(a=(b"older", 0.5)),
    }
    dht = Dht([1, 2, 3], lambda peer, _: (said[peer], {}))
    dht.own[9] = holding(c=(b"mine", 1.0), a=(b"mine", 1.5))
    assert dht.read(9) == {"key9": {b"a": (b"new", 2.0), b"b": (b"only 1 knows", 1.0), b"c": (b"mine", 1.0)}}


def test_a_plain_value_is_passed_over() -> None:
    dht = Dht([1], lambda *_: (SimpleNamespace(value=b"plain"), {}))
    assert dht.read(9) == {"key9": {}}


def test_the_walk_goes_on_to_the_nearest_that_others_know() -> None:
    """Node n knows n + 16 only, and what is sought lies at the end of the line."""

    def answer(peer: int, key: NodeId) -> Answer:
        found = holding(a=(b"value", 1.0)) if peer == key else None
        return found, {NodeId(peer + 16): str(peer + 16), NodeId(0): "0"}

    dht = Dht([1], answer)
    assert dht.read(1 + 16 * (ROUNDS_MAX - 1))["key49"] == {b"a": (b"value", 1.0)}
    assert [peer for peer, _ in dht.calls] == [1, 17, 33, 49]


def test_only_the_nearest_are_asked() -> None:
    dht = Dht([1, 2, 4, 8, 16, 32], nobody)
    dht.read(33)
    distances = {peer: peer ^ 33 for peer in (1, 2, 4, 8, 16, 32)}
    assert {peer for peer, _ in dht.calls} == set(sorted(distances, key=distances.__getitem__)[:WIDTH])


def test_a_silent_peer_is_called_once_and_not_again_while_it_is_banned() -> None:
    dht = Dht([1, 2], lambda peer, _: None if peer == 1 else (holding(a=(b"value", 1.0)), {}))
    for _ in range(2):
        assert dht.read(9)["key9"] == {b"a": (b"value", 1.0)}
    assert Counter(peer for peer, _ in dht.calls) == {1: 1, 2: 2}


def test_peers_that_invent_others_cannot_lead_on_for_ever() -> None:
    invented = iter(range(1_000, 1_000_000))

    def answer(peer: int, key: NodeId) -> Answer:
        names = [next(invented) for _ in range(1_000)]
        return holding(a=(b"value", 1.0)), {NodeId(key ^ (1_000_000 - name)): str(name) for name in names}

    dht = Dht([1], answer)
    assert dht.read(9)["key9"] == {b"a": (b"value", 1.0)}
    assert len(dht.calls) <= 1 + (ROUNDS_MAX - 1) * WIDTH
