"""What the core raises ends its node: so no word and no record of anybody may make it raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.seals import NamedSeal
from tests.sim.simulation import small_manifest
from understudy.protocol.actions import Action, Fetch, ReadText, Run
from understudy.protocol.core import Core
from understudy.protocol.events import (
    Event,
    Fetched,
    JobDone,
    MessageReceived,
    PeerUnreachable,
    RecordsRead,
    Started,
    TextRead,
    TimerFired,
)
from understudy.protocol.ids import PeerId
from understudy.protocol.jobs import (
    Applied,
    ApplyJob,
    BackwardJob,
    BlendJob,
    DigestJob,
    ForwardJob,
    ImageJob,
    InitialiseJob,
    Job,
    LeaseJob,
    LossJob,
    SnapshotJob,
)
from understudy.protocol.wire.messages import AnyMessage, Heartbeat
from understudy.protocol.wire.records import AnyRecord, key_of

ME = PeerId("me")
MANIFEST = small_manifest(stages=4, steps=6, microbatches=2, method="checkfree+", edge_copy_every=1, standby_every=1)
PEERS = ["peer-0", "peer-1", "peer-2", "peer-3", "other"]
RESULTS: dict[type, Any] = {
    ForwardJob: "activation",
    LossJob: (1.0, "gradient"),
    BackwardJob: "gradient",
    ApplyJob: Applied(1.0),
    SnapshotJob: (8, "digest"),
    LeaseJob: None,
    DigestJob: (8, "digest"),
    BlendJob: None,
    InitialiseJob: None,
}


def result_of(job: Job) -> Any:
    """What the compute thread brings back."""
    if isinstance(job, ImageJob):
        return tuple((8, f"image of {part}") for part in job.parts)
    return RESULTS[type(job)]


PLAIN: dict[type, list[Any]] = {
    msgspec.inspect.FloatType: [0.0, 1.0, 1e30],
    msgspec.inspect.BoolType: [True, False],
    msgspec.inspect.BytesType: [b"bytes"],
    msgspec.inspect.NoneType: [None],
}
SMALL = {
    "stage": 5,
    "incarnation": 4,
    "step": 8,
    "index": 3,
    "known_incarnation": 4,
    "lost_incarnation": 4,
    "for_stage": 5,
}


def some(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Messages or records of a kind, whose numbers are small enough to mean something."""
    fields = {}
    for field in msgspec.inspect.type_info(kind).fields:  # type: ignore[attr-defined]
        fields[field.name] = field_strategy(field.name, field.type)
    return st.builds(kind, **fields)


def field_strategy(name: str, kind: Any) -> st.SearchStrategy[Any]:
    match kind:
        case msgspec.inspect.IntType():
            found: st.SearchStrategy[Any] = st.integers(kind.ge or 0, SMALL.get(name, 3))
        case msgspec.inspect.LiteralType():
            found = st.sampled_from(kind.values)
        case msgspec.inspect.StrType():
            found = st.sampled_from(PEERS if name in ("peer", "owner") else ["digest"])
        case msgspec.inspect.UnionType():
            found = st.one_of(*(field_strategy(name, part) for part in kind.types))
        case msgspec.inspect.VarTupleType():
            found = st.lists(field_strategy("stage", kind.item_type), max_size=3).map(tuple)
        case msgspec.inspect.StructType():
            found = some(kind.cls)
        case _:
            found = st.sampled_from(PLAIN[type(kind)])
    return found


MESSAGES = st.one_of(*(some(kind) for kind in AnyMessage.__args__))  # type: ignore[attr-defined]
RECORDS = st.one_of(*(some(kind) for kind in AnyRecord.__args__))  # type: ignore[attr-defined]
SENDERS = st.sampled_from(PEERS).map(PeerId)
EVENTS = st.one_of(
    st.builds(MessageReceived, SENDERS, MESSAGES, st.just("payload")),
    st.builds(MessageReceived, SENDERS, MESSAGES, st.just("payload")),
    RECORDS.map(lambda record: RecordsRead(key_of(record), (record,))),
    st.builds(PeerUnreachable, SENDERS),
    st.just(TimerFired()),
)


class Node:
    """A core whose compute thread and whose fetches are done at once."""

    def __init__(self, wanted: int | None) -> None:
        self.core = Core(NamedSeal(ME), MANIFEST, check_every=1)
        self.now = 100.0
        self.do(Started(wanted))
        for stage in range(MANIFEST.stage_count):
            self.do(RecordsRead(f"stage/{stage}", ()))
        if wanted is not None:
            for _ in range(20):
                self.now += 0.25
                self.do(TimerFired())
                self.do(RecordsRead(f"stage/{wanted}", ()))
            assert self.core.state.is_serving
            for stage in set(range(MANIFEST.stage_count)) - {wanted}:
                self.do(MessageReceived(PeerId(f"peer-{stage}"), Heartbeat(stage, 1, "serving", 0)))

    def do(self, event: Event) -> None:
        due: list[Action] = self.core.handle(event, self.now)
        while due:
            action = due.pop(0)
            if isinstance(action, Run):
                due += self.core.handle(JobDone(action.job, result_of(action.job)), self.now)
            elif isinstance(action, ReadText):
                due += self.core.handle(TextRead(action.step, None), self.now)
            elif isinstance(action, Fetch):
                due += self.core.handle(Fetched(action.claim, action.donor, action.digest, "weights"), self.now)


NODES: dict[str, Callable[[], Node]] = {
    "spare": lambda: Node(None),
    "driver": lambda: Node(0),
    "S1": lambda: Node(1),
    "S3": lambda: Node(3),
}


@pytest.mark.parametrize("role", NODES)
@given(events=st.lists(EVENTS, max_size=25))
@settings(max_examples=100, deadline=None)
def test_nothing_that_others_say_makes_the_core_raise(role: str, events: list[Event]) -> None:
    node = NODES[role]()
    for event in events:
        node.now += 0.3
        node.do(event)
    for _ in range(8):
        node.now += 0.25
        node.do(TimerFired())
