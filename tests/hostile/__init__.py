"""What one bad or broken peer can do to a swarm of real peers: each attack succeeded once (docs/security.md)."""
