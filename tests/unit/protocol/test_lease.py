"""The owner's side of an export: what is held, for whom, how long, and what is refused."""

from __future__ import annotations

import pytest

from tests.seals import NamedSeal
from tests.sim.simulation import small_manifest
from understudy.protocol.actions import ReleaseLease, Send
from understudy.protocol.core import Core
from understudy.protocol.errors import RemoteProtocolError
from understudy.protocol.events import MessageReceived
from understudy.protocol.export.lease import (
    AHEAD_MAX,
    COPY_EVERY_S,
    LEASE_S,
    LEASES_PER_SNAPSHOT_MAX,
    LINGER_S,
    SNAPSHOT_LIFETIME_S,
    SNAPSHOTS_MAX,
    SnapshotLeases,
)
from understudy.protocol.ids import PeerId, Tenure
from understudy.protocol.jobs import DigestJob, Job, LeaseJob
from understudy.protocol.manifest import RunManifest
from understudy.protocol.membership.view import Membership
from understudy.protocol.node_state import NodeState
from understudy.protocol.pipeline.queue import WorkQueue
from understudy.protocol.wire.messages import FetchRequest, LeaseRelease, LeaseRequest, LeaseStatus

ME, EXPORTER, OTHER = PeerId("me"), PeerId("exporter"), PeerId("other")
MANIFEST = small_manifest(stages=5, steps=10)
OPEN_STEP = 6
"""The owner of S2/3 committed step 5."""


class Owner:
    """The leases of S2/3 and their surroundings."""

    def __init__(self, manifest: RunManifest = MANIFEST) -> None:
        membership = Membership(manifest.stage_count, manifest.timing)
        self.state = NodeState(
            NamedSeal(ME), manifest, membership, now=100.0, tenure=Tenure(2, 3, ME), tenure_state="serving"
        )
        self.queue = WorkQueue()
        self.leases = SnapshotLeases(self.state, self.queue)

    def ask(self, step: int, peer: PeerId = EXPORTER, tenure: tuple[int, int] = (2, 3)) -> LeaseStatus:
        return self.ask_at(step, OPEN_STEP, peer, tenure)

    def ask_at(self, step: int, open_step: int, peer: PeerId, tenure: tuple[int, int] = (2, 3)) -> LeaseStatus:
        self.state.actions = []
        self.leases.on_request(peer, LeaseRequest(*tenure, step), open_step)
        (send,) = [action for action in self.state.actions if isinstance(action, Send)]
        assert send.peer == peer
        assert isinstance(send.message, LeaseStatus)
        return send.message

    def jobs(self) -> list[Job]:
        found = []
        while (job := self.queue.pop()) is not None:
            found.append(job)
            self.queue.finished()
        return found

    def copied(self, step: int) -> None:
        self.leases.on_job_done(LeaseJob(step), None)
        self.leases.on_job_done(DigestJob(step), None)
        self.leases.on_job_done(DigestJob(step), (80, "digest"))


def test_a_step_to_come_is_noted_and_copied_when_it_is_closed() -> None:
    owner = Owner()
    assert owner.ask(7) == LeaseStatus(2, 3, 7, "noted", 5)
    assert owner.jobs() == []
    owner.leases.closed(6)
    assert owner.jobs() == []
    owner.leases.closed(7)
    assert owner.jobs() == [LeaseJob(7)]


def test_the_step_just_closed_is_copied_at_once_and_once_only() -> None:
    owner = Owner()
    assert owner.ask(5).status == "noted"
    owner.ask(5)
    owner.ask(5, OTHER)
    assert owner.jobs() == [LeaseJob(5)]


