"""A whole swarm on this machine: real processes as children, faults on order, and a live table.

Called by `understudy local` and `make demo` (bootstrap/__main__.py).
"""
