"""Room for a stage's weights that arrive, and their digests, computed while more arrives."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from understudy.node.compute.weights import DTYPES, WeightsSnapshot, check_size, raw_bytes
from understudy.protocol.errors import LocalProtocolError, WeightsError
from understudy.protocol.wire.tensors import TensorSpec


class WeightsBuffer:
    """Room for weights that arrive, filled in order and resumable at any byte.

    Read from the stream into `writable`, tell `advance` how much came, and once `is_complete`
    call `verify` before using ``tensors``. Check the specs with `check_specs` first. Another thread may
    `digest` what came while more comes.
    """

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        """Raises `WeightsError` if the payload is beyond all bounds."""
        check_size(specs)
        self.specs = tuple(specs)
        self.tensors = tuple(torch.empty(spec.shape, dtype=DTYPES[spec.dtype]) for spec in specs)
        self.received = 0
        """Bytes so far: the offset to resume from."""
        # Invariant: the tensors before _filling are full, and _filled bytes of that one are.
        self._filling = 0
        self._filled = 0
        self._digests = RunningDigests(self.specs, [raw_bytes(tensor) for tensor in self.tensors])

    @property
    def is_complete(self) -> bool:
        return self._filling == len(self.tensors)

    def writable(self) -> memoryview:
        """What is missing of the tensor being filled; empty when complete."""
        if self.is_complete:
            return memoryview(b"")
        return self._digests.contents[self._filling][self._filled :]

    def advance(self, count: int) -> None:
        """``count`` bytes were written to the front of `writable`. Raises `LocalProtocolError` if it was shorter."""
        room = len(self.writable())
        if not 0 <= count <= room:
            raise LocalProtocolError(f"{count} bytes cannot have been written where {room} were missing")
        self.received += count
        self._filled += count
        if count == room and not self.is_complete:
            self._filling += 1
            self._filled = 0

    def digest(self) -> None:
        """Digest what came since the last time, so that `verify` has less to do. For one thread at a time."""
        self._digests.go_on(self.received)

    def verify(self) -> None:
        """Raises `WeightsError` if bytes are missing, or naming the first tensor that is not what was announced."""
        if not self.is_complete:
            raise WeightsError(f"the weights are incomplete: {self.received} bytes came, fetch the rest")
        self.digest()
        if self._digests.wrong:
            raise WeightsError(f"the bytes of {self._digests.wrong[0]} do not match their digest: fetch it again")

    def freeze(self) -> WeightsSnapshot:
        """The verified weights, to be served in turn (the copies of S0's weights are). Raises like `verify`."""
        self.verify()
        return WeightsSnapshot(self.specs, self.tensors)


class RunningDigests:
    """Digests of tensors whose bytes come one after the other, as far as they came."""

    def __init__(self, specs: Sequence[TensorSpec], contents: Sequence[memoryview]) -> None:
        self.contents = contents
        self.wrong: list[str] = []
        """Names of the whole tensors that are not what was announced."""
        self._specs = specs
        # Invariant: the tensors before _at are compared, and _digested bytes of all are in a digest.
        self._at = 0
        self._digested = 0
        self._inside = 0
        self._running = hashlib.sha256()

    def go_on(self, received: int) -> None:
        """Up to this byte of all."""
        while self._at < len(self.contents):
            piece = self.contents[self._at][self._inside : self._inside + received - self._digested]
            self._running.update(piece)
            self._digested += len(piece)
            self._inside += len(piece)
            if self._inside < len(self.contents[self._at]):
                return
            self._compare()

    def _compare(self) -> None:
        spec = self._specs[self._at]
        if self._running.hexdigest() != spec.digest:
            self.wrong.append(spec.name)
        self._at, self._inside, self._running = self._at + 1, 0, hashlib.sha256()
