"""Does the cost of a peer grow with the swarm? Simulated swarms of up to 1,000 peers: docs/performance.md, "Scale"."""
