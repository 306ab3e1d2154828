"""How a lost stage comes back: the ladder of methods, the spare that claims, its witnesses, the life of a node.

protocol/core.py and the two halves of protocol/membership that hear of deaths call it; the ladder is pure and for all.
"""
