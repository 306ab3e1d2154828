"""What a node tells people: the picture on a terminal, log lines, the event file.

Fed by node/runtime.py; nothing waits for it and nothing depends on it.
"""