def test_digests_follow_one_by_one_and_all_holders_are_told() -> None:
    owner = Owner()
    owner.ask(5)
    owner.ask(5, OTHER)
    owner.jobs()
    owner.leases.on_job_done(LeaseJob(5), None)
    assert owner.jobs() == [DigestJob(5)]
    owner.leases.on_job_done(DigestJob(5), None)
    assert owner.jobs() == [DigestJob(5)]
    owner.state.actions = []
    owner.leases.on_job_done(DigestJob(5), (80, "digest"))
    news = LeaseStatus(2, 3, 5, "held", 5, 80, "digest")
    sends = [action for action in owner.state.actions if isinstance(action, Send)]
    assert sends == [Send(EXPORTER, news), Send(OTHER, news)]
    assert owner.ask(5) == news


def test_a_step_that_is_past_is_gone() -> None:
    assert Owner().ask(4) == LeaseStatus(2, 3, 4, "passed", 5)


def test_what_is_held_stays_although_training_goes_on() -> None:
    owner = Owner()
    owner.ask(5)
    owner.copied(5)
    owner.state.actions = []
    owner.leases.on_request(EXPORTER, LeaseRequest(2, 3, 5), OPEN_STEP + 9)
    (send,) = owner.state.actions
    assert isinstance(send, Send)
    assert send.message == LeaseStatus(2, 3, 5, "held", OPEN_STEP + 8, 80, "digest")


@pytest.mark.parametrize("tenure", [(1, 3), (2, 2), (2, 4)])
def test_another_tenure_is_not_ours_to_give(tenure: tuple[int, int]) -> None:
    owner = Owner()
    assert owner.ask(7, tenure=tenure).status == "not mine"
    assert not owner.leases.may_fetch(EXPORTER, FetchRequest(*tenure, "", 0))


def test_a_step_beyond_the_end_breaks_the_protocol() -> None:
    with pytest.raises(RemoteProtocolError):
        Owner().ask(11)


def test_no_more_steps_are_held_than_there_is_room_for() -> None:
    owner = Owner()
    for number in range(SNAPSHOTS_MAX):
        assert owner.ask(6 + number, PeerId(f"exporter-{number}")).status == "noted"
    assert owner.ask(6 + SNAPSHOTS_MAX).status == "full"
    owner.leases.release(PeerId("exporter-0"), 6)
    assert owner.ask(6 + SNAPSHOTS_MAX).status == "noted"


def test_an_exporter_has_one_wish() -> None:
    owner = Owner()
    for step in (6, 7, 8, 9):
        assert owner.ask(step).status == "noted"
    assert owner.ask(8, OTHER).status == "noted"
    for step in (6, 7, 8):
        owner.leases.closed(step)
    assert owner.jobs() == [LeaseJob(8)]


def test_asking_and_letting_go_orders_no_more_copies_than_training_can_bear() -> None:
    owner = Owner()
    owner.ask(5)
    for _ in range(100):
        owner.leases.release(EXPORTER, 5)
        assert owner.ask(5).status == "full"
    assert owner.jobs() == [LeaseJob(5)]
    owner.state.now += COPY_EVERY_S
    assert owner.ask(5, OTHER).status == "noted"
    assert owner.jobs() == [LeaseJob(5)]


def test_copies_are_not_ordered_faster_than_training_can_bear() -> None:
    owner = Owner()
    owner.ask(6)
    owner.ask(7, OTHER)
    owner.leases.closed(6)
    owner.leases.closed(7)
    assert owner.jobs() == [LeaseJob(6)]
    assert owner.ask_at(7, 9, OTHER).status == "passed"
    owner.state.now += COPY_EVERY_S
    assert owner.ask_at(8, 9, OTHER).status == "noted"
    assert owner.jobs() == [LeaseJob(8)]


def test_the_last_step_is_copied_however_soon_it_comes() -> None:
    owner = Owner()
    owner.ask(9)
    owner.ask(10, OTHER)
    owner.leases.closed(9)
    owner.leases.closed(10)
    assert owner.jobs() == [LeaseJob(9), LeaseJob(10)]
    owner.leases.release(OTHER, 10)
    assert owner.ask_at(10, 11, OTHER).status == "full"


