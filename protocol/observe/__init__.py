"""What can be seen of a node and of a swarm, for people. Reads everything, is read by no decision.

node/ui and the commands of bootstrap/ show it.
"""
