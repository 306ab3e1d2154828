"""Text of others as people may see it: nothing in it moves a cursor, begins a line, or turns what follows round."""

from __future__ import annotations


def printable(text: str, *, keeps_lines: bool = False) -> str:
    """The text with every character escaped that is not seen as itself, as Python writes it: ESC becomes ``\\x1b``.

    For whatever a founder or a peer wrote, where it reaches a terminal, a log or a file that people read.
    ``keeps_lines``: line ends and tabs are meant.
    """
    if text.isprintable():
        return text
    return "".join(_shown(character, "\n\t" if keeps_lines else "") for character in text)


def _shown(character: str, kept: str) -> str:
    is_itself = character.isprintable() or character in kept
    return character if is_itself else character.encode("unicode_escape").decode("ascii")
