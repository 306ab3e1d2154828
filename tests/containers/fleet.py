"""A swarm of which each peer is a container with an address of its own; how to strike it, and what it wrote."""

from __future__ import annotations

import io
import re
import tarfile
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from docker import DockerClient
from docker.errors import APIError, NotFound
from docker.models.containers import Container
from docker.models.networks import Network
from docker.types import EndpointConfig, IPAMConfig, IPAMPool

Event = dict[str, Any]

LABEL = "understudy.test"
"""On everything that a test makes; its value is the test session's mark."""
PORT = 4001
POLL_S = 0.4
START_TIMEOUT_S = 90.0
STORY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15
JOIN_STRING = re.compile(rb"^understudy:[12]:\S+$", re.MULTILINE)
SUBNETS = [f"10.{second}.{third}" for second in (213, 187, 94) for third in (77, 78, 79)]
"""Tried in this order: an address can only be kept in a subnet that was asked for."""
EVENTS_PATH = "/data/events.jsonl"


def until(condition: Callable[[], object], what: str, timeout_s: float = STORY_TIMEOUT_S) -> None:
    """Wait until something holds; a failed test says what did not come about."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s:g} s in vain: {what}")
        time.sleep(POLL_S)


def of(events: list[Event], name: str, **fields: object) -> list[Event]:
    """The events of a name that have these fields."""
    return [event for event in events if event["event"] == name and fields.items() <= event.items()]


class Peer:
    """One container: a node or the bootstrap."""

    def __init__(self, name: str, container: Container, address: str) -> None:
        self.name, self.container, self.address = name, container, address
        self.is_cut_off = False
        self._events: list[Event] = []

    def events(self) -> list[Event]:
        """Its event file, copied out of the container, but for a line that it is writing."""
        try:
            chunks, _ = self.container.get_archive(EVENTS_PATH)
        except NotFound:  # it has not said anything yet
            return self._events
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            (member,) = archive.getmembers()
            file = archive.extractfile(member)
            assert file is not None
            lines = file.read().split(b"\n")[:-1]
        self._events += map(msgspec.json.decode, lines[len(self._events) :])
        return self._events

    @property
    def peer_id(self) -> str:
        return next((event["peer"] for event in self._events if "observer" not in event), "")

    @property
    def is_running(self) -> bool:
        self.container.reload()
        return bool(self.container.attrs["State"]["Running"])

    @property
    def exit_status(self) -> int:
        return int(self.container.wait(timeout=STOP_TIMEOUT_S)["StatusCode"])

    @property
    def log(self) -> str:
        return self.container.logs().decode(errors="replace")

    @property
    def memory_bytes(self) -> int:
        return int(self.container.stats(stream=False)["memory_stats"].get("usage", 0))


class Fleet:
    """All containers of one run on one private network. Close it whatever happened."""

    def __init__(self, docker: DockerClient, image: str, mark: str) -> None:
        self.docker, self._image, self._labels = docker, image, {LABEL: mark}
        self._name = f"understudy-{mark}"
        self.peers: list[Peer] = []
        self.network, self._subnet = self._make_network()
        self.join = ""

    def _make_network(self) -> tuple[Network, str]:
        for subnet in SUBNETS:
            pool = IPAMPool(subnet=f"{subnet}.0/24", gateway=f"{subnet}.1")
            try:
                made = self.docker.networks.create(
                    self._name, driver="bridge", ipam=IPAMConfig(pool_configs=[pool]), labels=self._labels
                )
            except APIError as error:
                if "overlap" not in str(error):
                    raise
            else:
                return made, subnet
        pytest.fail(f"every subnet of {SUBNETS} is in use on this machine")

    # --- peers ---

    def found(self, *arguments: str) -> Peer:
        """Start the seed and learn the join string."""
        seed = self._start("seed", ["bootstrap", *arguments])
        until(lambda: JOIN_STRING.search(seed.container.logs(stderr=False)), "the join string", START_TIMEOUT_S)
        found = JOIN_STRING.search(seed.container.logs(stderr=False))
        assert found is not None
        self.join = found[0].decode()
        return seed

    def volunteer(self, stage: int | None = None) -> Peer:
        """Start a node."""
        wanted = "auto" if stage is None else str(stage)
        return self._start(f"node{len(self.peers)}", self.node_command(self.join, wanted))

    @staticmethod
    def node_command(join: str, stage: str = "auto") -> list[str]:
        return ["node", "--join", join, "--stage", stage, "--threads", "1", "--device", "cpu"]

    def _start(self, name: str, command: list[str]) -> Peer:
        address = f"{self._subnet}.{10 + len(self.peers)}"
        container = self.docker.containers.create(
            self._image,
            command,
            name=f"{self._name}-{name}",
            hostname=name,
            labels=self._labels,
            network=self.network.name,
            networking_config={self.network.name: EndpointConfig("1.40", ipv4_address=address)},
            mem_limit="1g",
        )
        peer = Peer(name, container, address)
        self.peers.append(peer)
        container.start()
        return peer

    @property
    def nodes(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.name != "seed"]

    @staticmethod
    def pause(peer: Peer) -> None:
        """Freeze its processes; an engine on an old kernel interface may need more than one go."""

        def is_frozen() -> bool:
            try:
                peer.container.pause()
            except APIError as error:
                if "unable to freeze" not in str(error):
                    raise
                return False
            return True

        until(is_frozen, f"{peer.name} to freeze")

    def kill_behind_the_engine(self, peer: Peer) -> None:
        """Kill its process as the kernel would for want of memory: the engine sees it die and applies its policy.

        After ``docker kill`` the engine does not, and a container's first process ignores what it kills itself with.
        """
        peer.container.reload()
        script = f"import os; os.kill({int(peer.container.attrs['State']['Pid'])}, 9)"
        killer = self.docker.containers.run(
            self._image, ["-c", script], entrypoint="python3", user="root", pid_mode="host", detach=True
        )
        try:
            assert killer.wait(timeout=STOP_TIMEOUT_S)["StatusCode"] == 0, killer.logs()
        finally:
            killer.remove(force=True, v=True)

    def cut_off(self, peer: Peer) -> None:
        """Pull its cable."""
        peer.is_cut_off = True
        self.network.disconnect(peer.container)

    def reconnect(self, peer: Peer) -> None:
        self.network.connect(peer.container, ipv4_address=peer.address)
        peer.is_cut_off = False

    def remove(self, peer: Peer) -> None:
        peer.events()
        peer.container.remove(force=True, v=True)

    # --- what they wrote ---

    def events(self) -> list[Event]:
        """Of all nodes, oldest first; each with ``by``, the name of the node that wrote it."""
        merged = [{**event, "by": peer.name} for peer in self.nodes for event in peer.events()]
        return sorted(merged, key=lambda event: float(event["time"]))

    def last_step(self) -> int:
        return max((event["step"] for event in of(self.events(), "step.committed")), default=0)

    def owners(self) -> dict[int, Peer]:
        """Who serves each stage: the highest incarnation that anybody ever served."""
        serving = [event for event in self.events() if event["event"] == "peer.serving"]
        newest: dict[int, Event] = {}
        for event in serving:
            held = newest.get(event["stage"])
            if held is None or event["incarnation"] >= held["incarnation"]:
                newest[event["stage"]] = event
        return {stage: self.named(event["by"]) for stage, event in newest.items()}

    def spares(self) -> list[Peer]:
        """Running nodes whose last word about themselves is that they are spares."""
        return [peer for peer in self.nodes if self._state(peer) == "peer.spare" and peer.is_running]

    @staticmethod
    def _state(peer: Peer) -> str:
        states = {"peer.spare", "peer.serving", "peer.retired", "peer.left", "stage.claimed"}
        own = [event["event"] for event in peer.events() if "observer" not in event and event["event"] in states]
        return own[-1] if own else ""

    def named(self, name: str) -> Peer:
        (peer,) = [peer for peer in self.peers if peer.name == name]
        return peer

    # --- waiting ---

    def until_trained(self, steps: int, what: str) -> None:
        """Wait until this many further steps are committed."""
        goal = self.last_step() + steps
        until(lambda: self.last_step() >= goal, f"{what}: step {goal}, at {self.last_step()}")

    def until_recovered(self, stage: int, before: Peer) -> Event:
        """Wait until another peer serves the stage; its event ``stage.recovered``."""
        until(lambda: self.owners()[stage] is not before, f"somebody to take S{stage} from {before.name}")
        return of(self.events(), "stage.recovered", stage=stage)[-1]

    def ensure_spares(self, count: int) -> None:
        """Volunteers join until this many spares wait."""
        for _ in range(count - len(self.spares())):
            self.volunteer()
        until(lambda: len(self.spares()) >= count, f"{count} spares", START_TIMEOUT_S)

    def close(self) -> None:
        """Remove all of it, whatever state it is in."""
        for peer in self.peers:
            try:
                peer.container.remove(force=True, v=True)
            except NotFound:
                continue
        self.network.remove()

    def describe(self) -> str:
        """For a failed test: the last lines of every container."""
        return "\n".join(f"--- {peer.name} {peer.address}\n{peer.log[-4000:]}" for peer in self.peers)
