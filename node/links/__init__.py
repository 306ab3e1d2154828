"""Messages and weights between peers, over the streams of node/p2p: queued, framed, within limits, counted.

Used by node/runtime.py and node/export.
"""
