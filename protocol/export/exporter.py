"""An export: the weights of every stage after one and the same step, from the owners that serve them.

An exporter holds no stage. It reads the owners from the DHT, picks a step, and asks every owner to hold
its weights as they are after that step (protocol/export/lease.py)::

    looking ---every stage has an owner--> asking   the owners, again every `LEASE_RENEW_S`: the lease
    asking  ---all of them hold----------> fetching a few at a time
    fetching --all are there-------------> finished

    asking, fetching --an owner is beyond the step--> asking   for a later step, and nothing of this one is kept

An owner that vanishes is waited for: its successor is asked for the same step, which it can give if it
took over right there. So an export is of one step or none, whoever dies meanwhile.
"""

from __future__ import annotations

from understudy.protocol.actions import CancelFetches, Emit, Fetch, Read, Send
from understudy.protocol.events import Event, Fetched, FetchFailed, MessageReceived, RecordsRead, Started, TimerFired
from understudy.protocol.export import reasons
from understudy.protocol.export.actions import BeginExport, ExportAction, ExportWish, FailExport, FinishExport
from understudy.protocol.export.part import StagePart
from understudy.protocol.ids import DRIVER_STAGE, PeerId
from understudy.protocol.manifest import RunManifest
from understudy.protocol.membership.placement import best_tenure
from understudy.protocol.wire.messages import LeaseRelease, LeaseRequest, LeaseStatus
from understudy.protocol.wire.records import PROGRESS_KEY, ProgressRecord, StageRecord, stage_key

TICK_S = 0.25
LOOK_EVERY_S = 1.0
"""How often the owners are looked up."""
LEASE_RENEW_S = 2.0
"""A wish is said again after this long: it may be lost, and it renews the lease."""
NOBODY_S = 20.0
"""No stage of the run has an owner for this long: the run is over, or its swarm is gone."""
FETCHES_AT_ONCE = 2
"""Stages on their way at a time: so many are in memory."""
FETCH_TRIES = 3
"""How often one owner may fail to deliver what it says it holds."""
SILENT_S = 8.0
"""An owner that answers nothing for this long is worth a word."""
LEAD_MAX = 1024
"""How many steps ahead of the swarm an export aims at most, however fast the swarm is."""


