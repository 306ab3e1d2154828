"""The loss of a swarm's last step in words, the same on every screen."""

from __future__ import annotations


def loss_words(loss: float | None, why_none: str = "") -> str:
    """``loss``: None if it is not finite, or not known; then ``why_none`` says why, if anybody did. Else empty."""
    if loss is not None:
        return f"loss {loss:.3f}"
    return f"loss not finite: {why_none}" if why_none else ""
