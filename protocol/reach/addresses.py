"""Which of the addresses that a peer says of itself are worth dialling from here, and in which order."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from understudy.protocol.wire.contact import ADDRESS_CHARS_MAX, ADDRESSES_MAX

LOOPBACK = "loopback"
CIRCUIT = "/p2p-circuit"
"""In an address: through a relay."""
_BLOCKS = tuple(
    map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10", "fc00::/7"))
)
"""Networks whose addresses mean something within them only. Carriers share 100.64.0.0/10 among their customers."""


def is_relayed(address: str) -> bool:
    """Whether the address leads through a relay."""
    return CIRCUIT in address


def ip_of(address: str) -> IPv4Address | IPv6Address | None:
    """The IP address that a multiaddr begins with; None if it is a name, or no multiaddr."""
    parts = address.split("/", 3)
    if len(parts) < 3 or parts[1] not in ("ip4", "ip6"):
        return None
    try:
        return ip_address(parts[2])
    except ValueError:
        return None


def is_public(address: str) -> bool:
    """Whether the address means the same everywhere: a name, or an IP address that is nobody's own network."""
    ip = ip_of(address)
    if ip is None:
        return address.startswith("/dns")
    return not (ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified or _block(address))


def is_here(address: str) -> bool:
    """Whether the address can only be reached from its own machine."""
    return _block(address) == LOOPBACK


def _block(address: str) -> str:
    """The private network that the address is of; empty if of none."""
    ip = ip_of(address)
    if ip is not None and ip.is_loopback:
        return LOOPBACK
    return next((str(block) for block in _BLOCKS if ip is not None and ip.version == block.version and ip in block), "")


def _public_hosts(addresses: Iterable[str]) -> set[str]:
    """The hosts at which a peer can be dialled directly from everywhere."""
    return {address.split("/", 3)[2] for address in addresses if is_public(address) and not is_relayed(address)}


def worth_dialling(addresses: Iterable[str], own: Collection[str]) -> tuple[str, ...]:
    """What may lead to a peer from a machine with the addresses ``own``: direct ways first, then through relays.

    An address of a private network is dialled from such a network only: elsewhere it is a stranger's machine. So this
    machine alone is dialled only by who has no other address.
    """
    addresses, own = tuple(addresses), [address for address in own if not is_relayed(address)]
    blocks = {_block(address) for address in own}
    blocks = blocks - {"", LOOPBACK} or blocks - {""}
    outside, our_outside = _public_hosts(addresses), _public_hosts(own)
    if outside and our_outside and not outside & our_outside:
        blocks = set()  # both can be dialled by everybody, and the same private network would be a coincidence

    def may_lead(address: str) -> bool:
        return is_public(address) or _block(address) in blocks

    found = [address for address in dict.fromkeys(addresses) if may_lead(address)]
    return tuple(sorted(found, key=is_relayed))


def to_say(addresses: Iterable[str]) -> tuple[str, ...]:
    """Of a peer's own addresses those that it tells others: public ones first, then relayed ones, then its network's.

    Addresses of this machine alone are said only where there are no others.
    """
    all_of_them = [address for address in dict.fromkeys(addresses) if len(address) <= ADDRESS_CHARS_MAX]
    told = [address for address in all_of_them if not is_here(address)] or all_of_them
    ranked = sorted(told, key=lambda address: (not is_public(address), is_relayed(address)))
    return tuple(ranked[:ADDRESSES_MAX])
