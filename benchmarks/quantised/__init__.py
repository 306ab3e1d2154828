"""What fewer bytes on the wire do to the loss, and what making them costs: docs/performance.md, "Bytes on the wire"."""
