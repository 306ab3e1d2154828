"""What a verdict means to the person in front of the node, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable

from understudy.protocol.reach.addresses import is_here, is_public
from understudy.protocol.reach.verdict import Verdict, is_global


def say(verdict: Verdict, port: int) -> str:
    """One line. ``port``: where the node listens, 0 if it has no port."""
    match verdict.reachability:
        case "public":
            return f"this machine can be dialled from outside ({verdict.reason})"
        case "punchable":
            told = "is behind a router that lets peers punch through: neighbours connect directly after a moment"
            return f"this machine {told} ({verdict.reason})"
        case "relayed":
            told = "is behind a router that gives each peer another port (symmetric NAT): traffic goes through peers"
            return f"this machine {told} that relay; {what_to_forward(port)} ({verdict.reason})"
        case "unknown":
            return f"whether this machine can be dialled from outside is not known ({verdict.reason})"


def what_to_forward(port: int) -> str:
    """How a private machine becomes a public one."""
    which = f"TCP port {port}" if port else "a TCP port (choose it with --host-maddr)"
    return f"forward {which} to this machine and it becomes direct"


def whom_it_reaches(addresses: Iterable[str]) -> str:
    """What the seed has to be told if its addresses mean nothing to strangers; empty if they do."""
    known = list(addresses)
    if any(map(is_public, known)) or all(map(is_here, known)):
        return ""
    return (
        "These addresses are of the seed's local network: nobody outside of it can join. For the others forward a port "
        "of the router to this machine, and start the seed with --host-maddr /ip4/0.0.0.0/tcp/PORT and "
        "--announce-maddr /ip4/PUBLIC-ADDRESS/tcp/PORT."
    )


def doubt_announced(announced: str, host: str, verdict: Verdict) -> str:
    """What to check when peers do not find us at the address that we announce; empty if nothing speaks against it.

    ``host``: that of the announced address; a name is not compared with what peers see.
    """
    if verdict.reachability in ("public", "unknown"):
        return ""
    told = f"nobody finds this machine at {announced}, which it announces ({verdict.reason})"
    seen_host = verdict.seen_at.rpartition(":")[0].strip("[]")
    if seen_host and is_global(seen_host) and host[:1].isdigit() and seen_host != host:
        return f"{told}: peers see it at {seen_host}; check the address"
    return f"{told}: check that the router forwards this port here, that the firewall lets it in, and the address"
