"""The swarm protocol as pure functions and state machines: no I/O, no clock, no threads.

Reading order: errors, ids, routing, manifest, events, actions, jobs; then the packages, each of which knows only those
before it: wire, membership, pipeline, recovery; export, reach, observe, invariants beside them; core makes all one.
"""
