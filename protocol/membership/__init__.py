"""Who owns which stage and who is alive: the view of one node, and what changes it.

`view`, `seats` and `placement` are pure and may be asked by everybody; the rest is wired up by protocol/core.py.
"""
