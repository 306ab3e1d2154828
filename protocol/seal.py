"""How a node signs, and how it judges what others signed: the shell's to do (node/p2p/identity.py), the core's to ask.

A PeerID is the hash of a public key, so whoever is shown the key can check a signature without asking anybody.
"""

from __future__ import annotations

from typing import Protocol

from understudy.protocol.ids import PeerId


class Seal(Protocol):
    """The key of one node."""

    @property
    def peer_id(self) -> PeerId:
        """Whose it is: the hash of its public half."""

    @property
    def public_key_bytes(self) -> bytes:
        """What others need to check our signatures."""

    def sign(self, data: bytes) -> bytes:
        """Our signature."""

    def is_of(self, peer: PeerId, public_key: bytes, data: bytes, signature: bytes) -> bool:
        """Whether the key is the peer's, and the signature over the data the key's."""