def test_nobody_reserves_a_step_far_away_but_the_last() -> None:
    owner = Owner(small_manifest(stages=5, steps=0))
    assert owner.ask(OPEN_STEP + AHEAD_MAX).status == "noted"
    assert owner.ask(OPEN_STEP + AHEAD_MAX + 1).status == "full"
    bounded = Owner(small_manifest(stages=5, steps=100_000))
    assert bounded.ask(99_999).status == "full"
    assert bounded.ask(100_000).status == "noted"


def test_no_copy_is_kept_for_ever() -> None:
    owner = Owner()
    owner.ask(5)
    owner.copied(5)
    until = owner.state.now + SNAPSHOT_LIFETIME_S
    while owner.state.now < until:
        owner.state.now += 5.0
        assert owner.ask(5).status == "held"
        assert owner.leases.is_wanted
    owner.state.now += 1.0
    owner.ask(5)
    assert not owner.leases.is_wanted
    owner.state.actions = []
    owner.leases.expire()
    assert owner.state.actions == [ReleaseLease(5)]


def test_no_more_exporters_are_noted_than_there_is_room_for() -> None:
    owner = Owner()
    for number in range(LEASES_PER_SNAPSHOT_MAX):
        assert owner.ask(7, PeerId(f"exporter-{number}")).status == "noted"
    assert owner.ask(7, OTHER).status == "full"
    assert owner.ask(7, PeerId("exporter-0")).status == "noted"


def test_only_who_asked_may_fetch() -> None:
    owner = Owner()
    request = FetchRequest(2, 3, "digest", 0)
    owner.ask(5)
    assert not owner.leases.may_fetch(EXPORTER, FetchRequest(2, 3, "other", 0))
    owner.copied(5)
    assert owner.leases.may_fetch(EXPORTER, request)
    assert not owner.leases.may_fetch(OTHER, request)
    assert not owner.leases.may_fetch(EXPORTER, FetchRequest(2, 2, "digest", 0))
    owner.leases.release(EXPORTER, 5)
    assert not owner.leases.may_fetch(EXPORTER, request)


def test_a_copy_is_freed_when_nobody_wants_it_any_more() -> None:
    owner = Owner()
    owner.ask(5)
    owner.ask(5, OTHER)
    owner.copied(5)
    owner.state.actions = []
    owner.leases.release(OTHER, 7)
    owner.leases.release(EXPORTER, 5)
    assert owner.state.actions == []
    owner.leases.release(OTHER, 5)
    assert owner.state.actions == [ReleaseLease(5)]


def test_a_copy_made_for_nobody_is_freed() -> None:
    owner = Owner()
    owner.leases.on_job_done(LeaseJob(5), None)
    assert owner.state.actions == [ReleaseLease(5)]


def test_an_exporter_that_says_nothing_more_is_forgotten() -> None:
    owner = Owner()
    owner.ask(5)
    owner.state.now += LEASE_S - 1.0
    owner.ask(5)
    owner.state.now += LEASE_S - 1.0
    owner.state.actions = []
    owner.leases.expire()
    assert owner.state.actions == []
    owner.state.now += 1.0
    owner.leases.expire()
    assert owner.state.actions == [ReleaseLease(5)]


def test_the_end_of_the_run_waits_for_exporters_that_speak_and_can_be_served() -> None:
    owner = Owner()
    assert not owner.leases.is_wanted
    owner.ask(7)
    assert not owner.leases.is_wanted
    owner.leases.closed(7)
    assert owner.leases.is_wanted
    owner.state.now += LINGER_S
    assert not owner.leases.is_wanted
    owner.ask(7)
    assert owner.leases.is_wanted


def test_a_spare_holds_nothing() -> None:
    core = Core(NamedSeal(ME), MANIFEST, check_every=1)
    asked = [MessageReceived(EXPORTER, LeaseRequest(2, 3, 5)), MessageReceived(EXPORTER, LeaseRelease(5))]
    sends = [action for event in asked for action in core.handle(event, 100.0) if isinstance(action, Send)]
    assert sends == [Send(EXPORTER, LeaseStatus(2, 3, 5, "not mine", 0))]
