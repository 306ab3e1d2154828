"""What a person's shell and machine say to a program, and what the tests are told instead."""

from __future__ import annotations

from collections.abc import Mapping

TERMINAL = "xterm-256color"
OF_THE_TERMINAL = {
    "COLUMNS", "LINES", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "PY_COLORS",
    "TTY_COMPATIBLE", "TTY_INTERACTIVE", "TERMINAL_WIDTH", "GITHUB_ACTIONS", "JUPYTER_COLUMNS", "JUPYTER_LINES",
}  # fmt: skip
"""What rich and typer draw by. A test that draws says itself how wide it is."""
OF_THE_PERSON = ("UNDERSTUDY_", "_UNDERSTUDY_", "XDG_")
"""How names begin that give our commands options and folders."""


def settled(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what would change what the tests see, on a terminal that can draw."""
    kept = {
        name: value
        for name, value in environment.items()
        if name not in OF_THE_TERMINAL and not name.startswith(OF_THE_PERSON)
    }
    return {**kept, "TERM": TERMINAL}
