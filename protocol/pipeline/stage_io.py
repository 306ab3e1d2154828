"""The way in and out of a stage: its queue, the routes of microbatches, and what waits for another stage's owner."""

from __future__ import annotations

from understudy.protocol.errors import RemoteProtocolError
from understudy.protocol.ids import DRIVER_STAGE
from understudy.protocol.jobs import Payload
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.paths import peer_at
from understudy.protocol.pipeline.queue import WorkQueue
from understudy.protocol.routing import Route, following, preceding, route
from understudy.protocol.wire.messages import DataMessage, Forward


class StageIO:
    """The way in and out of a stage: work queue, routes, and messages parked for a missing owner."""

    def __init__(self, state: NodeState, queue: WorkQueue) -> None:
        self._state = state
        self.queue = queue
        self._parked: dict[int, dict[int, tuple[DataMessage, Payload]]] = {}
        """By stage, the last message of each microbatch, in the order that they came."""

    def route(self, index: int) -> Route:
        manifest = self._state.manifest
        return route(manifest.recovery.method, manifest.model.block_stages, index)

    def is_on_route(self, message: DataMessage) -> bool:
        """Whether the message comes from where its route says.

        If not, it was meant for another stage that the sender takes us for, because we held it once.
        Raises `RemoteProtocolError` for a microbatch that does not exist, or a path that cannot be its own.
        """
        if message.index >= self._state.manifest.step.microbatches:
            raise RemoteProtocolError(f"microbatch {message.index} of step {message.step} does not exist")
        if len(message.path) not in (0, 1 + len(self.route(message.index))):
            raise RemoteProtocolError(f"a path of {len(message.path)} peers, on a route of other length")
        origin = preceding if isinstance(message, Forward) else following
        return message.stage == origin(self.route(message.index), self._state.stage)

    def deliver(self, stage: int, message: DataMessage, payload: Payload) -> None:
        """Send to whom the message's path names, else to whoever serves the stage, or keep it until somebody does."""
        serving = self._state.membership.serving_peers(stage)
        if serving:
            named = peer_at(message.path, self.route(message.index), stage)
            self._state.send(named if named in serving else serving[0], message, payload)
            return
        waiting = self._parked.setdefault(stage, {})
        waiting.pop(message.index, None)
        waiting[message.index] = (message, payload)

    def owner_changed(self, stage: int) -> None:
        """A new owner serves the stage: it has use for activations, but for no gradient of before.

        A new driver has use for neither: all attempts of its predecessor are outdated.
        """
        parked = self._parked.pop(stage, {})
        if stage != DRIVER_STAGE:
            for message, payload in parked.values():
                if isinstance(message, Forward):
                    self.deliver(stage, message, payload)

    def owner_revived(self, stage: int) -> None:
        """The same owner speaks again."""
        for message, payload in self._parked.pop(stage, {}).values():
            self.deliver(stage, message, payload)

    def forget_before(self, step: int) -> None:
        """Nothing of an earlier step is wanted any more."""
        self.queue.forget_before(step)
        for stage, waiting in self._parked.items():
            self._parked[stage] = {index: entry for index, entry in waiting.items() if entry[0].step >= step}

    def forget_attempts(self, index: int) -> None:
        """A newer attempt of the microbatch begins: drop what waits of older ones."""
        self.queue.forget(index)
        for waiting in self._parked.values():
            waiting.pop(index, None)
