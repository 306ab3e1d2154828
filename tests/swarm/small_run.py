"""The run.toml of a run so small that a swarm of it starts in seconds."""

from __future__ import annotations


def small_run(name: str, suspect_after_s: float, dead_after_s: float, *, block_stages: int = 2, more: str = "") -> str:
    """Timers differ: whoever tests silence wants it noticed soon, whoever does not must not mistake a busy machine's.

    ``more``: further tables.
    """
    return f"""
name = "{name}"
[model]
hidden_size = 32
intermediate_size = 48
attention_heads = 2
block_stages = {block_stages}
context_length = 32
[step]
microbatches = 4
microbatch_size = 2
{more}
[timing]
suspect_after_s = {suspect_after_s}
dead_after_s = {dead_after_s}
"""
