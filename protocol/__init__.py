"""The swarm protocol as pure functions and state machines: no I/O, no clock, no threads.

Reading order: errors, ids, routing, manifest, events; then the packages, each of which knows only those before it:
wire, membership, pipeline, recovery; export and observe beside them; core makes a whole of all.
"""
