"""Scenario files: a story in prose, a small script of faults, and after ``----`` what everybody reports.

::

    Why this story is told, and which invariant it shows.

    swarm stages=5 spares=1 steps=3 seed=1
    kill stage=2 step=2 moment=backward
    ----
       0.024 peer-2    peer.serving       S2/1

Lines of the script: ``swarm`` (once, first; ``edges`` is the period of copies of S0, none if left out),
``kill``, ``pause``, ``partition``, ``cut``, ``split``, ``hinder``, ``slow``, ``overflow``, ``join`` and ``export``.
A fault strikes at its trigger: the first time that the owner of ``stage`` comes to ``moment`` in ``step``, plus
``after`` seconds; ``victim`` names another stage to be hit. Names in parentheses are what the simulator adds to
what the nodes report.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.sim.exports import ExportSimulation
from tests.sim.faults import (
    CALM,
    CutLink,
    Fault,
    Hinder,
    Kill,
    Overflow,
    Partition,
    Pause,
    SlowReader,
    Split,
    Trigger,
    Weather,
)
from tests.sim.judgement import LogLine
from tests.sim.simulation import Simulation, build, small_manifest
from understudy.protocol.export.actions import ExportWish

RULE = "----\n"
LIMIT_S = 300.0
COMERS = ("join", "export")

HIDDEN = {"peer", "stage", "incarnation", "observer", "observer_stage", "tokens", "seconds", "bytes", "why", "loss"} | {
    "fetch_seconds",
    "blend_seconds",
    "digest",
    "digests",
}
"""Fields that tell no story: who and what stand in columns of their own, the rest varies with nothing of interest."""

Words = dict[str, str]


@dataclass(frozen=True)
class Scenario:
    """A file in three parts: prose, script, transcript."""

    path: Path
    prose: str
    script: tuple[str, ...]
    transcript: str

    def play(self) -> str:
        """Run the story to its end. Raises `Violation` if an invariant breaks."""
        simulation = self.staged()
        simulation.run(LIMIT_S)
        simulation.check_outcome()
        return "".join(f"{tell(line)}\n" for line in simulation.log)

    def staged(self) -> Simulation:
        """The swarm before its first event."""
        lines = [line.split() for line in self.script]
        swarm = words(lines[0][1:])
        faults = [fault(verb, words(rest)) for verb, *rest in lines[1:] if verb not in COMERS]
        simulation = build(
            int(swarm.get("seed", "1")),
            faults,
            manifest=small_manifest(
                stages=int(swarm["stages"]),
                steps=int(swarm["steps"]),
                microbatches=int(swarm.get("microbatches", "2")),
                method=swarm.get("method", "checkfree"),
                edge_copy_every=int(swarm.get("edges", "0")),
            ),
            spares=int(swarm["spares"]),
            weather=weather(swarm),
            kind=ExportSimulation,
        )
        for verb, *rest in lines[1:]:
            coming = words(rest) if verb in COMERS else {}
            if verb == "join":
                simulation.add_node(coming["name"], at=float(coming["at"]))
            elif verb == "export":
                wish = ExportWish(is_last=coming.get("step") == "last")
                simulation.add_exporter(coming["name"], at=float(coming["at"]), wish=wish)
        return simulation

    def rewritten(self, transcript: str) -> str:
        return "".join([self.prose, "\n", *(f"{line}\n" for line in self.script), RULE, transcript])


def read(path: Path) -> Scenario:
    """Split a scenario file into its parts."""
    told, _, transcript = path.read_text(encoding="utf-8").partition(RULE)
    lines = told.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("swarm "))
    script = tuple(line for line in lines[first:] if line.strip())
    return Scenario(path, "\n".join(lines[:first]).strip() + "\n", script, transcript)


def words(pairs: list[str]) -> Words:
    return dict(pair.split("=", 1) for pair in pairs)


def weather(said: Words) -> Weather:
    if "loss" not in said and "duplication" not in said:
        return CALM
    return Weather(loss=float(said.get("loss", "0")), duplication=float(said.get("duplication", "0")))


def fault(verb: str, said: Words) -> Fault:
    """A line of the script as a fault."""
    moment: Any = said.get("moment", "forward")
    when = Trigger(int(said["stage"]), int(said.get("step", "1")), moment, float(said.get("after", "0")))
    victim = int(said["victim"]) if "victim" in said else None
    seconds = float(said.get("seconds", "0"))
    match verb:
        case "kill":
            return Kill(when, victim, is_silent=said.get("silent") == "yes")
        case "pause":
            return Pause(when, seconds, victim)
        case "partition":
            return Partition(when, seconds, victim)
        case "cut":
            return CutLink(when, seconds, int(said["other"]))
        case "split":
            return Split(when, seconds, tuple(map(int, said["stages"].split(","))), int(said.get("spares", "0")))
        case _:
            return quiet_fault(verb, when, seconds, said)


def quiet_fault(verb: str, when: Trigger, seconds: float, said: Words) -> Fault:
    """A fault that ends nobody's process and no connection."""
    delay_s = float(said.get("delay", "0"))
    if verb == "hinder":
        kinds, loss = tuple(said["kinds"].split(",")), float(said.get("loss", "0"))
        source, target = (int(said[name]) if name in said else None for name in ("from", "to"))
        return Hinder(when, seconds, kinds, loss, delay_s, is_exact=True, victim=source, towards=target)
    if verb == "overflow":
        return Overflow(when, int(said.get("updates", "1")))
    if verb == "slow":
        return SlowReader(when, seconds, int(said.get("victim", said["stage"])), delay_s, said.get("stale") == "yes")
    raise ValueError(f"unknown fault {verb!r}: the head of tests/sim/transcripts.py names them all")


def tell(line: LogLine) -> str:
    """One line of a transcript: when, who, what, of whom, and what matters of it."""
    fields = dict(line.fields)
    about = f"S{fields['stage']}/{fields['incarnation']}" if "stage" in fields else ""
    if fields.get("peer", line.observer) != line.observer:
        about = f"{fields['peer']} {about}".strip()
    shown = [f"{name}={show(value)}" for name, value in fields.items() if name not in HIDDEN and is_told(line, name)]
    return " ".join([f"{line.time:8.3f} {line.observer:9} {line.name:20} {about:13}", *shown]).rstrip()


def is_told(line: LogLine, name: str) -> bool:
    """The standing step is told where a step is what the event is about."""
    is_about_steps = line.name in {"step.committed", "stage.recovered", "microbatch.reissued", "standby.copied"}
    return name != "step" or is_about_steps or line.name.startswith(("export.", "weights.held"))


def show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(show, value))}]"
    return f'"{value}"' if isinstance(value, str) and " " in value else str(value)
