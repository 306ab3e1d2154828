"""Who relays, and what p2pd is told then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from understudy.node.dht.config import SwarmConfig, reader_config
from understudy.node.p2p.daemon import DaemonSettings
from understudy.node.p2p.identity import Identity
from understudy.node.p2p.relay_limits import RelayLimits

PLAIN = DaemonSettings(Path("p2pd"), None, ("/ip4/0.0.0.0/tcp/0",), uses_auto_nat=False)
LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)


@pytest.fixture(scope="module")
def identity() -> Identity:
    return Identity.generate()


def test_a_relay_gets_all_that_makes_its_limits_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMAXPROCS", "4")
    relay = replace(PLAIN, relay_limits=RelayLimits(1000, 60, 3, 512))
    assert set(relay.arguments(Path("/s"))) >= {
        "-relayService=1",
        "-forceReachabilityPublic=1",
        "-autonat=1",
        "-relayDataLimit=1000",
        "-relayTimeLimit=60s",
        "-relayMaxCircuits=3",
        "-relayBufferSize=512",
    }
    assert relay.environment()["GOMAXPROCS"] == "1"
    assert PLAIN.environment()["GOMAXPROCS"] == "4"


def test_who_does_not_relay_says_so_to_p2pd() -> None:
    """By default it would, within libp2p's limits."""
    assert "-relayService=0" in PLAIN.arguments(Path("/s"))


def test_who_cannot_be_dialled_asks_for_a_relay_at_once() -> None:
    private = replace(PLAIN, is_private=True).arguments(Path("/s"))
    assert {"-forceReachabilityPrivate=1", "-autoRelay=1", "-relayDiscovery=0"} <= set(private)


@pytest.mark.parametrize(
    ("config", "relays"),
    [
        (SwarmConfig(), True),
        (SwarmConfig(("/ip4/10.0.0.1/tcp/0",)), True),
        (SwarmConfig(may_relay=False), False),
        (SwarmConfig(uses_relay=False), False),
        (SwarmConfig(is_behind_nat=True), False),
        (SwarmConfig(LOOPBACK), False),
        (reader_config(()), False),
        (replace(reader_config(()), host_maddrs=("/ip4/0.0.0.0/tcp/0",)), False),
    ],
)
def test_who_relays(config: SwarmConfig, relays: bool, identity: Identity) -> None:
    assert (config.daemon_settings(Path("p2pd"), identity, ()).relay_limits is not None) == relays


def test_behind_nat_means_nothing_on_this_machine_alone(identity: Identity) -> None:
    """There is no relay, and p2pd would not start."""
    assert not SwarmConfig(LOOPBACK, is_behind_nat=True).daemon_settings(Path("p2pd"), identity, ()).is_private
    assert SwarmConfig(is_behind_nat=True).daemon_settings(Path("p2pd"), identity, ()).is_private


def test_who_does_not_relay_may_reach_others_through_relays(identity: Identity) -> None:
    assert SwarmConfig(may_relay=False).daemon_settings(Path("p2pd"), identity, ()).uses_relay
