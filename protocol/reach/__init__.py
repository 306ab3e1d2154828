"""How a node can be reached: what is guessed before it dialled anybody, and what follows from what peers saw.

Pure functions; node/reach asks the peers. Imports nothing of ours, so anything may name what is decided here.
"""
