"""Is a node public, punchable or relayed? A guess before anybody was dialled, and a verdict from what peers saw.

*public*: strangers can dial it. *punchable*: its router lets nobody in, but gives it one outside port whomever it
speaks with (endpoint-independent mapping, RFC 4787), so two such peers can connect by dialling at the same moment.
*relayed*: its router gives it another outside port for each peer (a symmetric NAT), which nobody can foretell.

Peers may lie. Each address of a peer has one voice, and the majority decides: a single peer decides only where nobody
else was asked, or where the others are split evenly. In doubt a node counts as private: a private node that is public
costs a detour, a public one that is private is waited for by everybody.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from understudy.protocol.wire.contact import Reachability

ANSWERS_MAX = 5
"""Peers that are asked: of five, two may lie."""
ALIKE_MIN = 2
"""Peers that must have seen us at one outside port before it counts as the same for all."""
LOCAL_NAMES = ("localhost", ".local", ".lan", ".internal", ".home.arpa")


@dataclass(frozen=True, slots=True)
class Answer:
    """What one peer said about us."""

    peer_host: str
    """The IP address at which we are connected to that peer: known to us, not said by it."""
    seen_host: str
    """The IP address at which it sees our connection; empty if it cannot tell."""
    seen_port: int
    """The port there; 0 if it cannot tell, or if it tells nothing because we did not dial from our listening port."""
    is_reached: bool | None
    """Whether it reached our listening port; None if it did not try."""
    failure: str = ""
    """Why it did not reach us, or did not try: visible characters only."""

    @property
    def seen_at(self) -> str:
        """As a person writes it; empty if it is not known."""
        return spell(self.seen_host, self.seen_port) if self.seen_host else ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How we can be reached, and why we think so, for people."""

    reachability: Reachability
    reason: str
    seen_at: str = ""
    """Where most peers see us, as host:port; empty if nobody said."""
    seen_host: str = ""
    """Of a public peer: the IP address at which most of those who dialled it did so."""


def is_global(host: str) -> bool:
    """Whether a host can be dialled from anywhere, as far as its spelling tells.

    Not so: private, loopback and documentation ranges, those that providers share among customers (100.64/10), and
    names that only a local network knows.
    """
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return "." in host and not host.lower().endswith(LOCAL_NAMES)


def guess(
    own_addresses: Iterable[str], initial_addresses: Iterable[str], announced: Iterable[str], is_behind_nat: bool
) -> Reachability:
    """How a node can probably be reached, before it dialled anybody. All addresses are hosts: IP addresses or names.

    "punchable" stands for private, until more is known. Whoever joins through a private address shares a local network
    with the swarm, or containers on one machine: there everybody can dial everybody.
    """
    if any(announced):
        return "public"
    if is_behind_nat:
        return "punchable"
    if any(is_global(host) for host in own_addresses):
        return "public"
    return "punchable" if any(is_global(host) for host in initial_addresses) else "public"


def judge(answers: Sequence[Answer]) -> Verdict:
    """How we can be reached, from the answers of up to `ANSWERS_MAX` peers; the first ones count."""
    voices = _voices(answers)
    tried = [answer for answer in voices if answer.is_reached is not None]
    if not tried:
        return Verdict("unknown", _why_nobody_tried(voices))
    reached = [answer for answer in tried if answer.is_reached]
    if 2 * len(reached) > len(tried):
        told = f"{len(reached)} of {_count(len(tried), 'peer')} dialled it"
        hosts = [answer.seen_host for answer in reached]
        return Verdict("public", told, _most_seen(reached), max(hosts, key=hosts.count))
    return _judge_private(voices, f"{_how_many_failed(tried)}: {_failures(tried)}")


def is_news(known: Verdict, found: Verdict) -> bool:
    """Whether a later look says something else. Silence does not."""
    return found.reachability not in ("unknown", known.reachability)


def _judge_private(voices: Sequence[Answer], failed: str) -> Verdict:
    """Which kind of router stands before us. ``failed``: why we are private."""
    seen_by: dict[str, int] = defaultdict(int)
    for answer in _of_one_family([answer for answer in voices if answer.seen_host and answer.seen_port]):
        seen_by[answer.seen_at] += 1
    seen_at = max(seen_by, key=seen_by.__getitem__, default="")
    if sum(seen_by.values()) < ALIKE_MIN:
        unknown = "what its router does is not known, as fewer than two peers at different addresses told"
        return Verdict("punchable", f"{failed}; {unknown}", _most_seen(voices))
    if seen_by[seen_at] >= ALIKE_MIN:
        return Verdict("punchable", f"{failed}; {seen_by[seen_at]} peers see it at the same {seen_at}", seen_at)
    return Verdict("relayed", f"{failed}; each peer sees it at another port: {', '.join(seen_by)}", seen_at)


def _of_one_family(telling: Sequence[Answer]) -> list[Answer]:
    """Who sees us by IPv4 or by IPv6, whichever are more: one peer has an address of each, which tells of no router."""
    by_ip6 = [answer for answer in telling if ":" in answer.seen_host]
    by_ip4 = [answer for answer in telling if ":" not in answer.seen_host]
    return max(by_ip4, by_ip6, key=len)


def _voices(answers: Sequence[Answer]) -> list[Answer]:
    """One for each address of a peer. Peers in our own network do not count where there are others.

    No router is between us. Where a peer is, libp2p told us; where it sees us is its own word.
    """
    outside = [answer for answer in answers if is_global(answer.peer_host)]
    voices: dict[str, Answer] = {}
    for answer in outside or answers:
        voices.setdefault(answer.peer_host, answer)
    return list(voices.values())[:ANSWERS_MAX]


def _most_seen(voices: Sequence[Answer]) -> str:
    told = [answer.seen_at for answer in voices if answer.seen_host]
    return max(told, key=told.count, default="")


def _how_many_failed(tried: Sequence[Answer]) -> str:
    failed = sum(not answer.is_reached for answer in tried)
    if failed < len(tried):
        return f"only {len(tried) - failed} of {_count(len(tried), 'peer')} could dial it"
    return "the one peer that tried could not dial it" if failed == 1 else f"none of {failed} peers could dial it"


def _failures(tried: Iterable[Answer]) -> str:
    """Every reason once."""
    return ", ".join(dict.fromkeys(answer.failure for answer in tried if not answer.is_reached and answer.failure))


def _why_nobody_tried(voices: Sequence[Answer]) -> str:
    reasons = ", ".join(dict.fromkeys(answer.failure for answer in voices if answer.failure))
    return f"no peer tried to dial it{': ' if reasons else ''}{reasons}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def spell(host: str, port: int) -> str:
    """Host and port as a person writes them; without the port if it is 0."""
    if not port:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
