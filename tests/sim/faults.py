"""Faults as data: what goes wrong, to whom, when."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Literal

STRAGGLE_S = 20.0

Moment = Literal["forward", "backward", "apply", "committed", "donate", "claimed", "fetch"]
"""When in a step: the stage runs its first forward or backward of the step, applies its commit, S0 says
that the step is committed, the stage is asked for its weights, recognises a claim, or a fetch begins."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """The first time that the owner of ``stage`` comes to ``moment`` in ``step``, plus a delay."""

    stage: int
    step: int
    moment: Moment = "forward"
    after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL. ``is_silent``: the machine vanishes too, so nobody's connection is refused."""

    when: Trigger
    victim: int | None = None
    """The stage whose owner is hit; None: the trigger's own."""
    is_silent: bool = False


@dataclass(frozen=True, slots=True)
class Restart:
    """SIGKILL, and ``seconds`` later the same command with the same identity: what supervisors do."""

    when: Trigger
    seconds: float
    victim: int | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """SIGSTOP, and SIGCONT ``seconds`` later: the process itself never knows."""

    when: Trigger
    seconds: float
    victim: int | None = None


@dataclass(frozen=True, slots=True)
class Partition:
    """The owner of the stage is cut off from everybody, for ``seconds``."""

    when: Trigger
    seconds: float
    victim: int | None = None


@dataclass(frozen=True, slots=True)
class CutLink:
    """The owners of two stages cannot reach each other, for ``seconds``; all others can."""

    when: Trigger
    seconds: float
    other: int


@dataclass(frozen=True, slots=True)
class Split:
    """The owners of these stages, and some spares, are cut off from all others but not from each other."""

    when: Trigger
    seconds: float
    stages: tuple[int, ...]
    spares: int = 0


@dataclass(frozen=True, slots=True)
class Hinder:
    """Messages of some kinds are lost or late for a while; everything else goes its way.

    ``kinds`` are names of message classes. Of several hindrances that concern a message the first decides.
    """

    when: Trigger
    seconds: float
    kinds: tuple[str, ...]
    loss: float = 0.0
    delay_s: float = 0.0
    """The longest delay: each message takes up to so much longer, and is overtaken."""
    is_exact: bool = False
    """Every delay is the longest."""
    victim: int | None = None
    """The stage whose owner speaks; None: whoever."""
    towards: int | None = None
    """The stage whose owner is spoken to; None: whoever."""


@dataclass(frozen=True, slots=True)
class SlowReader:
    """The DHT is slow for the owner of a stage: what it reads is ``delay_s`` old. Or it sees nothing new at all."""

    when: Trigger
    seconds: float
    victim: int
    delay_s: float = 0.0
    is_stale: bool = False


@dataclass(frozen=True, slots=True)
class Overflow:
    """The next ``updates`` of the stage's owner are not finite: nothing is applied."""

    when: Trigger
    updates: int = 1
    victim: int | None = None


@dataclass(frozen=True, slots=True)
class Stuck:
    """The compute thread of the stage's owner hangs for ``seconds``: no job ends, while heartbeats go on."""

    when: Trigger
    seconds: float
    victim: int | None = None


Fault = Stuck | Kill | Restart | Pause | Partition | CutLink | Split | Hinder | SlowReader | Overflow


@dataclass(frozen=True, slots=True)
class Weather:
    """What the network does to messages all the time."""

    latency_s: tuple[float, float] = (0.001, 0.005)
    loss: float = 0.0
    duplication: float = 0.0
    is_reordered: bool = False
    straggling: float = 0.0
    """Probability that a message takes up to `STRAGGLE_S` longer, and is overtaken by all later ones."""


CALM = Weather()


def random_faults(rng: random.Random, stages: int, steps: int, count: int) -> list[Fault]:
    """A schedule of faults spread over the run, for stages that the run can lose."""
    faults: list[Fault] = []
    moments: list[Moment] = ["forward", "backward", "apply", "committed", "donate"]
    for number in range(count):
        stage = rng.randrange(stages)
        step = 1 + (number * steps) // max(1, count) + rng.randrange(max(1, steps // max(1, count)))
        moment = rng.choice(moments)
        when = Trigger(0 if moment == "committed" else stage, step, moment, rng.choice([0.0, 0.002, 0.02, 0.3, 1.5]))
        seconds = rng.choice([0.5, 2.5, 4.5, 8.0, 30.0])
        other = rng.randrange(stages)
        faults.append(
            rng.choice(
                [
                    Kill(when, stage, is_silent=rng.random() < 0.3),
                    Pause(when, seconds, stage),
                    Partition(when, min(seconds, 20.0), stage),
                    CutLink(replace(when, stage=stage), seconds, other),
                ]
            )
        )
    return faults


FOR_EVER_S = 1e6


