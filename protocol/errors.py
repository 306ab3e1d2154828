"""Every error the project raises, by whose fault it is.

A message says what is wrong and what to do about it, in one line: it is what a person reads.
Library errors are translated into these once, where they enter our code.
"""

from __future__ import annotations


class UnderstudyError(Exception):
    """Base of all errors of this project. ``str(error)`` is one line for a person."""


class SettingsError(UnderstudyError):
    """A person's setting, file or address is wrong. The CLI exits with status 2."""


class TextError(UnderstudyError):
    """The run's text cannot be read, though its settings are right: out of reach, damaged, too slow."""


class LocalProtocolError(UnderstudyError):
    """We broke a rule of the protocol: a bug of ours."""


class RemoteProtocolError(UnderstudyError):
    """A peer broke a rule of the protocol. It costs the peer its connection, never us our process."""


class NetworkError(UnderstudyError):
    """The network or our own daemon failed: unreachable peer, port in use, deadline passed."""


class PeerRefusedError(NetworkError):
    """The peer's machine answered that nobody listens there: the peer is gone, not slow."""


class ClockSkewError(NetworkError):
    """This machine's clock and the swarm's differ by more than peers accept."""


class StorageError(UnderstudyError):
    """This machine's disk does not take or give what it should: full, read-only, damaged."""


class TrainingError(UnderstudyError):
    """The stage's numbers are broken: update after update is not finite."""


class WeightsError(UnderstudyError):
    """Weights are unusable: not finite, of the wrong shape, or their digest does not match."""
