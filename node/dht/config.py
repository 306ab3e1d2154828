"""How this peer takes part in a swarm: addresses, and what libp2p may do to be reached."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from understudy.node.admission.door import Door
from understudy.node.p2p.addresses import JoinString, is_loopback
from understudy.node.p2p.daemon import DaemonSettings
from understudy.node.p2p.identity import Identity
from understudy.node.p2p.relay_limits import RelayLimits


@dataclass(frozen=True, slots=True)
class SwarmConfig:
    """Where this peer listens, what it tells others, and whom it dials first."""

    host_maddrs: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0",)
    """Addresses to listen on; port 0 is any free port."""
    announce_maddrs: tuple[str, ...] = ()
    """Addresses others are told instead of the ones found; empty: the ones found."""
    initial_peers: tuple[str, ...] = ()
    """Peers to dial, with /p2p/<PeerID>; empty: found a new swarm."""
    uses_relay: bool = True
    """Let peers behind NAT be reached through others."""
    may_relay: bool = True
    """Be one of those through whom others are reached, unless nobody can dial this peer either."""
    is_behind_nat: bool = False
    """Nobody can dial this peer: it is reached through the initial peers, and keeps nothing for the DHT's others."""
    join_patience_s: float = 0.0
    """Seconds to go on dialling while none of the initial peers listens."""
    run_id: str = ""
    """The run whose records this peer keeps for others; empty: of any."""
    is_reader: bool = False
    """Only read: be unknown to the DHT's peers, keep nothing for them, sign nothing. Any identity will do."""
    door: Door | None = None
    """Who is let in, and what this peer shows to be let in; None: the run is open."""

    def daemon_settings(self, binary: Path, identity: Identity, reachable: tuple[str, ...]) -> DaemonSettings:
        """p2pd's command line; what only makes sense beyond this machine is off on loopback."""
        is_local, is_private = self.is_local, self.is_private
        uses_relay = self.uses_relay and (self.is_reader or not is_local)
        relays = uses_relay and self.may_relay and not (self.is_reader or is_private)
        return DaemonSettings(
            binary=binary,
            identity_path=None if self.is_reader else identity.path,
            host_maddrs=self.host_maddrs,
            announce_maddrs=self.announce_maddrs,
            bootstrap_maddrs=reachable,
            uses_nat_port_map=not is_local,
            uses_auto_nat=not is_local,
            uses_relay=uses_relay,
            relay_limits=RelayLimits() if relays else None,
            relay_maddrs=reachable if is_private else (),
            is_private=is_private,
            is_dht_server=not self.is_dht_client,
        )

    @property
    def is_local(self) -> bool:
        """It listens on this machine only."""
        return all(is_loopback(address) for address in self.host_maddrs)

    @property
    def is_private(self) -> bool:
        """It can only be reached through others."""
        return self.is_behind_nat and not (self.is_reader or self.is_local)

    @property
    def is_dht_client(self) -> bool:
        """It asks the DHT's peers and is asked nothing: others would keep records with it and wait for it."""
        return self.is_reader or self.is_private


def reader_config(initial_peers: tuple[str, ...], door: Door | None = None) -> SwarmConfig:
    """How to look at a swarm without being part of it: no port is open to the outside."""
    host = ("/ip4/127.0.0.1/tcp/0",)
    return SwarmConfig(host_maddrs=host, initial_peers=initial_peers, is_reader=True, door=door)


def guest_config(join: JoinString) -> SwarmConfig:
    """As `reader_config`, for whoever has a join string. Raises `SettingsError` if its invite is of no use."""
    return reader_config(join.addresses, Door.for_guest(join))
