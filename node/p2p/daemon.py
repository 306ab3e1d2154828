"""Our p2pd child: start it, know when it dies, and leave nothing of it behind.

hivemind's ``P2P.create`` starts p2pd itself, but then a cancelled start leaks the child, Ctrl-C in
a terminal kills it before we can say goodbye (same process group), and a child that died is never
noticed. So we start it ourselves, in a session of its own, and hivemind only connects to it
(``P2P.replicate``). This file knows nothing of hivemind.

p2pd belongs to our Python process: when its persistent control connection closes, as it does
when we are SIGKILLed, p2pd exits by itself (see `STARTUP_IDLE_S` for the time before that
connection exists).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

from understudy.node.p2p.relay_limits import PROCESSORS, RelayLimits
from understudy.protocol.errors import NetworkError, UnderstudyError
from understudy.protocol.ids import PeerId

logger = logging.getLogger(__name__)

SOCKET_FOLDER = Path("/tmp")  # the folder that hivemind hard-codes for its own sockets
SOCKET_PATTERN = "hivemind-*.sock"
STARTUP_IDLE_S = 20.0
"""A p2pd that nobody connects to exits after this long: the parent died in between. A relay is tried first."""
TERMINATE_TIMEOUT_S = 2.0
KILL_TIMEOUT_S = 5.0
STALE_AFTER_S = 60.0
"""Younger sockets may belong to a daemon that is just about to listen."""
_PEER_ID = "Peer ID:"
"""How the line begins that p2pd says once it listens."""
_OUTPUT_BYTES_MAX = 64 * 1024


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """The command line of p2pd, as far as we use it."""

    binary: Path
    identity_path: Path | None
    """The key file; None for a throw-away identity."""
    host_maddrs: tuple[str, ...]
    """Where it listens; empty: nowhere, so that nobody gets to it but through a relay."""
    announce_maddrs: tuple[str, ...] = ()
    bootstrap_maddrs: tuple[str, ...] = ()
    """Peers that p2pd dials at start and keeps dialling when it has lost them."""
    relay_maddrs: tuple[str, ...] = ()
    """Peers to be reached through, for who is private."""
    is_dht_server: bool = True
    uses_nat_port_map: bool = True
    uses_auto_nat: bool = True
    uses_relay: bool = True
    is_private: bool = False
    """Nobody can dial this peer: reserve a slot at each of ``relay_maddrs`` at once. By itself that takes minutes."""
    relay_limits: RelayLimits | None = None
    """Relay for others, within these limits; None: do not."""

    def arguments(self, control_path: Path) -> list[str]:
        flags = {
            "listen": f"/unix{control_path}",
            "hostAddrs": ",".join(self.host_maddrs),
            "noListenAddrs": "" if self.host_maddrs else "1",
            "announceAddrs": ",".join(self.announce_maddrs),
            "bootstrapPeers": ",".join(self.bootstrap_maddrs),
            "trustedRelays": ",".join(self.relay_maddrs),
            "id": str(self.identity_path or ""),
            "dhtServer" if self.is_dht_server else "dhtClient": "1",
            "b": str(int(bool(self.bootstrap_maddrs))),
            "natPortMap": str(int(self.uses_nat_port_map)),
            "autonat": str(int(self.uses_auto_nat)),
            "relay": str(int(self.uses_relay)),
            "autoRelay": "0",
            "relayDiscovery": "0",  # it looks for strangers, and one that refuses costs an hour
            "relayService": "0",
            "connManager": "1",
            "tls": "1",
            "idleTimeout": f"{STARTUP_IDLE_S}s",
        }
        if self.is_private:
            flags |= {"forceReachabilityPrivate": "1", "autoRelay": "1"}
        if self.relay_limits is not None:
            flags |= self.relay_limits.flags()
        return [str(self.binary), *(f"-{name}={value}" for name, value in flags.items() if value)]

    def environment(self) -> dict[str, str]:
        """What p2pd finds in its environment."""
        environment = {
            "GOMAXPROCS": str(processors()),
            **os.environ,
            "GOLOG_LOG_LEVEL": "error",
            "GOLOG_LOG_FMT": "json",
        }
        return environment if self.relay_limits is None else environment | {"GOMAXPROCS": str(PROCESSORS)}


PROCESSORS_MAX = 4
"""Enough for some 3 GB/s."""


def processors() -> int:
    """Processors that p2pd may keep busy at a time: half of ours.

    Go takes all, and looks for work on each when there is little: on two cores that woke it 1.6 times as often
    and took the nodes that compute there 1 % of their time (docs/experiments.md).
    """
    return max(1, min(PROCESSORS_MAX, len(os.sched_getaffinity(0)) // 2))


class _Child(asyncio.SubprocessProtocol):
    """Reads p2pd's output by callback, so no task has to."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.transport: asyncio.SubprocessTransport | None = None
        self.is_ready: asyncio.Future[None] = loop.create_future()
        self.is_gone = asyncio.Event()
        self.trouble: asyncio.Future[NoReturn] = loop.create_future()
        """Why whoever lives on this daemon cannot go on."""
        self.last_line = ""
        self.peer_id = ""
        self._partial = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.SubprocessTransport, transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        *lines, partial = (self._partial + data).split(b"\n")
        self._partial = partial[-_OUTPUT_BYTES_MAX:]
        for line in lines:
            self._line_received(line.decode(errors="replace").strip())

    def _line_received(self, line: str) -> None:
        if not line:
            return
        logger.debug("p2pd: %s", line)
        self.last_line = line
        if line.startswith(_PEER_ID) and not self.is_ready.done():
            self.peer_id = line.removeprefix(_PEER_ID).strip()
            self.is_ready.set_result(None)

    def process_exited(self) -> None:
        self.is_gone.set()
        _fail(self.is_ready, _start_error(self.last_line))
        status = None if self.transport is None else self.transport.get_returncode()
        _fail(self.trouble, NetworkError(f"the libp2p daemon died (exit status {status}): start the node again"))


