"""Addresses that people type or paste: multiaddrs and the join string of a run.

Everything here answers with a plain `SettingsError` before any daemon is started, because the
daemon's own complaints about an address come late and name no cause.

A join string is one line without spaces::

    understudy:1:<manifest digest>:<run id>:<founder's PeerID>:<multiaddr>,<multiaddr>...
    understudy:2:<manifest digest>:<run id>:<founder's PeerID>:<invite>:<multiaddr>,<multiaddr>...

The second is of a run that lets in only who was invited; its invite is as good as a password.

The digest fixes the manifest, the founder's PeerID fixes who may have signed it, and the
addresses say where to find any peer of the run. Multiaddrs come last because they may contain
colons (IPv6).
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from understudy.protocol.admission.invite import Ticket, decode_ticket
from understudy.protocol.errors import NetworkError, RemoteProtocolError, SettingsError
from understudy.protocol.ids import PEER_ID_CHARS_MAX, PeerId
from understudy.protocol.reach.addresses import is_public

JOIN_PREFIX = "understudy"
OPEN_VERSION, INVITED_VERSION = "1", "2"
JOIN_CHARS_MAX = 4096
JOIN_ADDRESSES_MAX = 16
MULTIADDR_CHARS_MAX = 512
RUN_ID_DIGEST_CHARS = 12
"""A run id ends with this much of the manifest's digest (`RunManifest.run_id`)."""

_JOIN_FIELDS = {OPEN_VERSION: 6, INVITED_VERSION: 7}
_DIGEST = re.compile(r"[0-9a-f]{64}")
_RUN_ID = re.compile(r"[A-Za-z0-9._-]{1,96}")
_PEER_ID = re.compile(rf"[1-9A-HJ-NP-Za-km-z]{{16,{PEER_ID_CHARS_MAX}}}")
_HOSTS = ("ip4", "ip6", "dns", "dns4", "dns6", "dnsaddr")
_FAMILIES = {"ip4": socket.AF_INET, "ip6": socket.AF_INET6}
_EXAMPLE = "/ip4/192.0.2.7/tcp/4001"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a multiaddr points, as far as sockets are concerned."""

    host: str
    host_kind: str
    """ip4, ip6, dns, dns4, dns6 or dnsaddr."""
    transport: str
    """tcp or udp."""
    port: int


@dataclass(frozen=True, slots=True)
class JoinString:
    """What a newcomer needs to find a run and to check what it is told about it."""

    run_id: str
    digest: str
    """Hex SHA-256 of the manifest's canonical bytes: 64 characters."""
    founder: PeerId
    addresses: tuple[str, ...]
    """Multiaddrs of peers to dial, each with /p2p/<PeerID>."""
    ticket: Ticket | None = field(default=None, repr=False)
    """The invite that lets in whoever holds it; None: the run is open."""

    def __str__(self) -> str:
        version = OPEN_VERSION if self.ticket is None else INVITED_VERSION
        invite = () if self.ticket is None else (self.ticket.encode(),)
        fields = (JOIN_PREFIX, version, self.digest, self.run_id, self.founder, *invite, ",".join(self.addresses))
        return ":".join(fields)


def parse_join(text: str) -> JoinString:
    """The inverse of ``str(JoinString)``. Raises `SettingsError` that names the damage."""
    text = text.strip()
    if not text.startswith(f"{JOIN_PREFIX}:"):
        raise SettingsError(
            f"this is not a join string: it must begin with '{JOIN_PREFIX}:'; "
            "copy the whole line that 'understudy bootstrap' printed"
        )
    if len(text) > JOIN_CHARS_MAX:
        raise SettingsError(f"the join string has {len(text)} characters; at most {JOIN_CHARS_MAX} are allowed")
    version = text.split(":", 2)[1]
    if version not in _JOIN_FIELDS:
        raise SettingsError(
            f"the join string is of version {version!r}, this node reads versions {' and '.join(_JOIN_FIELDS)}: "
            "install the version of understudy that the run was founded with"
        )
    fields = text.split(":", _JOIN_FIELDS[version] - 1)
    if len(fields) < _JOIN_FIELDS[version]:
        raise _damaged("it ends too early")
    _, _, digest, run_id, founder, *invite, addresses = fields
    _check_fields(digest, run_id, founder)
    ticket = _parse_ticket(invite[0]) if invite else None
    return JoinString(run_id, digest, PeerId(founder), _parse_join_addresses(addresses), ticket)


def _parse_ticket(text: str) -> Ticket:
    try:
        return decode_ticket(text)
    except RemoteProtocolError as error:
        raise _damaged("its invite cannot be read") from error


def _check_fields(digest: str, run_id: str, founder: str) -> None:
    if not _DIGEST.fullmatch(digest):
        raise _damaged(f"its digest must be 64 hexadecimal digits, not {len(digest)} characters")
    if not _RUN_ID.fullmatch(run_id):
        raise _damaged(f"its run id {run_id!r} contains characters that a run id never has")
    if not run_id.endswith(f"-{digest[:RUN_ID_DIGEST_CHARS]}"):
        raise _damaged("its run id and its digest do not belong together")
    if not _PEER_ID.fullmatch(founder):
        raise _damaged(f"the founder's PeerID {founder!r} is not one")


