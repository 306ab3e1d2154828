"""The search for the manifest: patient with silence, and exact about what it found."""

from __future__ import annotations

from typing import cast

import msgspec
import pytest

from tests.fakes import run_leaping
from understudy.bootstrap.founding import found, join_string
from understudy.node.dht.p2p_node import P2PNode
from understudy.node.dht.signing import StoredRecord
from understudy.node.joining import FIND_TIMEOUT_S, LOOK_AGAIN_AFTER_S, obtain_manifest
from understudy.node.p2p.identity import Identity
from understudy.protocol.errors import NetworkError, SettingsError
from understudy.protocol.presets import preset
from understudy.protocol.wire.records import encode_record

RUN = msgspec.structs.replace(preset("tiny"), admission="open")
FOUNDER = Identity.generate()
SIGNED_MANIFEST = found(RUN, FOUNDER)
JOIN = join_string(RUN, FOUNDER, ("/ip4/127.0.0.1/tcp/4001",))
FOUND = [StoredRecord(FOUNDER.peer_id, "", encode_record(SIGNED_MANIFEST), 1e12)]
DAMAGED = [StoredRecord(FOUNDER.peer_id, "", b"?", 1e12)]
SILENCE = NetworkError("cannot read from the DHT: no answer")

Answer = list[StoredRecord] | NetworkError


class Answers:
    """A DHT that answers so, one question after the other; the last answer stays."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.asked = 0

    async def get(self, key: str) -> list[StoredRecord]:
        self.asked += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, NetworkError):
            raise answer
        return answer


def search(dht: Answers) -> None:
    manifest, signed_manifest = run_leaping(obtain_manifest(cast(P2PNode, dht), JOIN))
    assert (manifest, signed_manifest) == (RUN, SIGNED_MANIFEST)


def test_a_question_that_nobody_answers_does_not_end_the_search() -> None:
    search(Answers(SILENCE, [], SILENCE, DAMAGED, SILENCE, FOUND))


@pytest.mark.parametrize(
    ("answers", "kind", "told"),
    [
        (([],), NetworkError, "nobody knows the run"),
        (([], SILENCE), NetworkError, "no answer"),
        ((DAMAGED, SILENCE), SettingsError, "malformed"),
        ((SILENCE, DAMAGED, []), SettingsError, "malformed"),
    ],
)
def test_a_search_in_vain_ends_in_time_and_says_what_it_found(
    answers: tuple[Answer, ...], kind: type[Exception], told: str
) -> None:
    dht = Answers(*answers)
    with pytest.raises(kind, match=told):
        search(dht)
    assert dht.asked == pytest.approx(FIND_TIMEOUT_S / LOOK_AGAIN_AFTER_S, abs=1)
