"""Small checks, each answered in words that say what to do: this machine, and the way to the swarm.

Called by `understudy doctor` (bootstrap/doctor.py).
"""
