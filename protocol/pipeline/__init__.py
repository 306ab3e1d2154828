"""How a microbatch moves: the ledgers of a step, the queue in front of the compute thread, the hosts of S0 and S1..Sn.

protocol/recovery builds a host when its stage is, and names its observers; protocol/core.py brings it the messages.
"""
