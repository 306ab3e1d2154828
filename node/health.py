"""``python -m understudy.node.health``: whether a node runs on this machine; for HEALTHCHECK in the Dockerfile.

It has no part in the node: it connects to the libp2p daemon's control socket, and the daemon lives no longer
than its node.
"""

from __future__ import annotations

import socket

from understudy.node.p2p.daemon import SOCKET_FOLDER

CONTROL_SOCKETS = "hivemind-p2pd-*.sock"
CONNECT_TIMEOUT_S = 3.0


def is_daemon_running() -> bool:
    """Whether any daemon accepts connections on its control socket."""
    for path in SOCKET_FOLDER.glob(CONTROL_SOCKETS):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(CONNECT_TIMEOUT_S)
            try:
                probe.connect(str(path))
            except OSError:
                continue
            return True
    return False


if __name__ == "__main__":
    raise SystemExit(0 if is_daemon_running() else 1)
