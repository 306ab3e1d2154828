"""What a relay of ours lets each circuit do, and how p2pd is told."""

from __future__ import annotations

from dataclasses import dataclass

PROCESSORS = 1
"""That p2pd may use when it relays: see `RelayLimits.flags`."""


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """Of each circuit. libp2p's own limits, 128 KiB and 2 minutes, end it with a reset."""

    data_bytes: int = 1 << 50
    """In each direction: without limit in practice, as a circuit carries activations for as long as a run lasts."""
    time_s: int = 24 * 3600
    """A circuit that everybody forgot ends within a day. A link that is still in use dials again."""
    circuits_per_peer: int = 64
    """Open at a time to one peer that is reached through us: one for each of those that talk with it, and in a run
    these are its neighbours, the witnesses and the driver. p2pd's own 16 is near to what a large run needs."""
    buffer_bytes: int = 256 * 1024
    """Of each direction of a circuit, so that a circuit takes half a megabyte however slowly it is read. On one
    processor one circuit moved 110 to 131 MB/s and six 62 to 118 MB/s with 64 KiB to 16 MiB, p2pd's own, which was the
    fastest: more than an uplink has. p2pd counts both buffers against its memory before it accepts a circuit."""

    def flags(self) -> dict[str, str]:
        """The options of p2pd.

        It starts two relay services, one with our limits and one with libp2p's, and the last one counts. Ours is the
        last if p2pd knows from the start that it is public, runs the AutoNAT service, and has one processor: then it
        was so 32 of 32 times. With two or four processors 5 to 6 of 8, without AutoNAT 4 of 12. node/p2p/relay.py looks
        which one it was.
        """
        return {
            "relayService": "1",
            "forceReachabilityPublic": "1",
            "autonat": "1",
            "relayDataLimit": str(self.data_bytes),
            "relayTimeLimit": f"{self.time_s}s",
            "relayMaxCircuits": str(self.circuits_per_peer),
            "relayBufferSize": str(self.buffer_bytes),
        }
