"""Of two owners who contradict each other one is replaced; and who was the first to send what is not finite."""

from __future__ import annotations

import pytest

from understudy.protocol.ids import PeerId
from understudy.protocol.pipeline.culprits import SPOILT_STEPS_MAX, Blame, Culprits, hop_number, why_no_loss
from understudy.protocol.pipeline.disputes import PEERS_REMEMBERED, Disputes

ME, A, B, C, D = (PeerId(name) for name in ("me", "a", "b", "c", "d"))
ROUTE = (2, 1, 3)


def test_the_accused_goes_first_and_who_accuses_a_second_one_goes_itself() -> None:
    disputes = Disputes(ME)
    assert disputes.loser(accused=B, accuser=A) == B
    assert disputes.loser(accused=C, accuser=A) == A


def test_who_was_accused_and_accuses_is_the_liar() -> None:
    """It sent NaN, or nothing, to the one after it, and blames the one before it."""
    disputes = Disputes(ME)
    assert disputes.loser(accused=A, accuser=C) == A
    assert disputes.loser(accused=B, accuser=A) == A


def test_the_same_two_again_are_the_same_contradiction() -> None:
    disputes = Disputes(ME)
    for _ in range(3):
        assert disputes.loser(accused=B, accuser=A) == B


def test_of_two_who_are_both_known_the_accused_goes() -> None:
    disputes = Disputes(ME)
    disputes.loser(accused=C, accuser=A)
    disputes.loser(accused=D, accuser=B)
    assert disputes.loser(accused=B, accuser=A) == B


@pytest.mark.parametrize(("accused", "accuser"), [(ME, A), (A, ME)])
def test_we_ourselves_know_what_we_sent_and_got(accused: PeerId, accuser: PeerId) -> None:
    disputes = Disputes(ME)
    assert disputes.loser(accused, accuser) == A
    assert disputes.loser(B, A) == B, "nor is it held against the other"


def test_what_is_remembered_is_bounded() -> None:
    disputes = Disputes(ME)
    for number in range(4 * PEERS_REMEMBERED):
        disputes.loser(PeerId(f"accused-{number}"), PeerId(f"accuser-{number}"))
    assert len(disputes._opponents) <= PEERS_REMEMBERED


# --- numbers ---


@pytest.fixture
def culprits() -> Culprits:
    return Culprits(ME, lambda stage: [PeerId(f"owner-{stage}")])


def blame(sender: int, receiver: int) -> Blame:
    names = [ME if stage == 0 else PeerId(f"owner-{stage}") for stage in (sender, receiver)]
    return Blame(names[0], sender, names[1], receiver)


def test_hops_are_numbered_as_they_come() -> None:
    forward = [hop_number(ROUTE, stage, is_gradient=False) for stage in (*ROUTE, 0)]
    back = [hop_number(ROUTE, stage, is_gradient=True) for stage in (*reversed(ROUTE), 0)]
    assert forward + back == list(range(8))


def test_the_first_on_the_way_to_get_it_names_the_culprit(culprits: Culprits) -> None:
    """In whatever order they say so: S1 spoils it, so S3, S0, and all on the way back get it."""
    words = [(0, False), (2, True), (3, True), (3, False), (1, True), (0, True)]
    for receiver, is_gradient in words:
        culprits.note(5, 1, ROUTE, receiver, is_gradient=is_gradient)
    assert culprits.first_of(5) == blame(1, 3)
    assert culprits.first_of(4) is None


def test_a_gradient_that_is_spoilt_on_the_way_back(culprits: Culprits) -> None:
    culprits.note(5, 1, ROUTE, 0, is_gradient=True)
    culprits.note(5, 1, ROUTE, 2, is_gradient=True)
    assert culprits.first_of(5) == blame(1, 2)


def test_what_s0_spoilt_itself_is_nobodys_fault(culprits: Culprits) -> None:
    for step in range(1, 5):
        culprits.note(step, 0, ROUTE, 3, is_gradient=True)
        culprits.note_own(step, 0, ROUTE)
        culprits.note(step, 0, ROUTE, 1, is_gradient=True)
        assert culprits.first_of(step) is None
        assert culprits.close(step) == []


def test_some_steps_in_a_row_and_no_fewer(culprits: Culprits) -> None:
    def spoil(step: int) -> list[Blame]:
        culprits.note(step, step % 4, ROUTE, 3, is_gradient=False)
        return culprits.close(step)

    for step in range(1, SPOILT_STEPS_MAX):
        assert spoil(step) == []
    assert culprits.close(SPOILT_STEPS_MAX) == [], "a good step: it begins anew"
    for step in range(10, 9 + SPOILT_STEPS_MAX):
        assert spoil(step) == []
    assert spoil(9 + SPOILT_STEPS_MAX) == [blame(1, 3)]


def test_people_are_told_why_there_is_no_loss() -> None:
    sent = Blame(PeerId("QmLongNameOfAPeer"), 4, ME, 0)
    assert why_no_loss(None) == "S0 made of finite numbers a loss that is not"
    assert why_no_loss(sent) == "what S4 (..eOfAPeer) sent to S0 was not finite"
