"""What single fields of messages and records may hold: whatever is beyond it does not decode."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from understudy.protocol.ids import INCARNATION_MAX, INDEX_MAX, PEER_ID_CHARS_MAX, STAGES_MAX, STEPS_MAX, PeerId

StageNumber = Annotated[int, Meta(ge=0, lt=STAGES_MAX)]
Incarnation = Annotated[int, Meta(ge=1, le=INCARNATION_MAX)]
StepNumber = Annotated[int, Meta(ge=0, le=STEPS_MAX)]
Index = Annotated[int, Meta(ge=0, le=INDEX_MAX)]
ByteCount = Annotated[int, Meta(ge=0, le=2**50)]
VISIBLE = r"^[\x20-\x7e]*\Z"
"""Text of peers reaches people's terminals: nothing in it may move the cursor or ring the bell."""
PeerText = Annotated[str, Meta(min_length=1, max_length=PEER_ID_CHARS_MAX, pattern=VISIBLE)]
NamedPeer = Annotated[PeerId, Meta(min_length=1, max_length=PEER_ID_CHARS_MAX, pattern=VISIBLE)]
PathOfPeers = Annotated[tuple[NamedPeer, ...], Meta(max_length=STAGES_MAX)]
"""The peers that a microbatch visits (protocol/pipeline/paths.py): the edge host, then its route's. Empty: unknown."""
Digest = Annotated[str, Meta(max_length=128, pattern=VISIBLE)]
StageState = Literal["recovering", "serving", "left", "withdrawn"]
"""``left``: it said goodbye. ``withdrawn``: this tenure or claim is void, and says nothing about any other."""
Part = Literal["stage", "embedding", "head", "initial", "moments"]
"""What a donation holds: a whole stage, one of the two parts of S0, the weights that the run began with, or the state
of a stage's optimizer."""
RefusalReason = Literal["owner alive", "superseded", "not serving", "asks too few", "run is done"]
LeaseState = Literal["noted", "held", "passed", "full", "not mine"]
"""Of an asked-for step: it is still to come; its weights are held; they are gone; too many are held
already; the tenure is not, or no longer, the asked peer's."""