def _parse_join_addresses(text: str) -> tuple[str, ...]:
    if not text:
        raise _damaged("it contains no address")
    addresses = text.split(",")
    if len(addresses) > JOIN_ADDRESSES_MAX:
        raise _damaged(f"it contains {len(addresses)} addresses, at most {JOIN_ADDRESSES_MAX} are allowed")
    try:
        return tuple(parse_multiaddr(address, needs_peer_id=True) for address in addresses)
    except SettingsError as error:
        raise _damaged(str(error)) from error


def _damaged(what: str) -> SettingsError:
    return SettingsError(f"the join string is damaged: {what}; copy the whole line again, without line breaks")


def parse_multiaddr(text: str, *, needs_peer_id: bool, accepts_port_zero: bool = False) -> str:
    """The multiaddr in canonical spelling. Raises `SettingsError`.

    Listen addresses: ``needs_peer_id=False, accepts_port_zero=True`` (0: any free port).
    Announced addresses: ``needs_peer_id=False``. Peers to dial: ``needs_peer_id=True``.
    """
    address = _parse(text)
    names = [protocol.name for protocol in address.protocols()]
    if needs_peer_id and names[-1] != "p2p":
        raise SettingsError(f"address {text!r} must end with /p2p/<PeerID>: without it the peer cannot be verified")
    if not needs_peer_id and "p2p" in names and "p2p-circuit" not in names:
        raise SettingsError(f"address {text!r} must not contain /p2p/<PeerID>: it is this machine's own")
    if "p2p-circuit" in names:
        return str(address)
    if endpoint_of(text).port == 0 and not accepts_port_zero:
        raise SettingsError(f"address {text!r} has port 0: other peers need the port that is really open")
    return str(address)


def endpoint_of(text: str) -> Endpoint:
    """Host and port of a multiaddr. Raises `SettingsError`."""
    items = [(protocol.name, value) for protocol, value in _parse(text).items()]
    if items[0][0] not in _HOSTS:
        raise SettingsError(f"address {text!r} must begin with /ip4/, /ip6/ or /dns4/, like {_EXAMPLE}")
    if items[0][0] == "dnsaddr":
        return Endpoint(str(items[0][1]), "dnsaddr", "tcp", -1)
    if len(items) < 2 or items[1][0] not in ("tcp", "udp"):
        raise SettingsError(f"address {text!r} has no port: write it like {_EXAMPLE}")
    if items[1][0] == "udp" and (len(items) < 3 or items[2][0] != "quic-v1"):
        raise SettingsError(f"address {text!r} has a udp port without /quic-v1 behind it; tcp is usually meant")
    return Endpoint(str(items[0][1]), items[0][0], items[1][0], int(str(items[1][1])))


def peer_id_in(text: str) -> PeerId:
    """The PeerID a multiaddr ends with. Raises `SettingsError`."""
    protocol, value = list(_parse(text).items())[-1]
    if protocol.name != "p2p":
        raise SettingsError(f"address {text!r} must end with /p2p/<PeerID>: without it the peer cannot be verified")
    return PeerId(str(value))


def told_to_others(addresses: Sequence[str]) -> tuple[str, ...]:
    """Of a peer's own addresses those that newcomers are told: public ones if there are any, else those of its network;
    all, if it is on this machine only.
    """
    elsewhere = tuple(address for address in addresses if not is_loopback(address)) or tuple(addresses)
    return tuple(address for address in elsewhere if is_public(address)) or elsewhere


def is_loopback(text: str) -> bool:
    """Whether the address can only be reached from this machine."""
    host = endpoint_of(text).host
    return host in {"localhost", "::1"} or host.startswith("127.")


def check_listen_port(text: str) -> None:
    """Say now, not after the daemon's start-up timeout, that a port cannot be listened on.

    Binds a TCP socket there and closes it. Without this check two daemons of one user share a
    port in silence (libp2p listens with SO_REUSEPORT) and half of the connections reach the wrong
    one. Raises `NetworkError` for a port in use and `SettingsError` for an impossible address.
    """
    where = endpoint_of(text)
    if where.transport != "tcp" or where.host_kind not in _FAMILIES:
        return
    with socket.socket(_FAMILIES[where.host_kind], socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if where.host_kind == "ip6":
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((where.host, where.port))
            probe.listen(1)
        except OSError as error:
            raise _listen_error(where, error) from error


def _listen_error(where: Endpoint, error: OSError) -> NetworkError | SettingsError:
    if error.errno == errno.EADDRINUSE:
        return NetworkError(
            f"port {where.port} is in use by another program: stop it, or choose another port with --host-maddr"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return SettingsError(
            f"this machine has no address {where.host}: use /ip4/0.0.0.0/tcp/{where.port} in --host-maddr to listen on "
            "all of its addresses"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return SettingsError(f"not permitted to listen on port {where.port}: choose one above 1023 with --host-maddr")
    return SettingsError(f"cannot listen on {where.host} port {where.port}: {error.strerror}")


def _parse(text: str) -> Multiaddr:
    if not text.startswith("/") or len(text) > MULTIADDR_CHARS_MAX or not text.isprintable():
        raise SettingsError(f"{text[:MULTIADDR_CHARS_MAX]!r} is not an address: write it like {_EXAMPLE}")
    try:
        address = Multiaddr(text)
        is_empty = not list(address.items())
    except (MultiaddrError, ValueError, LookupError) as error:
        reason = getattr(error, "message", None) or str(error)
        raise SettingsError(f"{text!r} is not an address: {reason}; write it like {_EXAMPLE}") from error
    if is_empty:
        raise SettingsError(f"{text!r} is not an address: write it like {_EXAMPLE}")
    return address
