"""Nothing of others' text does anything to a terminal or a log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.protocol.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a name", "a name"),
        ("für 字", "für 字"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("one\ntwo\r", "one\\ntwo\\r"),
        ("\x9b1m\u2028", "\\x9b1m\\u2028"),
        ("\u202etxt.exe\u2066", "\\u202etxt.exe\\u2066"),
        ("\udc80", "\\udc80"),
    ],
)
def test_what_is_not_seen_as_itself_is_spelled_out(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_lines_may_be_meant() -> None:
    assert printable("one\n\ttwo\x1b", keeps_lines=True) == "one\n\ttwo\\x1b"


@given(st.text(alphabet=st.characters()))
def test_what_is_shown_is_one_line_and_can_be_written(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    shown.encode("utf-8")
