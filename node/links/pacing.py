"""How a transfer in the background keeps off the line: piece by piece, with a pause after each.

A piece is sized to take about `PIECE_S` of the line, so an activation never waits long behind one; after it the line
is left alone for four times as long as it took, by each of two that share it for nine times, and so on. Time is an
argument, in seconds of whatever clock.
"""

from __future__ import annotations

from understudy.protocol.errors import RemoteProtocolError

PIECE_S = 0.1
LINE_SHARE = 5
"""All transfers of a donor in the background take one part in so many of its line, however many they are."""
PAUSE_S_MAX = 4.0
"""Below a donor's patience (node/links/transfer.py), and below that of whoever offered the copy (protocol/standby)."""
PIECE_BYTES_FIRST = 32 << 10
PIECE_BYTES_MIN = 16 << 10
PIECE_BYTES_MAX = 4 << 20


def next_piece_bytes(piece_bytes: int, line_s: float) -> int:
    """How large the next piece should be, if this one was on the line for ``line_s``: at most twice as large."""
    fitting = piece_bytes * PIECE_S / max(line_s, PIECE_S / 2)
    return int(min(max(fitting, PIECE_BYTES_MIN), PIECE_BYTES_MAX))


def pause_s(piece_s: float, share: int) -> float:
    """How long to leave the line alone after a piece that took so long from asking to its last byte.

    ``share``: so many transfers of this donor do the same.
    """
    return min((LINE_SHARE * share - 1) * piece_s, PAUSE_S_MAX)


def check_piece(piece_bytes: int) -> None:
    """A donor has work with each piece. Raises `RemoteProtocolError` for one that is smaller than any we ask for."""
    if piece_bytes < PIECE_BYTES_MIN:
        raise RemoteProtocolError(f"it asks for weights in pieces of {piece_bytes} bytes")


class Pace:
    """Of one transfer, over all of its streams."""

    def __init__(self, share: int) -> None:
        self.share = share
        """Of how many that share the part of the donor's line."""
        self.piece_bytes = PIECE_BYTES_FIRST
        """Of the piece that is asked for next."""
        self.left = 0
        """What is to come of the piece that was asked for."""
        self._asked_at = self._last_at = 0.0
        self._round_trip_s = 0.0

    def asked(self, now: float) -> None:
        """For the next piece."""
        self.left, self._asked_at = self.piece_bytes, now

    def answered(self, now: float) -> None:
        """A few bytes came for those that asked: what that took is the way, and no piece's size makes it shorter."""
        self._round_trip_s = now - self._asked_at

    def came(self, count: int, now: float) -> None:
        """So many bytes of the piece."""
        self.left -= count
        self._last_at = now

    def rest(self) -> float:
        """The piece is here: settle the size of the next, and say for how many seconds to leave the line alone."""
        piece_s = self._last_at - self._asked_at
        self.piece_bytes = next_piece_bytes(self.piece_bytes, piece_s - self._round_trip_s)
        return pause_s(piece_s, self.share)
