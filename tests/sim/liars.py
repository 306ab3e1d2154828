"""Members of the run that lie: peers that hold no stage, and owners gone bad.

A liar has an identity, and says and publishes whatever it is told to; a bad owner also goes on as an honest one would.
All that it says is well-formed: what is not costs its sender the stream (tests/swarm/test_hostile_peer.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tests.seals import NamedSeal
from tests.sim.judgement import LogLine
from tests.sim.node import Activation, Gradient, SimNode
from tests.sim.simulation import Simulation, StoredRecord
from understudy.protocol.core import Core
from understudy.protocol.events import MessageReceived
from understudy.protocol.ids import INCARNATION_MAX, STEPS_MAX, Attempt, PeerId
from understudy.protocol.wire.fields import StageState
from understudy.protocol.wire.messages import (
    Alive,
    Announce,
    AnyMessage,
    Backward,
    Claim,
    Commit,
    CommitAck,
    Dropped,
    Fenced,
    Forward,
    Grant,
    Heartbeat,
    Lost,
    Refusal,
    Withdraw,
)
from understudy.protocol.wire.records import AnyRecord, OfferRecord, ProgressRecord, StageRecord, key_of

LIAR = PeerId("a-liar")
"""Before all others: it wins every tie."""
RECORD_S = 3600.0
MESSAGE_S = 0.002


class LyingSimulation(Simulation):
    """A swarm with somebody in it who lies."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.liars: set[PeerId] = set()
        self.add_liar(LIAR)

    def add_liar(self, peer: PeerId) -> None:
        """Somebody who holds nothing, and of whom nobody sees anything but what `lie` and `publish` make of it."""
        node = SimNode(peer, Core(NamedSeal(peer), self.manifest))
        node.is_stopped = node.is_silent = True
        self.nodes[peer] = node
        self.liars.add(peer)

    def peer_of(self, stage: int) -> PeerId:
        """Who serves the stage: it goes bad with its first lie."""
        owner = self.owner(stage)
        assert owner is not None
        self.liars.add(owner.peer)
        return owner.peer

    def lie(self, liar: PeerId, *messages: AnyMessage, to: int | None = None) -> None:
        """Say something to the owner of a stage, or to every node."""
        targets = [self.owner(to)] if to is not None else list(self.nodes.values())
        for target in targets:
            if target is not None and target.peer != liar:
                for message in messages:
                    self.at(
                        self.now + MESSAGE_S, lambda target=target, message=message: self._tell(target, liar, message)
                    )

    def _tell(self, target: SimNode, liar: PeerId, message: AnyMessage) -> None:
        payload, hosting = None, target.hosting
        if isinstance(message, Forward | Backward) and hosting is not None:
            path = target.path(message.index)
            came_by = path[: path.index(hosting.stage)] if hosting.stage in path else path
            is_forward = isinstance(message, Forward)
            payload = Activation(message.microbatch, came_by) if is_forward else Gradient(message.microbatch, came_by)
        self.feed(target, MessageReceived(liar, message, payload))

    def publish(self, record: AnyRecord) -> None:
        """Store a record for an hour."""
        entries = self._dht.setdefault(key_of(record), {})
        entries[PeerId(record.peer)] = StoredRecord(record, self.now + RECORD_S, self.now)

    def again(self, period_s: float, until: float, act: Callable[[], None]) -> None:
        """Do something every ``period_s`` from now on."""
        act()
        if self.now + period_s < until:
            self.at(self.now + period_s, lambda: self.again(period_s, until, act))

    def _note(self, node: SimNode, name: str, fields: dict[str, Any]) -> None:
        """To accuse a liar is just."""
        if name == "peer.misbehaved" and fields["offender"] in self.liars:
            self.log.append(LogLine(self.now, node.peer, name, fields))
        else:
            super()._note(node, name, fields)

    # --- what came of it ---

    @property
    def last_step(self) -> int:
        return self.judge.last_committed

    def holders(self) -> list[PeerId | None]:
        """Who serves each stage."""
        owners = [self.owner(stage) for stage in range(self.manifest.stage_count)]
        return [owner.peer if owner is not None else None for owner in owners]


# --- lies at random ------------------------------------------------------------------------------

STATES: tuple[StageState, ...] = ("recovering", "serving", "left", "withdrawn")


class Tales:
    """Well-formed lies from one seed: of every kind, about any stage, near the truth or far from it."""

    def __init__(self, rng: random.Random, simulation: LyingSimulation, liar: PeerId) -> None:
        self._rng, self._simulation, self._liar = rng, simulation, liar

    def _stage(self) -> int:
        return self._rng.randrange(self._simulation.manifest.stage_count)

    def _incarnation(self, stage: int) -> int:
        owner = self._simulation.owner(stage)
        now = owner.core.state.incarnation if owner is not None else 1
        return self._rng.choice([1, now, now + 1, INCARNATION_MAX])

    def _step(self) -> int:
        now, total = self._simulation.last_step, self._simulation.manifest.step.total_steps
        return self._rng.choice([0, now, now + 1, now + 2, total, total + 1, STEPS_MAX])

    def message(self) -> AnyMessage:
        """Any message of control, or an activation or gradient that is none."""
        rng, stage, step = self._rng, self._stage(), self._step()
        incarnation = self._incarnation(stage)
        index = rng.randrange(self._simulation.manifest.step.microbatches)
        attempt = Attempt(self._incarnation(0), rng.choice([0, 1, 2**53]))
        witnesses = tuple(rng.sample(range(self._simulation.manifest.stage_count), 2))
        return rng.choice(
            [
                Heartbeat(stage, incarnation, rng.choice(STATES), step),
                Announce(stage, incarnation, rng.choice(STATES), step),
                Lost(stage, incarnation),
                Alive(stage, incarnation),
                Fenced(stage, incarnation, rng.choice([self._liar, PeerId("nobody")]), step),
                Claim(stage, incarnation, witnesses),
                Grant(stage, incarnation, step, ()),
                Refusal(stage, incarnation, self._incarnation(stage), "superseded"),
                Withdraw(stage, incarnation),
                Commit(self._incarnation(0), step),
                CommitAck(stage, incarnation, step),
                Dropped(stage, incarnation, step, index, attempt, rng.random() < 0.5),
            ]
        )

    def record(self) -> AnyRecord:
        """Any record but a manifest, which the shell judges."""
        stage, step = self._stage(), self._step()
        incarnation = self._incarnation(stage)
        return self._rng.choice(
            [
                StageRecord(self._liar, stage, incarnation, self._rng.choice(STATES), step),
                OfferRecord(
                    self._liar, stage, incarnation, self._stage(), step, 1.0, 8, "lie", self._rng.random() < 0.5
                ),
                ProgressRecord(self._liar, self._incarnation(0), step, None, 0, 0.0),
            ]
        )


__all__ = ["LIAR", "LyingSimulation", "Tales"]
