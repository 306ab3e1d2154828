"""What must hold while a simulated swarm runs, and once it is done. Breaking it raises `Violation`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tests.sim.node import SimNode, Snapshot, Violation
from tests.sim.standbys import check_copy, check_parts, check_used
from understudy.protocol.actions import Action, Send, Stop
from understudy.protocol.events import TimerFired
from understudy.protocol.ids import DRIVER_STAGE, PeerId
from understudy.protocol.manifest import RunManifest
from understudy.protocol.membership.placement import STEPS_APART_MAX
from understudy.protocol.wire.frames import MESSAGE_BYTES_MAX, PREFIX, decode_frame, decode_prefix, encode_frame
from understudy.protocol.wire.messages import AnyMessage, Forward
from understudy.protocol.wire.records import AnyRecord, decode_record, encode_record, key_of

NEWS_S = 15.0
"""Within this time, without faults, the end of a tenure becomes known to who held it."""

_TENURE = {"peer", "stage", "incarnation", "step"}
_OBSERVED = {*_TENURE, "observer", "observer_stage"}
REQUIRED_FIELDS: dict[str, set[str]] = {
    "peer.spare": {"peer", "step"},
    "peer.serving": {*_TENURE, "why"},
    "peer.suspected": _OBSERVED,
    "peer.dead": _OBSERVED,
    "peer.revived": _OBSERVED,
    "peer.left": {"peer", "step"},
    "peer.retired": {*_TENURE, "reason"},
    "swarm.waiting": {"peer", "step", "stages"},
    "swarm.complete": _TENURE,
    "microbatch.reissued": {*_TENURE, "index", "attempt", "reason"},
    "step.committed": {*_TENURE, "loss", "tokens", "seconds"},
    "update.skipped": {*_TENURE, "in_a_row", "is_own", "left_out"},
    "peer.sentenced": {*_OBSERVED, "reason"},
    "peer.accused": {*_TENURE, "by"},
    "update.reduced": {*_TENURE, "is_own", "left_out"},
    "numbers.strange": {*_TENURE, "sender", "sender_stage", "is_gradient", "magnitude", "usual"},
    "loss.not_finite": {*_TENURE, "microbatches", "reason"},
    "window.settled": {*_TENURE, "size"},
    "weights.published": {*_TENURE, "for_stage", "bytes", "squared_gradient_norm"},
    "weights.held": {*_TENURE, "bytes", "digest", "seconds"},
    "stage.claimed": {*_TENURE, "why", "witnesses", "votes", "passed_over"},
    "stage.recovered": {*_TENURE, "method", "reason", "donors", "coefficients", "bytes", "seconds"},
    "stage.initialised": {*_TENURE, "method", "reason", "donors", "coefficients", "bytes", "seconds", "digests"},
    "standby.copied": {*_TENURE, "part", "holder", "to_stage", "copied_step", "bytes", "seconds", "digest"},
    "text.failed": {"peer", "step", "reason"},
    "claim.withdrawn": {*_TENURE, "reason"},
    "fetch.failed": {*_TENURE, "donor", "reason"},
    "blend.failed": {*_TENURE, "reason"},
}
"""Every event that an honest swarm writes, and what it must carry."""


@dataclass(frozen=True, slots=True)
class LogLine:
    time: float
    observer: PeerId
    name: str
    fields: Mapping[str, Any]


def formula(squared_norms: Sequence[float | None], exponent: int) -> tuple[float, ...]:
    """CheckFree's coefficients, written a second time so that the first has something to be compared with."""
    usable = [norm for norm in squared_norms if norm is not None and math.isfinite(norm)]
    if exponent == 0 or len(usable) < len(squared_norms) or not any(usable):
        return tuple(1 / len(squared_norms) for _ in squared_norms)
    weights = [math.sqrt(norm) ** exponent for norm in usable]
    return tuple(weight / math.fsum(weights) for weight in weights)


