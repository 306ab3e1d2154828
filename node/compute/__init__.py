"""The arithmetic of one stage: its model, its optimizer, its weights, and the one thread that works on them.

Fed by node/runtime.py with the core's jobs; knows nothing of the network.
"""
