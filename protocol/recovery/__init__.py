"""How a lost stage comes back: the ladder of methods, the spare that claims, its witnesses, the life of a node.

protocol/core.py calls it, and protocol/membership through `Consequences`; the ladder is pure and for all.
"""