class Judge:
    """Watches all nodes at once, as nobody in a real swarm can."""

    def __init__(self, manifest: RunManifest) -> None:
        self._manifest = manifest
        self.nodes: Mapping[PeerId, SimNode] = {}
        self.is_split = False
        """The swarm was split into parts that can each vouch for claims, which takes two stages only. Both may go on,
        under equal incarnations: what is judged then is only that one swarm comes out of it, and comes to the end."""
        self._serving: dict[tuple[int, int], tuple[PeerId, float]] = {}
        """Who served each (stage, incarnation), since when."""
        self._tenures: dict[int, set[tuple[PeerId, int]]] = {}
        """All (peer, incarnation) that ever served a stage, also where two sides of a split served one incarnation."""
        self._explained: set[tuple[PeerId, int, int]] = set()
        """Tenures of which an event said what the stage was built from."""
        self._without_text: set[tuple[PeerId, int]] = set()
        """Drivers that said they cannot read their text, by incarnation."""
        self._views: dict[PeerId, list[int]] = {}
        self._checked: set[AnyMessage | AnyRecord] = set()
        self._committed: dict[int, int] = {}
        """The last step that each incarnation of S0 committed."""

    @property
    def last_committed(self) -> int:
        return max(self._committed.values(), default=0)

    def is_latest_owner(self, node: SimNode) -> bool:
        """The node serves a stage that nobody served after it."""
        tenure = node.core.state.tenure
        if tenure is None or not node.core.state.is_serving:
            return False
        return tenure.incarnation == max(i for stage, i in self._serving if stage == tenure.stage)

    def who_served(self, stage: int, incarnation: int) -> PeerId | None:
        return self._serving.get((stage, incarnation), (None, 0.0))[0]

    def forget(self, peer: PeerId) -> None:
        """A process that starts again remembers nothing."""
        self._views.pop(peer, None)

    # --- what nodes do ---

    def check_actions(self, peer: PeerId, actions: Iterable[Action]) -> None:
        """After it stopped, a node does nothing."""
        is_stopped = False
        for action in actions:
            if is_stopped:
                raise Violation(f"{peer} stopped and then wanted {action}")
            is_stopped = isinstance(action, Stop)
            if isinstance(action, Send) and action.peer == peer:
                raise Violation(f"{peer} talks to itself: {action.message}")

    def check_stopped(self, node: SimNode, now: float, calm_s: float) -> None:
        """A stopped core has nothing to say to any event; and nobody clings to a stage that another serves."""
        actions = node.core.handle(TimerFired(), now)
        if actions:
            raise Violation(f"{node.peer} stopped, but still wants {actions}")
        tenure = node.core.state.tenure
        if tenure is None:
            return
        served = [
            i for (stage, i), (_, since) in self._serving.items() if stage == tenure.stage and since < now - NEWS_S
        ]
        if calm_s > NEWS_S and not self.is_split and max(served, default=0) > tenure.incarnation:
            raise Violation(f"{node.peer} never learned that S{tenure.stage}/{tenure.incarnation} was over")

    def check_message(self, message: AnyMessage) -> None:
        """What honest nodes say is within all limits and survives the journey."""
        if message in self._checked:
            return
        self._checked.add(message)
        frame = encode_frame(message)
        prefix = decode_prefix(frame[: PREFIX.size], MESSAGE_BYTES_MAX, 0)
        if decode_frame(frame[PREFIX.size :], prefix.payload_bytes).message != message:
            raise Violation(f"{message} does not survive the journey")

    def check_record(self, peer: PeerId, record: AnyRecord) -> None:
        """What honest nodes publish is within all limits and speaks of themselves."""
        if record in self._checked:
            return
        self._checked.add(record)
        if decode_record(key_of(record), peer, encode_record(record)) != record:
            raise Violation(f"{record} does not survive the journey")

    def check_forward(self, message: Forward) -> None:
        """No microbatch is sent out for a step that is not the driver's current one."""
        if message.stage == DRIVER_STAGE and message.step <= self._committed.get(message.incarnation, 0):
            raise Violation(f"S0 issues {message} of a step that it committed")

    def check_view(self, node: SimNode) -> None:
        """Nobody forgets an incarnation that it knew of."""
        membership = node.core.state.membership
        known = [membership.known_incarnation(stage) for stage in range(membership.stage_count)]
        before = self._views.setdefault(node.peer, known)
        if any(now < then for now, then in zip(known, before, strict=True)):
            raise Violation(f"{node.peer} knew of incarnations {before} and now of {known}")
        self._views[node.peer] = known

    # --- what nodes report ---

    def check_event(self, line: LogLine, node: SimNode) -> None:
        if line.name == "peer.misbehaved":
            raise Violation(f"{line.observer} accuses an honest peer of misbehaving: {line.fields}")
        missing = REQUIRED_FIELDS.get(line.name, {"a place in REQUIRED_FIELDS"}) - set(line.fields)
        if missing:
            raise Violation(f"{line.name} lacks {sorted(missing)}: {line.fields}")
        msgspec.json.encode(line.fields)
        match line.name:
            case "peer.serving":
                self._check_serving(line)
            case "text.failed" if line.fields.get("stage") == DRIVER_STAGE:
                self._without_text.add((line.observer, line.fields["incarnation"]))
            case "peer.retired":
                self._check_retired(line)
            case "step.committed":
                self._check_committed(line.fields)
            case "stage.recovered" | "stage.initialised":
                self._explained.add((line.observer, line.fields["stage"], line.fields["incarnation"]))
                self._check_recovered(line.fields, node)

    def _check_serving(self, line: LogLine) -> None:
        tenure = (line.fields["stage"], line.fields["incarnation"])
        if self.last_committed and (line.observer, *tenure) not in self._explained:
            raise Violation(
                f"{line.observer} serves S{tenure[0]}/{tenure[1]} of a trained swarm, and nobody says from what"
            )
        self._tenures.setdefault(tenure[0], set()).add((line.observer, tenure[1]))
        holder, _ = self._serving.setdefault(tenure, (line.observer, line.time))
        if holder != line.observer and not self.is_split:
            raise Violation(f"{line.observer} and {holder} both serve S{tenure[0]}/{tenure[1]}")
        if holder != line.observer and tenure[0] == DRIVER_STAGE:
            for node in self.nodes.values():
                node.is_driven_twice = True

    def _check_retired(self, line: LogLine) -> None:
        """A living owner gives its stage up only for a tenure that serves, not for a claim; or S0 without its text."""
        stage, own = line.fields["stage"], (line.observer, line.fields["incarnation"])
        if stage == DRIVER_STAGE and own in self._without_text:
            return
        others = self._tenures.get(stage, set()) - {own}
        if not others:
            raise Violation(f"{line.observer} gave up S{stage}/{own[1]}, which nobody else ever served: {line.fields}")
        furthest = max(ended_step(self.nodes[peer], stage, incarnation) or 0 for peer, incarnation in others)
        if furthest < line.fields["step"] - STEPS_APART_MAX:
            raise Violation(
                f"{line.observer} gave up S{stage}/{own[1]} for one that stands at {furthest}: {line.fields}"
            )

    def _check_committed(self, fields: Mapping[str, Any]) -> None:
        """One driver commits step after step; its successor begins at a step that it knows to be due."""
        incarnation, step = fields["incarnation"], fields["step"]
        last = self._committed.get(incarnation)
        if last is not None and step != last + 1:
            raise Violation(f"S0/{incarnation} committed step {step} after {last}")
        known = self.last_committed
        if step > known + 1:
            raise Violation(f"S0/{incarnation} committed step {step}, but step {known + 1} never was")
        self._committed[incarnation] = step

    def _check_recovered(self, fields: Mapping[str, Any], node: SimNode) -> None:
        """The weights are the formula's, of the weights and norms that the donors held still."""
        hosting = node.hosting
        if hosting is None or (hosting.stage, hosting.incarnation) != (fields["stage"], fields["incarnation"]):
            raise Violation(f"{node.peer} reports a recovery of a stage that it does not host: {fields}")
        donors, method = hosting.donors, fields["method"]
        if method == "standby":
            is_driver = fields["stage"] == DRIVER_STAGE
            check_parts(fields, donors) if is_driver else check_copy(fields, donors, self._manifest)
            return
        check_used(fields, node, self._manifest)
        if method == "initial":
            self._check_initial(fields, donors)
            return
        if [donor.stage for donor in donors] != fields["donors"] or list(hosting.coefficients) != fields[
            "coefficients"
        ]:
            raise Violation(f"the event names other donors than the weights came from: {fields}, {donors}")
        if len(donors) != {"seed": 0, "mirror": 1, "copy": 1, "checkfree": 2}[method]:
            raise Violation(f"{method} from {len(donors)} donors")
        if not donors:
            return
        donors = [donor.as_of(fields["step"]) for donor in donors]
        if any(donor.step != fields["step"] for donor in donors):
            raise Violation(f"donors of other steps than {fields['step']}: {donors}")
        if DRIVER_STAGE in (hosting.stage, *fields["donors"]):
            raise Violation(f"S0 has another shape than the block stages: {fields}")
        if len(donors) == 2 and not donors[0].stage < hosting.stage < donors[1].stage:
            raise Violation(f"S{hosting.stage} was rebuilt from {donors}, not from both sides")
        norms = [donor.squared_gradient_norm for donor in donors]
        expected = formula(norms, self._manifest.recovery.norm_exponent)
        blended = math.fsum(c * donor.weights for c, donor in zip(expected, donors, strict=True))
        if not math.isclose(blended, hosting.weights, rel_tol=1e-12):
            raise Violation(f"S{hosting.stage} holds {hosting.weights}, the formula gives {blended}: {donors}")

    def _check_initial(self, fields: Mapping[str, Any], copies: Sequence[Snapshot]) -> None:
        """The stage's own weights, as the manifest names them, from whom it names."""
        initial = self._manifest.initial
        wanted = [(initial.peer, fields["stage"], initial.digests[fields["stage"]])]
        if [(copy.peer, copy.stage, digest) for copy, digest in zip(copies, fields["digests"], strict=True)] != wanted:
            raise Violation(f"these are not the run's initial weights: {fields}, {copies}")

    # --- the end ---

    def check_outcome(self, nodes: Mapping[PeerId, SimNode], log: Sequence[LogLine]) -> None:
        """Every step was committed, and every living owner ended with the last one applied."""
        total = self._manifest.step.total_steps
        committed = [line.fields["step"] for line in log if line.name == "step.committed"]
        if sorted(set(committed)) != list(range(1, total + 1)):
            raise Violation(f"committed {committed}, not 1..{total}")
        for stage in range(self._manifest.stage_count):
            served = [(nodes[peer], incarnation) for peer, incarnation in self._tenures[stage]]
            if not any(ended_step(node, stage, number) == total for node, number in served if node.is_alive):
                last, number = max(served, key=lambda tenure: tenure[1])
                if last.is_alive and not self.is_split:
                    raise Violation(f"S{stage}/{number} ended at step {ended_step(last, stage, number)}, not {total}")


def ended_step(node: SimNode, stage: int, incarnation: int) -> int | None:
    """Where a tenure ended: its last committed step."""
    tenure = node.core.state.tenure
    if tenure is not None and (tenure.stage, tenure.incarnation) == (stage, incarnation):
        return node.core.state.committed
    return node.last_committed(stage, incarnation)
