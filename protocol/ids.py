"""Names of things: peers, stages, microbatches and their attempts."""

from __future__ import annotations

from typing import Annotated, NewType

import msgspec
from msgspec import Meta

PeerId = NewType("PeerId", str)
"""The base58 libp2p PeerID: the hash of the peer's public key."""

DRIVER_STAGE = 0
"""S0 holds embedding, head, data and loss, and drives the pipeline."""

PEER_ID_CHARS_MAX = 128
STAGES_MAX = 1024
STEPS_MAX = 2**53
INDEX_MAX = 2**20
INCARNATION_MAX = 2**53
INCARNATION_LEAP_MAX = 64
"""A witness recognises no claim that is further ahead of what it knows: else one word could use the numbers up."""
ATTEMPTS_MAX = 2**53


class Attempt(msgspec.Struct, frozen=True, order=True, array_like=True):
    """Which try of a microbatch a message belongs to.

    Ordered by the driver's incarnation first, so a new driver's attempts are newer than
    all attempts of the one it replaced.
    """

    driver_incarnation: Annotated[int, Meta(ge=1, le=INCARNATION_MAX)]
    counter: Annotated[int, Meta(ge=0, le=ATTEMPTS_MAX)]


class Microbatch(msgspec.Struct, frozen=True, order=True, array_like=True):
    """The identity of a microbatch. Its tokens are a pure function of (seed, step, index)."""

    step: int
    index: int


class Tenure(msgspec.Struct, frozen=True, array_like=True):
    """One peer's ownership of one stage. A higher incarnation fences every lower one."""

    stage: int
    incarnation: int
    peer: PeerId
