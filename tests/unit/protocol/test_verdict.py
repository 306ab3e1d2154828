"""Public, punchable or relayed: the guess, and the verdict among peers of which some lie."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.protocol.errors import RemoteProtocolError
from understudy.protocol.reach.sentences import doubt_announced, say
from understudy.protocol.reach.verdict import Answer, Verdict, guess, is_global, judge
from understudy.protocol.wire.contact import Reachability, is_private
from understudy.protocol.wire.reach import (
    LENGTH,
    REACH_BYTES_MAX,
    DialBackAnswer,
    DialBackRequest,
    DialOutcome,
    decode_length,
    decode_reach,
    encode_reach,
)

HOME = "5.5.5.20"
SILENT = "no answer within 3 s"


def answer(number: int, port: int = 4001, *, is_reached: bool | None = False, host: str = HOME) -> Answer:
    """Of the peer at 5.5.5.<number>."""
    return Answer(f"5.5.5.{number}", host, port, is_reached, "" if is_reached else SILENT)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("5.5.5.1", True),
        ("10.0.0.1", False),
        ("192.168.1.7", False),
        ("100.64.0.9", False),
        ("203.0.113.7", False),
        ("127.0.0.1", False),
        ("169.254.1.1", False),
        ("2a00:1450::1", True),
        ("fe80::1", False),
        ("fd00::1", False),
        ("seed.example.org", True),
        ("seed", False),
        ("seed.local", False),
        ("localhost", False),
        ("", False),
    ],
)
def test_what_can_be_dialled_from_anywhere(host: str, expected: bool) -> None:
    assert is_global(host) is expected


@pytest.mark.parametrize(
    ("own", "initial", "announced", "is_behind_nat", "expected"),
    [
        (["192.168.1.7"], ["5.5.5.1"], ["5.5.5.20"], False, "public"),
        (["192.168.1.7"], ["5.5.5.1"], ["5.5.5.20"], True, "public"),
        (["5.5.5.20"], ["5.5.5.1"], [], True, "punchable"),
        (["192.168.1.7", "5.5.5.20"], ["5.5.5.1"], [], False, "public"),
        (["192.168.1.7"], ["5.5.5.1"], [], False, "punchable"),
        (["100.64.3.4"], ["5.5.5.1"], [], False, "punchable"),
        (["203.0.113.5"], ["5.5.5.1"], [], False, "punchable"),
        (["192.168.1.7"], ["192.168.1.2", "127.0.0.1"], [], False, "public"),
        (["192.168.1.7"], ["192.168.1.2", "5.5.5.1"], [], False, "punchable"),
        (["172.17.0.3"], ["seed"], [], False, "public"),
        (["127.0.0.1"], ["127.0.0.1"], [], False, "public"),
        ([], ["seed.example.org"], [], False, "punchable"),
        ([], [], [], False, "public"),
    ],
)
def test_the_guess(
    own: list[str], initial: list[str], announced: list[str], is_behind_nat: bool, expected: Reachability
) -> None:
    assert guess(own, initial, announced, is_behind_nat) == expected


def test_nobody_told() -> None:
    assert judge([]) == Verdict("unknown", "no peer tried to dial it")
    verdict = judge([Answer("5.5.5.1", HOME, 4001, None, "it was asked too often within a minute")])
    assert verdict.reachability == "unknown"
    assert verdict.reason == "no peer tried to dial it: it was asked too often within a minute"


def test_most_reached_it() -> None:
    verdict = judge([answer(1, is_reached=True), answer(2, is_reached=True), answer(3)])
    assert verdict == Verdict("public", "2 of 3 peers dialled it", "5.5.5.20:4001", "5.5.5.20")
    assert judge([answer(1, is_reached=True)]).reason == "1 of 1 peer dialled it"


def test_who_did_not_try_has_no_voice_in_whether_it_is_public() -> None:
    answers = [answer(1, is_reached=True), *(answer(number, is_reached=None) for number in (2, 3, 4))]
    assert judge(answers).reachability == "public"


def test_one_outside_port_for_all() -> None:
    verdict = judge([answer(1), answer(2), answer(3)])
    assert (verdict.reachability, verdict.seen_at) == ("punchable", "5.5.5.20:4001")
    assert verdict.reason == f"none of 3 peers could dial it: {SILENT}; 3 peers see it at the same 5.5.5.20:4001"


def test_another_outside_port_for_each() -> None:
    verdict = judge([answer(1, 1111), answer(2, 2222)])
    assert verdict.reachability == "relayed"
    assert verdict.reason.endswith("each peer sees it at another port: 5.5.5.20:1111, 5.5.5.20:2222")


def test_an_address_of_each_kind_tells_of_no_router() -> None:
    """One peer sees us by IPv4 and one by IPv6: that these differ says nothing."""
    by_ip6 = Answer("2a02::1", "2a02::5", 31337, False, SILENT)
    assert judge([answer(1, 31337), by_ip6]).reachability == "punchable"


def test_a_pool_of_outside_addresses_is_symmetric_too() -> None:
    assert judge([answer(1, host="5.5.5.20"), answer(2, host="5.5.5.21")]).reachability == "relayed"


@pytest.mark.parametrize(
    "answers", [[answer(1)], [answer(1), answer(1, 2222)], [answer(1), answer(2, 0)], [answer(1, 0), answer(2, 0)]]
)
def test_fewer_than_two_told_where_they_see_it(answers: list[Answer]) -> None:
    verdict = judge(answers)
    assert verdict.reachability == "punchable"
    assert "what its router does is not known" in verdict.reason


def test_peers_in_our_own_network_do_not_count_where_others_do() -> None:
    housemates = [Answer(f"192.168.1.{number}", "192.168.1.7", 4001, True) for number in (2, 3, 4)]
    assert judge(housemates).reachability == "public"
    assert judge([*housemates, answer(1), answer(2)]).reachability == "punchable"


def test_a_claim_to_see_us_from_outside_silences_nobody() -> None:
    """Where a peer is, we know ourselves; where it sees us is its word."""
    honest = [Answer(f"192.168.1.{number}", "192.168.1.7", 4001, True) for number in (2, 3)]
    liar = Answer("192.168.1.9", "8.8.8.8", 1, False, SILENT)
    assert judge([liar, *honest]).reachability == "public"


def test_many_peers_at_one_address_have_one_voice() -> None:
    crowd = [answer(9, is_reached=True) for _ in range(5)]
    assert judge([answer(1), answer(2), *crowd]).reachability == "punchable"
    alike = [answer(9, 7777), answer(9, 7777)]
    assert judge([*alike, answer(1, 1111)]).reachability == "relayed"


def lie() -> st.SearchStrategy[Answer]:
    """Whatever one peer may say; that it is at 5.5.5.99 we know ourselves."""
    hosts, ports = st.sampled_from([HOME, "1.1.1.1", "10.0.0.1", ""]), st.integers(0, 65535)
    return st.builds(
        Answer, st.just("5.5.5.99"), hosts, ports, st.sampled_from([True, False, None]), st.sampled_from(["", "x"])
    )


@given(lie(), st.integers(0, 4), st.integers(2, 4), st.booleans())
def test_a_liar_alone_does_not_make_it_public_or_private(lie: Answer, place: int, honest: int, is_public: bool) -> None:
    answers = [answer(number, is_reached=is_public) for number in range(1, honest + 1)]
    answers.insert(min(place, len(answers)), lie)
    assert is_private(judge(answers).reachability) is not is_public


@given(lie(), st.integers(0, 4), st.integers(2, 4))
def test_a_liar_alone_does_not_make_a_punchable_one_relayed(lie: Answer, place: int, honest: int) -> None:
    answers = [answer(number) for number in range(1, honest + 1)]
    answers.insert(min(place, len(answers)), lie)
    assert judge(answers).reachability == "punchable"


@given(st.lists(st.builds(Answer, *(st.text(max_size=4),) * 2, st.integers(0, 9), st.none() | st.booleans())))
def test_every_answer_leads_to_a_verdict_with_a_reason(answers: list[Answer]) -> None:
    verdict = judge(answers)
    assert verdict.reason
    if all(each.is_reached is None for each in answers):
        assert verdict.reachability == "unknown"


# --- what a person reads -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reachability", "text"),
    [
        ("public", "this machine can be dialled from outside (why)"),
        ("punchable", "this machine is behind a router that lets peers punch through: neighbours connect directly"),
        ("relayed", "that relay; forward TCP port 4001 to this machine and it becomes direct (why)"),
        ("unknown", "whether this machine can be dialled from outside is not known (why)"),
    ],
)
def test_each_verdict_in_plain_words(reachability: Reachability, text: str) -> None:
    assert text in say(Verdict(reachability, "why"), 4001)


def test_without_a_port_it_says_how_to_choose_one() -> None:
    assert "forward a TCP port (choose it with --host-maddr) to this machine" in say(Verdict("relayed", "why"), 0)


def test_an_announced_address_where_nobody_answers() -> None:
    announced = "/ip4/5.5.5.20/tcp/4001"
    silent = Verdict("punchable", "none of 2 peers could dial it", "5.5.5.20:4001")
    assert "check that the router forwards this port here" in doubt_announced(announced, "5.5.5.20", silent)
    elsewhere = Verdict("punchable", "none of 2 peers could dial it", "5.5.5.21:4001")
    assert doubt_announced(announced, "5.5.5.20", elsewhere).endswith("peers see it at 5.5.5.21; check the address")
    assert "router forwards" in doubt_announced("/dns4/a.org/tcp/4001", "a.org", elsewhere)
    assert doubt_announced(announced, "5.5.5.20", Verdict("public", "why")) == ""
    assert doubt_announced(announced, "5.5.5.20", Verdict("unknown", "why")) == ""


# --- on the wire ---------------------------------------------------------------------------------


def test_messages_come_back_as_they_went() -> None:
    request = DialBackRequest((4001, 4002))
    told = DialBackAnswer(HOME, 4001, (DialOutcome(4001, ""), DialOutcome(4002, SILENT)))
    for message in (request, told):
        encoded = encode_reach(message)
        assert decode_length(encoded[: LENGTH.size]) == len(encoded) - LENGTH.size
    assert decode_reach(encode_reach(request)[LENGTH.size :], DialBackRequest) == request
    assert decode_reach(encode_reach(told)[LENGTH.size :], DialBackAnswer) == told


@pytest.mark.parametrize(
    "message",
    [
        DialBackRequest(()),
        DialBackRequest((1, 2, 3)),
        DialBackRequest((0,)),
        DialBackRequest((65536,)),
        DialBackAnswer("x" * 46, 1),
        DialBackAnswer("\x1b[2J", 1),
        DialBackAnswer("", 1, refusal="\x07"),
        DialBackAnswer("", 1, refusal="x" * 161),
        DialBackAnswer("", 1, (DialOutcome(1, "a\nb"),)),
        DialBackAnswer("", 1, (DialOutcome(1, ""),) * 3),
    ],
)
def test_what_is_beyond_the_limits_does_not_decode(message: DialBackRequest | DialBackAnswer) -> None:
    with pytest.raises(RemoteProtocolError, match="malformed"):
        decode_reach(encode_reach(message)[LENGTH.size :], type(message))


@pytest.mark.parametrize("length", [0, REACH_BYTES_MAX + 1, 2**32 - 1])
def test_a_length_beyond_the_limits_costs_nothing(length: int) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_length(LENGTH.pack(length))


@given(st.binary(max_size=200))
def test_no_bytes_do_harm(body: bytes) -> None:
    for kind in (DialBackRequest, DialBackAnswer):
        try:
            decode_reach(body, kind)
        except RemoteProtocolError:
            continue
