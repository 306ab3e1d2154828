"""Founding a run: the manifest's signature, the first peer of the DHT, a whole swarm on one machine."""
