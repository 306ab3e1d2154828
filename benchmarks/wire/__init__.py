"""How fast activations get from peer to peer, against a bare hivemind stream: docs/performance.md, "The wire"."""
