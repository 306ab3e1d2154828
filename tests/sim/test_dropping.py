"""Tensors that are lost, and known to be lost by who sent them: nobody waits for the microbatch's deadline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.sim.faults import Fault, Kill, Trigger
from tests.sim.node import SimNode
from tests.sim.schedules import LIMIT_S, schedule
from tests.sim.simulation import Simulation, build, replace_settings, small_manifest
from understudy.protocol.events import MessageReceived, SendFailed
from understudy.protocol.pipeline.edge_host import EdgeHost
from understudy.protocol.pipeline.stage import BlockStage
from understudy.protocol.pipeline.standstill import FLOOR_FACTOR
from understudy.protocol.wire.messages import Backward, DataMessage, Forward

NOTICED_S = 0.05
"""From the loss of a tensor until its sender knows."""
HEALED_S = 1.0
"""A loss that is known may cost a step this much."""
KNOWN_LOSS = 0.02
DEADLINE_S = 600.0
"""Of a microbatch: nobody wants to wait for it."""
DEAD_LINE_S = 40.0


class LossySimulation(Simulation):
    """A network that loses tensors, and tells their senders; what is sent to the dead is lost too."""

    def lose(self, message: DataMessage) -> bool:
        return self.rng.random() < KNOWN_LOSS

    def _send(self, source: SimNode, target: SimNode | None, event: MessageReceived) -> None:
        message = event.message
        is_lost = False
        if target is not None and isinstance(message, Forward | Backward):
            is_lost = self.lose(message)
            if is_lost or not target.is_alive:
                failed = SendFailed(target.peer, message, event.payload)
                self.at(self.now + NOTICED_S, lambda: self.feed(source, failed))
        if not is_lost:
            super()._send(source, target, event)


class LosesOnce(LossySimulation):
    """Of all tensors only the first that is ``wanted`` is lost."""

    wanted: Callable[[DataMessage], bool]
    has_lost = False

    def lose(self, message: DataMessage) -> bool:
        is_lost = not self.has_lost and self.wanted(message)
        self.has_lost |= is_lost
        return is_lost


class LosesAll(LossySimulation):
    """For a while S2's tensors do not reach S3, though all else does."""

    def lose(self, message: DataMessage) -> bool:
        return isinstance(message, Forward) and message.stage == 2 and self.now < DEAD_LINE_S


def play(kind: type[LossySimulation], faults: list[Fault] | None = None, **attributes: Any) -> LossySimulation:
    manifest = small_manifest(stages=5, steps=4, microbatches=4, method="checkfree+")
    manifest = replace_settings(manifest, step=replace_settings(manifest.step, microbatch_timeout_s=DEADLINE_S))
    simulation = build(7, faults or [], manifest=manifest, spares=len(faults or []), kind=kind)
    for name, value in attributes.items():
        setattr(simulation, name, value)
    simulation.run(2 * DEADLINE_S)
    simulation.check_outcome()
    return simulation


def committed_at(simulation: Simulation, step: int) -> float:
    return next(line.time for line in simulation.log if line.name == "step.committed" and line.fields["step"] == step)


def step_seconds(simulation: Simulation, step: int) -> float:
    return committed_at(simulation, step) - committed_at(simulation, step - 1)


@pytest.mark.parametrize("kind", [Forward, Backward])
@pytest.mark.parametrize("stage", range(5))
def test_a_tensor_that_is_known_to_be_lost_is_made_again_within_a_second(stage: int, kind: type[DataMessage]) -> None:
    def wanted(message: DataMessage) -> bool:
        return isinstance(message, kind) and (message.stage, message.step, message.index) == (stage, 2, 1)

    simulation = play(LosesOnce, wanted=wanted)
    assert step_seconds(simulation, 2) < step_seconds(simulation, 3) + HEALED_S
    (reissued,) = simulation.named("microbatch.reissued")
    assert (reissued.fields["index"], reissued.fields["reason"]) == (1, "it was lost on the way")


def test_a_line_that_loses_everything_makes_no_storm() -> None:
    """The first time at once, then ever later: of one microbatch S0 makes as many as fit into the time by doubling."""
    simulation = play(LosesAll)
    again = Counter(line.fields["index"] for line in simulation.named("microbatch.reissued"))
    assert max(again.values()) <= 9  # about 0, 1, 3, 7, 15, 23, 31, 39 and 47 s after the first
    assert committed_at(simulation, 1) < 2 * DEAD_LINE_S


@pytest.mark.parametrize("stage", range(5))
def test_what_was_lost_with_its_receiver_is_healed_by_the_recovery(stage: int) -> None:
    simulation = play(LosesOnce, [Kill(Trigger(stage, 2, "forward"))], wanted=lambda message: False)
    assert simulation.recoveries()
    assert step_seconds(simulation, 2) < 20.0


@pytest.mark.parametrize("method", ["checkfree", "checkfree+"])
def test_no_schedule_with_known_losses_breaks_an_invariant(method: str) -> None:
    for seed in range(20_000, 20_010):
        simulation = schedule(seed, method).staged(LossySimulation)
        simulation.run(LIMIT_S)
        simulation.check_outcome()


# --- the simulator can see ---


@pytest.mark.parametrize(("host", "stage"), [(BlockStage, 2), (EdgeHost, 0)])
def test_without_a_word_of_the_loss_a_step_waits_until_s0_asks(
    host: type[BlockStage | EdgeHost], stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "on_send_failed", lambda host, event: None)
    wanted = (stage, 2, 1)
    simulation = play(LosesOnce, wanted=lambda message: (message.stage, message.step, message.index) == wanted)
    assert step_seconds(simulation, 2) > FLOOR_FACTOR * simulation.manifest.timing.dead_after_s
