"""The swarm protocol as pure functions and state machines: no I/O, no clock, no threads.

Reading order: errors, ids, manifest; messages, wire, records, events; membership, placement, routing, steps,
recovery (the decisions); node_state, work, pipeline, driving, edge_copies, donating, lookout, claiming,
neighbourhood (the parts of a node); tenancy, recognition, bulletin, core (how they make a whole).
"""
