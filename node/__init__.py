"""The runtime of a peer: network, compute and weights around the pure core in `protocol`."""