class Exporter:
    """The decisions of one export."""

    def __init__(self, me: PeerId, manifest: RunManifest, wish: ExportWish) -> None:
        self._me, self._manifest, self._wish = me, manifest, wish
        self._parts = {stage: StagePart() for stage in range(manifest.stage_count)}
        self._step: int | None = None
        """Invariant: what is there, held or being fetched is of this step."""
        self._known = 0
        """The highest step that an owner said was committed; nobody else's word counts."""
        self._progress: dict[str, int] = {}
        """The last step that each of them said was committed; only the word of who serves S0 counts."""
        self._has_ended = False
        """Somebody said that the run's last step is committed. It counts for no aim: anybody can say so."""
        self._lead = 1
        self._actions: list[ExportAction] = []
        self._now = self._next_tick = 0.0
        self._looked_at = float("-inf")
        self._served_at = self._whole_at = float("inf")
        """When anybody served a stage, and when no stage that is still to come lacked an owner."""
        self._said: dict[str, tuple[str, list[int]]] = {}
        self._keys_read: set[str] = set()
        self.is_over = False

    @property
    def deadline(self) -> float:
        """When the exporter wants a `TimerFired`."""
        return self._next_tick

    def handle(self, event: Event, now: float) -> list[ExportAction]:
        """Take an event, return what to do about it, in order."""
        self._now, self._actions = now, []
        if not self.is_over:
            self._dispatch(event)
        return self._actions

    def _dispatch(self, event: Event) -> None:
        match event:
            case Started():
                self._served_at = self._whole_at = self._now
            case TimerFired():
                self._on_tick()
            case RecordsRead(key, records):
                self._keys_read.add(key)
                if key == PROGRESS_KEY:
                    self._progress = {
                        record.peer: record.step for record in records if isinstance(record, ProgressRecord)
                    }
                    self._has_ended |= any(self._is_last(step) for step in self._progress.values())
                self._note_owner(key, [record for record in records if isinstance(record, StageRecord)])
            case MessageReceived(peer, LeaseStatus() as answer):
                self._on_lease_status(peer, answer)
            case Fetched(claim, donor, digest):
                self._on_fetched(claim, donor, digest)
            case FetchFailed(claim, donor, digest, reason):
                self._on_fetch_failed(claim, donor, digest, reason)
        if not self.is_over:
            self._advance()

    # --- looking ---

    def _on_tick(self) -> None:
        self._next_tick = self._now + TICK_S
        if self._now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = self._now
            self._act(Read((*map(stage_key, self._parts), PROGRESS_KEY)))
        if any(part.owner is not None for part in self._parts.values()):
            self._served_at = self._now
        if not self._missing():
            self._whole_at = self._now
        if self._now - self._served_at > NOBODY_S:
            self._fail(reasons.NOBODY_SERVES)
        elif self._has_ended and self._served_at == self._now > self._whole_at + NOBODY_S:
            self._release()
            self._fail(reasons.nobody_recovers(self._missing()))

    def _missing(self) -> list[int]:
        """Stages that are not here and that nobody serves."""
        return [stage for stage, part in self._parts.items() if part.owner is None and not part.digest]

    def _note_owner(self, key: str, records: list[StageRecord]) -> None:
        for stage, part in self._parts.items():
            if stage_key(stage) != key:
                continue
            owner = best_tenure([record for record in records if record.stage == stage])
            if owner is not None and owner.state == "serving":
                self._known = max(self._known, owner.step)
                self._has_ended |= self._is_last(owner.step)
            else:
                owner = None
            if not part.has_owner(owner):
                self._forget_answer(stage, part)
                part.failures = 0
            part.owner = owner

    def _forget_answer(self, stage: int, part: StagePart) -> None:
        if part.is_fetching and part.owner is not None:
            self._act(CancelFetches((stage, part.owner.incarnation)))
        part.ask_anew()
        part.silent_since = float("inf")

    # --- aiming and asking ---

    def _advance(self) -> None:
        missing = self._missing()
        has_looked = len(self._keys_read) > len(self._parts)
        if has_looked:
            self._say("owners", "export.waiting" if missing else "export.complete", missing)
        if self._step is None and has_looked and not missing:
            self._aim()
        if self._step is not None:
            self._ask()
            self._fetch()
            silent = [s for s, part in self._parts.items() if self._now - part.silent_since > SILENT_S]
            if silent and not missing:
                self._say("answers", "export.silent", silent)

    def _aim(self) -> None:
        """The first step to try: it may be past by now, then the answers say how far the owners are."""
        if self._wish.step is not None and self._wish.there and self._wish.step == self._bounded(self._wish.step):
            self._step = self._wish.step
            for stage, digest in self._wish.there.items():
                self._parts[stage].digest = digest
            self._emit("export.resumed", there=sorted(self._wish.there))
            return
        driver = self._parts[DRIVER_STAGE].owner
        if driver is not None:
            self._known = max(self._known, self._progress.get(driver.peer, 0))
        self._begin(self._bounded(self._known))

    def _is_last(self, step: int) -> bool:
        return 0 < self._manifest.step.total_steps <= step

    def _bounded(self, step: int) -> int:
        total = self._manifest.step.total_steps
        return total if self._wish.is_last else min(step, total or step)

    def _begin(self, step: int, reason: str = "") -> None:
        self._step = step
        self._act(BeginExport(step))
        self._emit("export.aimed", reason=reason)

    def _ask(self) -> None:
        assert self._step is not None
        for stage, part in self._parts.items():
            is_due = self._now - part.asked_at >= LEASE_RENEW_S
            if part.owner is not None and not part.digest and is_due:
                part.asked_at = self._now
                part.silent_since = min(part.silent_since, self._now)
                self._act(Send(PeerId(part.owner.peer), LeaseRequest(stage, part.owner.incarnation, self._step)))

    def _on_lease_status(self, peer: PeerId, answer: LeaseStatus) -> None:
        part = self._parts.get(answer.stage)
        if part is None or part.digest or not part.is_owned_by(peer, answer.incarnation):
            return
        self._known = max(self._known, answer.committed)
        self._has_ended |= self._is_last(answer.committed)
        part.silent_since = float("inf")
        if answer.step != self._step:
            return
        match answer.status:
            case "passed":
                self._restart(reasons.passed(answer.stage, answer.step))
            case "full":
                self._say("answers", "export.queued", [answer.stage])
            case "held":
                self._note_lease(part, answer)

    def _note_lease(self, part: StagePart, answer: LeaseStatus) -> None:
        expected = self._manifest.model.stage_bytes(answer.stage)
        if answer.payload_bytes != expected:
            assert part.owner is not None
            self._fail(reasons.wrong_size(answer.stage, part.owner.peer, answer.payload_bytes, expected))
        elif not part.is_fetching:
            part.answer = answer

    def _restart(self, reason: str) -> None:
        """The step cannot be had from all: let go of it everywhere and aim later, further ahead each time."""
        self._release()
        for stage, part in self._parts.items():
            self._forget_answer(stage, part)
            part.digest, part.failures = "", 0
        self._begin(self._bounded(self._known + self._lead), reason)
        self._lead = min(2 * self._lead, LEAD_MAX)
        self._ask()

    def _release(self) -> None:
        for part in self._parts.values():
            if part.owner is not None and self._step is not None:
                self._act(Send(PeerId(part.owner.peer), LeaseRelease(self._step)))

    # --- fetching ---

    def _fetch(self) -> None:
        """Only once every stage is held or there: before that the step may still turn out to be past."""
        if not all(part.digest or part.answer for part in self._parts.values()):
            return
        if all(part.digest for part in self._parts.values()):
            self._finish()
            return
        room = FETCHES_AT_ONCE - sum(part.is_fetching for part in self._parts.values())
        waiting = [stage for stage, part in self._parts.items() if not part.digest and not part.is_fetching]
        for stage in waiting[:room]:
            part = self._parts[stage]
            assert part.owner is not None
            assert part.answer is not None
            part.is_fetching = True
            claim, answer = (stage, part.owner.incarnation), part.answer
            self._act(Fetch(claim, PeerId(part.owner.peer), "stage", answer.digest, answer.payload_bytes))

    def _on_fetched(self, claim: tuple[int, int], donor: PeerId, digest: str) -> None:
        part = self._parts[claim[0]]
        if not part.is_awaited(donor, claim[1], digest):
            return
        assert self._step is not None
        part.digest, part.is_fetching = digest, False
        self._act(Send(donor, LeaseRelease(self._step)))
        self._emit("export.fetched", stage=claim[0], incarnation=claim[1], donor=donor, digest=digest)

    def _on_fetch_failed(self, claim: tuple[int, int], donor: PeerId, digest: str, reason: str) -> None:
        """Ask again: if the owner lives and holds it still, or a successor can give it, it goes on."""
        part = self._parts[claim[0]]
        if not part.is_awaited(donor, claim[1], digest):
            return
        part.ask_anew()
        part.failures += 1
        self._emit("fetch.failed", stage=claim[0], donor=donor, reason=reason)
        if part.failures >= FETCH_TRIES:
            self._fail(reasons.not_delivered(claim[0], donor, reason))

    # --- the end ---

    def _finish(self) -> None:
        assert self._step is not None
        self.is_over = True
        self._emit("export.finished")
        self._act(FinishExport(self._step))

    def _fail(self, reason: str) -> None:
        self.is_over = True
        self._act(FailExport(reason))

    # --- telling ---

    def _act(self, action: ExportAction) -> None:
        self._actions.append(action)

    def _say(self, topic: str, name: str, stages: list[int]) -> None:
        """Once, not every second."""
        if self._said.get(topic) != (name, stages):
            self._said[topic] = (name, stages)
            self._emit(name, stages=stages)

    def _emit(self, name: str, **fields: object) -> None:
        self._act(Emit(name, {"peer": self._me, "step": self._step, **fields}))
