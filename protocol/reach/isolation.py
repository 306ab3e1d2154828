"""A node that nobody can get to says so, and what would help, instead of waiting."""

from __future__ import annotations

from dataclasses import dataclass

TOLD_AFTER_S = 8.0
"""A place at a relay is given within a second of our start."""
TOLD_AGAIN_S = 60.0

NO_RELAY = "this machine is behind a router, and none of the peers of its join string relays for it (any more)"
ADVICE = (
    "if one of them is back, start this node again; if not, join with the join string of a peer that everybody can "
    "dial: one with a public address, or with a port that its router forwards and --announce-maddr; this may be it"
)


@dataclass(slots=True)
class Isolation:
    """Since when a private node has no place at any relay."""

    since: float | None = None
    told_at: float | None = None

    def look(self, now: float, *, is_private: bool, has_relay: bool) -> tuple[str, str] | None:
        """What is wrong and what would help, when it is to be said; None otherwise."""
        if not is_private or has_relay:
            self.since = self.told_at = None
            return None
        if self.since is None:
            self.since = now
        is_due = self.told_at is None or now - self.told_at >= TOLD_AGAIN_S
        if now - self.since < TOLD_AFTER_S or not is_due:
            return None
        self.told_at = now
        return NO_RELAY, ADVICE