def _fail(future: asyncio.Future[Any], error: UnderstudyError) -> None:
    """For whoever waits; nobody may, yet or any more."""
    if not future.done():
        future.set_exception(error)
        future.exception()


def _start_error(last_line: str) -> NetworkError:
    if "failed to connect to bootstrap peers" in last_line:
        return NetworkError(
            "something listens at the seed's address, but it is not the peer with that PeerID: "
            "get a new join string, this one may be of an earlier start of the seed"
        )
    return NetworkError(f"the libp2p daemon did not start: {last_line or 'it gave no reason'}")


class Daemon:
    """One running p2pd. Make it with `start`; always `stop` it."""

    def __init__(self, child: _Child, control_path: Path) -> None:
        self.control_path = control_path
        self._child = child

    @classmethod
    async def start(cls, settings: DaemonSettings, timeout_s: float) -> Daemon:
        """Start p2pd and wait until it listens. Raises `NetworkError`; leaves nothing when it fails."""
        control_path = SOCKET_FOLDER / f"hivemind-p2pd-{secrets.token_urlsafe(8)}.sock"
        child = _Child()
        daemon = cls(child, control_path)
        try:
            async with asyncio.timeout(timeout_s):
                await daemon._spawn(settings)
                await child.is_ready
        except TimeoutError as error:
            await daemon.stop()
            raise NetworkError(
                f"the libp2p daemon was not ready after {timeout_s:g} s, last said {child.last_line!r}: "
                "check the addresses, or raise the start-up timeout on a busy machine"
            ) from error
        except BaseException:
            await daemon.stop()
            raise
        return daemon

    async def _spawn(self, settings: DaemonSettings) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.subprocess_exec(
                lambda: self._child,
                *settings.arguments(self.control_path),
                stdin=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.STDOUT,
                env=settings.environment(),
                start_new_session=True,
            )
        except OSError as error:
            raise NetworkError(
                f"cannot start the libp2p daemon {settings.binary}: {error.strerror}; reinstall hivemind"
            ) from error

    @property
    def process_id(self) -> int:
        transport = self._child.transport
        return -1 if transport is None else transport.get_pid() or -1

    @property
    def peer_id(self) -> PeerId:
        return PeerId(self._child.peer_id)

    async def watch(self) -> None:
        """Wait for ever; raises `NetworkError` when p2pd exits, or what `fail` was told.

        The one await without a deadline: it ends with its task, or with the daemon.
        """
        await asyncio.wait([self._child.trouble])
        self._child.trouble.result()

    def fail(self, error: UnderstudyError) -> None:
        """Whoever talks to this daemon cannot go on: `watch` says why, unless something else came first."""
        _fail(self._child.trouble, error)

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL; removes the control socket. Safe to call twice and when cancelled."""
        transport = self._child.transport
        try:
            if transport is not None:
                await self._end(transport)
        finally:
            if transport is not None:
                if transport.get_returncode() is None:
                    with contextlib.suppress(ProcessLookupError):
                        transport.kill()
                transport.close()
            self.control_path.unlink(missing_ok=True)

    async def _end(self, transport: asyncio.SubprocessTransport) -> None:
        for signal_child, timeout_s in ((transport.terminate, TERMINATE_TIMEOUT_S), (transport.kill, KILL_TIMEOUT_S)):
            if self._child.is_gone.is_set():
                return
            with contextlib.suppress(ProcessLookupError):
                signal_child()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._child.is_gone.wait()


def sweep_stale_sockets(older_than_s: float = STALE_AFTER_S) -> list[Path]:
    """Remove sockets of dead daemons: those in /tmp that nobody listens on. Returns what went.

    A process killed with SIGKILL cannot remove its own. ``older_than_s=0`` is for a parent whose
    children have all ended; otherwise a socket between bind and listen could be hit.
    """
    removed = []
    for path in SOCKET_FOLDER.glob(SOCKET_PATTERN):
        with contextlib.suppress(OSError):  # another user's, or gone meanwhile
            if time.time() - path.lstat().st_mtime >= older_than_s and _is_abandoned(path):
                path.unlink()
                removed.append(path)
    return removed


def _is_abandoned(path: Path) -> bool:
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
