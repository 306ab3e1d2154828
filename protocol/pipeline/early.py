"""Activations that came before the word that makes them due: S0 decided the step before, or there is a new S0.

An activation of the next step implies that S0 decided ours; but whoever passes it on may lie, and a stage that closes a
step which is not over leaves all others. So it waits for S0's own word, or for that of a second owner.
"""

from __future__ import annotations

from understudy.protocol.jobs import Payload
from understudy.protocol.wire.messages import Forward


class EarlyArrivals:
    """What waits, the newest attempt of each microbatch; no more than S0 has under way at a time."""

    def __init__(self, most: int) -> None:
        """``most``: activations kept, each as large as one on the wire."""
        self._most = most
        self._waiting: dict[int, tuple[Forward, Payload]] = {}

    def keep(self, message: Forward, payload: Payload) -> bool:
        """Let it wait. False: there is no room."""
        known = self._waiting.get(message.index)
        if known is None and len(self._waiting) >= self._most:
            return False
        if known is None or (known[0].step, known[0].attempt) < (message.step, message.attempt):
            self._waiting[message.index] = (message, payload)
        return True

    def take(self) -> list[tuple[Forward, Payload]]:
        """All that waits, in the order of arrival. What is still early is kept again by whoever asks."""
        taken, self._waiting = list(self._waiting.values()), {}
        return taken
