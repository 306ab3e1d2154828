"""The swarm protocol as pure functions and state machines: no I/O, no clock, no threads.

Reading order: errors, ids, manifest, messages, wire, records, events, membership, placement,
routing, steps, recovery, core.
"""