def stuck_faults(rng: random.Random, stages: int, steps: int, count: int) -> list[Fault]:
    """Compute threads of block stages that hang, some for ever, and as many other faults of owners."""
    faults: list[Fault] = []
    for other in random_faults(rng, stages, steps, count):
        stage, moment = rng.randrange(1, stages), rng.choice(["forward", "backward", "apply"])
        when = Trigger(stage, rng.randint(1, steps), moment, rng.choice([0.0, 0.002, 0.02]))
        faults.append(Stuck(when, rng.choice([2.0, 6.0, 12.0, 40.0, FOR_EVER_S]), stage))
        if rng.random() < 0.5:
            faults.append(other)
    return faults


def harsh_faults(rng: random.Random, stages: int, steps: int, count: int) -> list[Fault]:
    """As `random_faults`, and some of them are splits."""
    faults: list[Fault] = []
    for fault in random_faults(rng, stages, steps, count):
        if rng.random() < 0.75:
            faults.append(fault)
        else:
            group = tuple(sorted(rng.sample(range(stages), rng.randint(1, stages - 1))))
            faults.append(Split(fault.when, rng.choice([0.5, 2.5, 4.5, 8.0, 20.0]), group))
    return faults


def brief_fault(rng: random.Random, stages: int, steps: int) -> Fault:
    """One interruption of about the time after which a silent peer counts as dead."""
    stage, seconds = rng.randrange(stages), rng.uniform(3.5, 6.0)
    when = Trigger(stage, rng.randint(1, steps), rng.choice(["forward", "backward", "apply"]), rng.uniform(0.0, 0.3))
    other = rng.choice([number for number in range(stages) if number != stage])
    return rng.choice([Pause(when, seconds), Partition(when, seconds), CutLink(when, seconds, other)])


def one_split(rng: random.Random, stages: int, steps: int) -> Split:
    """The swarm falls into two, each side with spares of its own, and comes together again."""
    group = tuple(sorted(rng.sample(range(stages), rng.randint(1, stages - 1))))
    when = Trigger(rng.randrange(stages), rng.randint(2, steps // 4), "forward", rng.uniform(0.0, 0.3))
    return Split(when, rng.choice([6.0, 10.0, 20.0, 40.0]), group, spares=rng.randint(0, 3))


KINDS: tuple[tuple[str, ...], ...] = (
    ("Commit",),
    ("CommitAck",),
    ("Announce",),
    ("Announce", "Heartbeat"),
    ("Forward",),
    ("Backward",),
    ("CopyOffer", "CopyKept"),
    ("Lost", "Alive"),
    ("Grant", "Withdraw"),
)
"""What is hindered together."""


def hindered_faults(rng: random.Random, stages: int, steps: int, count: int) -> list[Fault]:
    """As `harsh_faults`, and while each strikes, messages of some kinds are lost or late, or somebody reads late."""
    faults: list[Fault] = []
    for fault in harsh_faults(rng, stages, steps, count):
        step = fault.when.step
        if rng.random() < 0.5:
            faults += last_words(rng, stages, step)
            continue
        faults.append(fault)
        for _ in range(rng.randint(0, 2)):
            faults.append(_hindrance(rng, stages, step))
        if rng.random() < 0.3:
            faults.append(_slow_reader(rng, stages, step))
        if rng.random() < 0.2:
            stage = rng.randrange(stages)
            faults.append(Overflow(Trigger(stage, step, "forward"), rng.randint(1, 3), stage))
    return faults


def last_words(rng: random.Random, stages: int, step: int) -> list[Fault]:
    """S0 decides a step and dies; few hear of it, late, and of its successor somebody hears late as well."""
    before = Trigger(0, step, "backward")
    deaf = rng.randrange(1, stages)
    return [
        Hinder(before, 10.0, ("Commit",), rng.choice([0.5, 0.8]), rng.choice([0.8, 1.5, 3.0]), victim=0),
        Hinder(before, 10.0, ("Announce",), rng.choice([0.5, 1.0]), 0.0, towards=rng.choice([None, deaf])),
        SlowReader(before, 10.0, deaf, delay_s=rng.choice([0.5, 2.0]), is_stale=rng.random() < 0.5),
        Kill(Trigger(0, step, "committed", rng.choice([0.0, 0.0, 0.002, 0.02])), 0, is_silent=rng.random() < 0.2),
    ]


def _hindrance(rng: random.Random, stages: int, step: int) -> Hinder:
    when = Trigger(rng.randrange(stages), step, rng.choice(["forward", "backward", "apply"]))
    victim = rng.choice([None, rng.randrange(stages)])
    towards = rng.choice([None, rng.randrange(stages)])
    seconds, loss, delay_s = rng.choice([1.0, 4.0, 10.0]), rng.choice([0.0, 0.3, 1.0]), rng.choice([0.0, 0.3, 2.0, 5.0])
    return Hinder(when, seconds, rng.choice(KINDS), loss, delay_s, victim=victim, towards=towards)


def _slow_reader(rng: random.Random, stages: int, step: int) -> SlowReader:
    reader = rng.randrange(stages)
    return SlowReader(
        Trigger(reader, step), rng.choice([4.0, 10.0]), reader, rng.choice([0.5, 2.0]), rng.random() < 0.3
    )
