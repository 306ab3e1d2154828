"""Bad input on the real command line: one line that says what is wrong and what to do, and the right exit status."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from tests.swarm.processes import Brood, until
from understudy.bootstrap.__main__ import app
from understudy.bootstrap.founding import join_string, keep_founding, load_manifest
from understudy.node import joining
from understudy.node.p2p.identity import Identity
from understudy.protocol.export import exporter as exporting
from understudy.protocol.manifest import PROTOCOL_VERSION

USAGE, FAILED = 2, 1
LISTEN = ("--host-maddr", "/ip4/127.0.0.1/tcp/0")
PEER = "QmQxVxhUUihSfFE2PnQWxQ8Nb3gpxuh8RaQVZ4n2MwaG2W"
DIGEST = "a" * 64
UNDERSTUDY = str(Path(sys.executable).with_name("understudy"))
COMMAND_TIMEOUT_S = 60.0

# As `understudy node`, on a machine whose clock is ten seconds ahead.
SKEWED_NODE = """
import time
real_time = time.time
time.time = lambda: real_time() + 10.0
from understudy.node.__main__ import main
main()
"""


# As `understudy node`, until it says its first word: what is imported by then?
FIRST_WORD = """
import sys
from understudy.node.ui import telemetry
def say(text, *values):
    print(text % values, sorted({"torch", "hivemind"} & set(sys.modules)))
    sys.exit()
telemetry.logger.info = say
from understudy.bootstrap.__main__ import main
main()
"""


def join_of(address: str = f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}", digest: str = DIGEST) -> str:
    return f"understudy:1:{digest}:tiny-{DIGEST[:12]}:{PEER}:{address}"


@pytest.fixture(autouse=True)
def tidy(request: pytest.FixtureRequest) -> Iterator[None]:
    """The commands set up logging for a process of their own; here they must leave it, and all else, as it was."""
    root = logging.getLogger()
    loggers = [
        root,
        *map(logging.getLogger, ("understudy", "understudy.node", "understudy.bootstrap", "hivemind", "multiaddr")),
    ]
    before = [(logger, logger.level, logger.handlers[:], logger.propagate) for logger in loggers]
    yield
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate
    if "join" in request.fixturenames:
        gc.collect()  # what a node left unclosed must show in its own test
    assert [child for child in psutil.Process().children() if child.name() == "p2pd"] == []


def assert_refused(arguments: list[str], complaint: str, status: int) -> None:
    """Within this process: exactly one line, on stderr."""
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert_one_line(result.stderr, complaint)
    assert result.stdout == ""
    assert result.exit_code == status


def assert_one_line(text: str, complaint: str) -> None:
    assert text.startswith("understudy: "), text
    assert text.count("\n") == 1, text
    assert text.endswith("\n")
    assert re.search(complaint, text), text


# --- run.toml ----------------------------------------------------------------------------------

RUNS: dict[str, str] = {
    "is not valid TOML: ": "name = ",
    "missing required field `name`": "",
    r"matching regex .* - at `\$.name`": 'name = "a b"',
    "unknown field `hiden_size`": 'name = "x"\n[model]\nhiden_size = 12\n',
    r"Expected `int`, got `str` - at `\$.model.hidden_size`": 'name = "x"\n[model]\nhidden_size = "12"\n',
    r"Expected `int` >= 8 - at `\$.model.hidden_size`": 'name = "x"\n[model]\nhidden_size = -8\n',
    "hidden_size 130 must be a multiple of model.attention_heads 4": 'name = "x"\n[model]\nhidden_size = 130\n',
    "must be even: rotary": 'name = "x"\n[model]\nhidden_size = 12\n',
    r"Expected `float` > 0.0 - at `\$.optimizer.learning_rate`": 'name = "x"\n[optimizer]\nlearning_rate = nan\n',
    "heartbeat_s < suspect_after_s < dead_after_s": 'name = "x"\n[timing]\nheartbeat_s = 9.0\n',
    "record_lifetime_s must be at least twice": 'name = "x"\n[timing]\nrecord_refresh_s = 9.0\n',
    "data.source = 'text' needs data.paths": 'name = "x"\n[data]\nsource = "text"\n',
    "protocol version 7, this node speaks 5: install": 'name = "x"\nprotocol_version = 7\n',
}


@pytest.mark.parametrize("complaint", RUNS)
@pytest.mark.parametrize("command", ["local", "bootstrap"])
def test_a_wrong_run_toml_is_refused_with_the_place(command: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(RUNS[complaint], encoding="utf-8")
    assert_refused([command, str(path)], complaint, USAGE)


@pytest.mark.parametrize("command", ["local", "bootstrap"])
def test_a_run_toml_that_is_not_there_or_not_text_is_refused(command: str, tmp_path: Path) -> None:
    assert_refused([command, str(tmp_path / "run.toml")], "run.toml cannot be read: No such file", USAGE)
    assert_refused([command, str(tmp_path)], "cannot be read: Is a directory", USAGE)
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe\x00")
    assert_refused([command, str(tmp_path / "run.toml")], "is not UTF-8 text: it should be a run.toml", USAGE)
    assert_refused([command, "huge"], "unknown preset 'huge': use one of tiny, 124m, .* or the path", USAGE)


# --- local -------------------------------------------------------------------------------------

LOCAL: dict[str, tuple[str, ...]] = {
    "--kill '2': use STAGE@STEP, for example 2@15": ("--kill", "2"),
    "cannot kill S9 at step 3: the stages are 0 to 4": ("--kill", "9@3"),
    "cannot kill S2 at step 40: choose a step from 1 to 39": ("--steps", "40", "--kill", "2@40"),
    "--pause '2@3': use STAGE@STEP:SECONDS, for example 2@15:30": ("--pause", "2@3"),
    "cannot pause for 5 s S7 at step 3": ("--pause", "7@3:5"),
    "--steps must be at least 1": ("--steps", "0"),
    "--spares must not be negative": ("--spares", "-1"),
    "--threads must not be negative; 0 means all cores": ("--threads", "-1"),
    "device 'banana' cannot be used .* try --device cpu": ("--device", "banana"),
}


@pytest.mark.parametrize("complaint", LOCAL)
def test_a_local_swarm_that_cannot_be_is_refused_before_it_starts(complaint: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert_refused(["local", "tiny", *LOCAL[complaint], "--dir", str(folder)], complaint, USAGE)
    assert not folder.exists()


def test_data_that_is_not_there_is_named_before_a_local_swarm_starts(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('name = "x"\n[data]\nsource = "text"\npaths = ["/no/such/text"]\n', encoding="utf-8")
    arguments = ["local", str(path), "--dir", str(tmp_path / "run")]
    assert_refused(arguments, "the text /no/such/text does not exist", USAGE)
    (tmp_path / "short.txt").write_text("short", encoding="utf-8")
    path.write_text(f'name = "x"\n[data]\nsource = "text"\npaths = ["{tmp_path}/short.txt"]\n', encoding="utf-8")
    assert_refused(arguments, "the corpus has 5 bytes to train on.*give more text", USAGE)
    assert not (tmp_path / "run").exists()


def test_initial_weights_that_are_not_there_are_refused_before_a_local_swarm_starts(tmp_path: Path) -> None:
    arguments = ["local", "tiny", "--dir", str(tmp_path / "run"), "--initial-weights", str(tmp_path / "nope")]
    complaint = r"^understudy: .*/nope/config.json cannot be read \(there is no such file\): name a folder that"
    assert_refused(arguments, complaint, USAGE)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_hold_a_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "old" / "nodes").mkdir(parents=True)
    assert_refused(["local", "tiny", "--dir", str(tmp_path / "old")], "holds an earlier run: choose another", USAGE)
    (tmp_path / "file").write_text("")
    (tmp_path / "founded").mkdir()
    (tmp_path / "founded" / "manifest.json").touch()
    assert_refused(["local", "tiny", "--dir", str(tmp_path / "founded")], "holds an earlier run: choose", USAGE)
    for folder in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        assert_refused(["local", "tiny", "--dir", str(folder)], f"{folder} cannot be used: .*another --dir", USAGE)


# --- understudy itself -------------------------------------------------------------------------


def test_it_says_which_version_it_is() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"understudy {metadata.version('understudy')}, protocol {PROTOCOL_VERSION}\n"


COMPLETED = {"understudy ge": "generate", "understudy node --ident": "--identity"}


@pytest.mark.parametrize("typed", COMPLETED)
def test_a_shell_can_complete_what_is_typed(typed: str, tmp_path: Path) -> None:
    words = {"_UNDERSTUDY_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    done = run_command("env", *(f"{name}={value}" for name, value in words.items()), UNDERSTUDY, folder=tmp_path)
    assert done.stdout.split() == [COMPLETED[typed]], done.stderr


def test_a_shell_is_told_how_to_complete() -> None:
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"})
    assert "--install-completion" in result.stdout
    assert "--show-completion" in result.stdout


# --- going on with a run -----------------------------------------------------------------------


@pytest.fixture
def founded(tmp_path: Path) -> Path:
    """The folder of a run of ``tiny`` with 40 steps."""
    manifest = load_manifest("tiny", 40)
    founder = Identity.load_or_create(tmp_path / "founder.key")
    keep_founding(tmp_path / "run", manifest, join_string(manifest, founder, [f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}"]))
    return tmp_path / "run"


OTHERS: dict[str, tuple[str, ...]] = {
    r'whose name is "tiny"; 124m asks for "124m": choose another --dir for a new run, or leave the preset': ("124m",),
    r"whose step.total_steps is 40; --steps asks for 60: choose another": ("tiny", "--steps", "60"),
    r"whose step.total_steps is 40; --steps asks for 61: choose another": ("--steps", "61"),
    r'whose admission is "invited"; --open asks for "open": choose another': ("--open",),
    r"--steps must be at least 1": ("--steps", "0"),
    r"unknown preset 'tinny': use one of": ("tinny",),
}


@pytest.mark.parametrize("complaint", OTHERS)
def test_another_run_than_the_folders_is_refused(complaint: str, founded: Path) -> None:
    arguments = ["bootstrap", *OTHERS[complaint], *LISTEN, "--dir", str(founded)]
    assert_refused([*arguments, "--identity", str(founded.parent / "founder.key")], complaint, USAGE)


def test_a_run_toml_that_was_changed_since_is_refused_with_the_setting(founded: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('name = "tiny"\n[recovery]\nmethod = "checkfree+"\n', encoding="utf-8")
    complaint = r'whose recovery.method is "checkfree"; .*/run.toml asks for "checkfree\+": choose another --dir'
    assert_refused(["bootstrap", str(tmp_path / "run.toml"), *LISTEN, "--dir", str(founded)], complaint, USAGE)


def test_a_run_goes_on_under_its_founder_only(founded: Path, tmp_path: Path) -> None:
    arguments = ["bootstrap", "tiny", *LISTEN, "--dir", str(founded), "--identity", str(tmp_path / "other.key")]
    result = CliRunner().invoke(app, arguments)
    going_on, complaint = result.stderr.splitlines()
    assert re.search(r"going on with the run tiny-\w{12} of ", going_on)
    assert_one_line(f"{complaint}\n", "holds a run of the founder Qm.*, and .*/other.key is the key of Qm.*--identity")
    assert result.exit_code == USAGE


def test_without_a_run_to_go_on_with_one_is_asked_for(tmp_path: Path) -> None:
    complaint = "there is no run to go on with: name a preset .* or a run.toml, or with --dir the folder of a run"
    assert_refused(["bootstrap"], complaint, USAGE)
    assert_refused(["bootstrap", "--dir", str(tmp_path)], complaint, USAGE)


# --- node and bootstrap: the words -------------------------------------------------------------

JOINS: dict[str, str] = {
    "not a join string: it must begin with 'understudy:'; copy the whole line": "hello",
    "version '3', this node reads versions 1 and 2: install": f"understudy:3:{DIGEST}",
    "damaged: it ends too early; copy the whole line again": join_of()[:80],
    "its digest must be 64 hexadecimal digits": join_of(digest="a" * 63),
    "its run id and its digest do not belong together": join_of(digest="b" * 64),
    "it contains no address": join_of(address=""),
    r"'/ip4/127.0.0.1/tcp/1' must end with /p2p/<PeerID>": join_of(address="/ip4/127.0.0.1/tcp/1"),
    "unknown protocol: ipx; write it like": join_of(address=f"/ipx/127.0.0.1/tcp/1/p2p/{PEER}"),
    "not in range": join_of(address=f"/ip4/127.0.0.1/tcp/70000/p2p/{PEER}"),
    "has port 0": join_of(address=f"/ip4/127.0.0.1/tcp/0/p2p/{PEER}"),
    "characters; at most": join_of(address="x" * 5000),
}


@pytest.mark.parametrize("complaint", JOINS)
def test_a_damaged_join_string_is_refused_with_the_damage(complaint: str) -> None:
    assert_refused(["node", "--join", JOINS[complaint]], complaint, USAGE)


MADDRS: dict[str, str] = {
    "'127.0.0.1:4001' is not an address: write it like /ip4/192.0.2.7/tcp/4001": "127.0.0.1:4001",
    "has no port: write it like": "/ip4/127.0.0.1",
    "must not contain /p2p/<PeerID>: it is this machine's own": f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}",
    "udp port without /quic-v1": "/ip4/127.0.0.1/udp/4001",
}


@pytest.mark.parametrize("complaint", MADDRS)
@pytest.mark.parametrize("option", ["--host-maddr", "--announce-maddr"])
@pytest.mark.parametrize("command", ["node", "bootstrap"])
def test_a_malformed_address_is_refused(command: str, option: str, complaint: str, tmp_path: Path) -> None:
    first = ["node", "--quiet", "--join", join_of()] if command == "node" else ["bootstrap", "tiny"]
    assert_refused([*first, option, MADDRS[complaint], "--identity", str(tmp_path / "key")], complaint, USAGE)


NODE: dict[str, tuple[str, ...]] = {
    "--stage 'first': use 'auto' or a stage number such as 2": ("--stage", "first"),
    "--stage '-1': use 'auto'": ("--stage", "-1"),
    "--threads must not be negative": ("--threads", "-1"),
    "device 'banana' cannot be used": ("--device", "banana"),
}


@pytest.mark.parametrize("complaint", NODE)
def test_settings_of_a_node_are_checked_before_it_dials(complaint: str, tmp_path: Path) -> None:
    arguments = ["node", "--quiet", "--join", join_of(), "--identity", str(tmp_path / "key"), *NODE[complaint]]
    assert_refused(arguments, complaint, USAGE)


def damaged_file(path: Path) -> None:
    Identity.load_or_create(path)
    path.write_bytes(path.read_bytes()[:-7])


def foreign_file(path: Path) -> None:
    path.write_text("-----BEGIN PRIVATE KEY-----\n")


def folder_instead(path: Path) -> None:
    path.mkdir()


IDENTITIES: dict[str, Callable[[Path], None]] = {
    "is truncated or damaged: restore it from a backup, or delete it": damaged_file,
    "is not an RSA identity file of libp2p: restore": foreign_file,
    "cannot read identity file .*: Is a directory": folder_instead,
}


@pytest.mark.parametrize("complaint", IDENTITIES)
@pytest.mark.parametrize("command", ["node", "bootstrap"])
def test_a_damaged_identity_is_refused_and_not_overwritten(command: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    IDENTITIES[complaint](path)
    before = path.read_bytes() if path.is_file() else None
    first = ["node", "--quiet", "--join", join_of()] if command == "node" else ["bootstrap", "tiny"]
    assert_refused([*first, *LISTEN, "--identity", str(path)], complaint, USAGE)
    assert (path.read_bytes() if path.is_file() else None) == before


# --- files that are none -----------------------------------------------------------------------


@pytest.mark.parametrize("command", ["node", "bootstrap"])
def test_an_identity_is_not_waited_for(command: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    first = ["node", "--quiet", "--join", join_of()] if command == "node" else ["bootstrap", "tiny"]
    complaint = "cannot read identity file .*/pipe: it is a pipe, not a file"
    assert_refused([*first, *LISTEN, "--identity", str(tmp_path / "pipe")], complaint, USAGE)
    complaint = "cannot read identity file /dev/null: it is a device, not a file"
    assert_refused([*first, *LISTEN, "--identity", "/dev/null"], complaint, USAGE)


@pytest.mark.parametrize("command", ["local", "bootstrap"])
def test_a_run_toml_is_not_waited_for(command: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.toml")
    complaint = "run.toml cannot be read: it is a pipe, not a file"
    assert_refused([command, str(tmp_path / "run.toml")], complaint, USAGE)


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00005.safetensors"])
@pytest.mark.parametrize("command", ["local", "bootstrap"])
def test_initial_weights_are_not_waited_for(command: str, name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    complaint = f"config.json cannot be read \\(its {name} is a pipe, not a file\\)"
    assert_refused([command, "tiny", "--initial-weights", str(tmp_path)], complaint, USAGE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_node_that_waits_for_a_pipe_hears_signals(number: signal.Signals, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    brood, log = Brood(tmp_path), tmp_path / "node.log"
    try:
        process = brood.start([UNDERSTUDY, "node", "--join", f"@{tmp_path}/pipe"], log)
        with (tmp_path / "pipe").open("wb"):  # this waits until the node has opened it
            process.send_signal(number)
            until(lambda: process.poll() is not None, "the end", 20.0)
        assert (process.returncode, log.read_text(encoding="utf-8")) == (0, "")
        brood.assert_gone()
    finally:
        brood.kill_all()


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_supervisor_may_close_the_standard_descriptors(join: str, closed: str, tmp_path: Path) -> None:
    """This starts p2pd, reads the manifest, and ends because the run has no such stage."""
    node = [UNDERSTUDY, "node", "--join", join, *LISTEN, "--identity", str(tmp_path / "key"), "--stage", "99"]
    done = run_command("sh", "-c", f'exec "$@" {closed}', "sh", *node, "--quiet", folder=tmp_path)
    assert done.returncode == USAGE, done.stderr
    assert done.stdout == ""
    if "2>&-" not in closed:
        assert_one_line(done.stderr, "--stage 99: this run has the stages 0 to 4")


def test_no_parent_is_looked_for_behind_a_stdin_that_is_no_pipe(tmp_path: Path) -> None:
    node = [UNDERSTUDY, "node", "--join", "hello", "--stop-with-stdin"]
    done = run_command("sh", "-c", 'exec "$@" </dev/null', "sh", *node, folder=tmp_path)
    assert_one_line(done.stderr, "copy the whole line")
    assert done.returncode == USAGE


# --- the network -------------------------------------------------------------------------------


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        arguments = ["--host-maddr", f"/ip4/127.0.0.1/tcp/{port}", "--identity", str(tmp_path / "key")]
        complaint = f"port {port} is in use by another program: stop it, or choose another port with --host-maddr"
        assert_refused(["bootstrap", "tiny", *arguments], complaint, FAILED)
        assert_refused(["node", "--quiet", "--join", join_of(), *arguments], complaint, FAILED)


def test_an_address_that_this_machine_does_not_have_is_named(tmp_path: Path) -> None:
    arguments = ["--host-maddr", "/ip4/203.0.113.9/tcp/4001", "--identity", str(tmp_path / "key")]
    assert_refused(
        ["bootstrap", "tiny", *arguments], "this machine has no address 203.0.113.9: use /ip4/0.0.0.0", USAGE
    )


def test_a_seed_that_cannot_be_reached_is_named_with_the_reason(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}/p2p/{PEER}"
    arguments = ["node", "--quiet", "--join", join_of(address), *LISTEN, "--identity", str(tmp_path / "key")]
    assert_refused(arguments, f"cannot reach the seed at {address}: connection refused; check the address", FAILED)


@pytest.fixture(scope="module")
def join(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The join string of an open run that is really there, with its seed and nobody else."""
    folder = tmp_path_factory.mktemp("seed")
    brood = Brood(folder)
    arguments = [UNDERSTUDY, "bootstrap", "tiny", "--open", *LISTEN, "--dir", str(folder)]
    arguments += ["--identity", str(folder / "key")]
    seed = brood.start(arguments, folder / "seed.log")
    path = folder / "join.txt"
    try:
        brood.until(path.exists, "the join string", COMMAND_TIMEOUT_S)
        yield path.read_text(encoding="utf-8").strip()
        brood.look()
        seed.send_signal(signal.SIGTERM)
        until(lambda: seed.poll() is not None, "the seed to stop", 20.0)
        assert seed.returncode == 0, (folder / "seed.log").read_text()
        brood.assert_gone(timeout_s=1.0)
    finally:
        brood.kill_all()


def tampered(join: str) -> str:
    """Another digit where the run id does not show it."""
    start, digest, end = join[:13], join[13 : 13 + 64], join[13 + 64 :]
    return start + digest[:-1] + ("0" if digest[-1] != "0" else "1") + end


def test_a_join_string_with_another_digest_is_refused(
    join: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "FIND_TIMEOUT_S", 1.0)
    arguments = ["node", "--join", tampered(join), *LISTEN, "--identity", str(tmp_path / "key"), "--quiet"]
    assert_refused(arguments, "digest .* the join string is damaged or of another run, ask for it again", USAGE)


def test_a_join_string_of_another_founder_is_refused_at_once(join: str, tmp_path: Path) -> None:
    other = Identity.generate().peer_id
    fields = join.split(":", 5)
    forged = ":".join([*fields[:4], other, fields[5]])
    result = CliRunner().invoke(app, ["node", "--join", forged, *LISTEN, "--identity", str(tmp_path / "key")])
    first, problem, complaint = result.stderr.splitlines()
    assert f"looking for the run {fields[3]} at {fields[5]}" in first
    assert f"is signed by {fields[4]}, and the join string names the founder {other}" in problem
    assert "looking for another, for 2 s" in problem
    assert_one_line(
        f"{complaint}\n", "the run's manifest is signed by Qm.* or not honest; ask the founder for the join"
    )
    assert result.exit_code == USAGE


def test_a_run_that_nobody_knows_is_named(join: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "FIND_TIMEOUT_S", 1.0)
    address = join.rsplit(":", 1)[1]
    arguments = ["node", "--join", join_of(address), *LISTEN, "--identity", str(tmp_path / "key"), "--quiet"]
    assert_refused(arguments, f"the swarm was reached, but nobody knows the run tiny-{DIGEST[:12]}", FAILED)


def test_a_stage_that_the_run_does_not_have_is_named(join: str, tmp_path: Path) -> None:
    arguments = ["node", "--join", join, *LISTEN, "--identity", str(tmp_path / "key"), "--stage", "99", "--quiet"]
    assert_refused(arguments, "--stage 99: this run has the stages 0 to 4", USAGE)


def test_an_event_file_that_cannot_be_written_is_named(join: str, tmp_path: Path) -> None:
    arguments = ["node", "--join", join, *LISTEN, "--identity", str(tmp_path / "key"), "--quiet"]
    complaint = f"the event file {tmp_path} cannot be written: Is a directory; choose another --events"
    assert_refused([*arguments, "--events", str(tmp_path)], complaint, USAGE)


# --- status ------------------------------------------------------------------------------------


def test_the_status_of_a_run_that_nobody_serves_yet(join: str) -> None:
    result = CliRunner().invoke(app, ["status", "--join", join])
    assert result.exit_code == 0, result.output
    assert result.stdout.count("unowned") == 5
    assert "no peer of the run publishes anything" in " ".join(result.stdout.split())
    assert result.stderr == ""


def test_the_status_as_json_is_one_object(join: str) -> None:
    result = CliRunner().invoke(app, ["status", "--join", join, "--json"])
    assert result.exit_code == 0, result.output
    view = json.loads(result.stdout)
    assert (view["name"], view["state"], view["holes"]) == ("tiny", "silent", [0, 1, 2, 3, 4])
    assert result.stdout.count("\n") == 1


def test_a_status_that_cannot_be_read_is_a_failure_of_one_line(
    join: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "FIND_TIMEOUT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}/p2p/{PEER}"
    complaint = f"cannot reach the seed at {address}: .* or take the join string that another node"
    assert_refused(["status", "--join", join_of(address)], complaint, FAILED)
    address = join.rsplit(":", 1)[1]
    assert_refused(["status", "--join", join_of(address), "--json"], "nobody knows the run tiny-aaaa", FAILED)
    assert_refused(["status", "--join", "hello"], "not a join string", USAGE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watching_goes_on_until_asked_to_stop(join: str, tmp_path: Path, number: signal.Signals) -> None:
    brood, log = Brood(tmp_path), tmp_path / "status.log"
    try:
        process = brood.start([UNDERSTUDY, "status", "--join", join, "--watch", "--json"], log)
        brood.until(lambda: log.read_text().count("\n") >= 2, "two readings", COMMAND_TIMEOUT_S)
        process.send_signal(number)
        until(lambda: process.poll() is not None, "the end", 20.0)
        assert process.returncode == 0, log.read_text()
        assert all(json.loads(line)["state"] == "silent" for line in log.read_text().splitlines())
        brood.assert_gone()
    finally:
        brood.kill_all()


# --- exports and what is made of them ----------------------------------------------------------


def test_a_folder_that_cannot_take_an_export_is_refused_before_anybody_is_dialled(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    (tmp_path / "thesis.txt").touch()
    complaint = f"{tmp_path} is there already and not empty: choose another folder, or remove it"
    assert_refused(["export", "--join", join_of(), str(tmp_path)], complaint, USAGE)
    assert_refused(["local", "tiny", "--export", str(tmp_path)], f"--export: {tmp_path} is there already", USAGE)
    below = tmp_path / "thesis.txt" / "out"
    assert_refused(["export", "--join", join_of(), str(below)], f"{below} cannot be written", USAGE)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert list(temporary.iterdir()) == [], "a run that is refused has no folder"


def test_a_run_without_a_last_step_has_no_last_weights(join: str, tmp_path: Path) -> None:
    arguments = ["export", "--join", join, *LISTEN, "--last", str(tmp_path / "out")]
    assert_refused(arguments, "--last: this run has no last step", USAGE)
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_owners_has_nothing_to_export(join: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "NOBODY_S", 1.5)
    result = CliRunner().invoke(app, ["export", "--join", join, *LISTEN, str(tmp_path / "out")])
    waiting, complaint = result.stderr.splitlines()
    assert waiting == "Waiting for an owner of S0, S1, S2, S3, S4."
    assert_one_line(f"{complaint}\n", "nobody serves any stage of this run: it is over, or its swarm is gone")
    assert result.exit_code == FAILED
    assert list(tmp_path.iterdir()) == []


def test_only_an_export_can_write(tmp_path: Path) -> None:
    complaint = f"{tmp_path}/config.json cannot be read .*: name a folder that 'understudy export' wrote"
    assert_refused(["generate", str(tmp_path)], complaint, USAGE)


# --- doctor ------------------------------------------------------------------------------------


def verdicts(text: str) -> dict[str, str]:
    """Subject -> verdict of each line."""
    return {line.split()[1]: line.split()[0] for line in text.splitlines()}


def test_a_doctor_without_a_swarm_looks_at_this_machine_only(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--identity", str(tmp_path / "key")])
    assert result.exit_code == 0, result.output
    found = verdicts(result.stdout)
    assert list(found) == [
        "python", "packages", "cores", "disk", "accelerator", "port", "daemon", "swarm", "memory"
    ]  # fmt: skip
    assert (found["swarm"], found["daemon"], result.stderr) == ("note", "ok", "")
    assert not (tmp_path / "key").exists()


def test_a_doctor_visits_the_swarm(join: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--join", join, *LISTEN, "--identity", str(tmp_path / "key")])
    assert result.exit_code == 0, result.output
    found = verdicts(result.stdout)
    assert [found[subject] for subject in ("seed", "clock", "route", "run", "memory")] == ["ok"] * 5
    assert re.search(r"^ok +seed +/ip4/127.0.0.1/tcp/\d+ answered in \d+ ms$", result.stdout, re.MULTILINE)
    assert re.search(r"^ok +clock +0.0\d s (ahead|behind) of 1 peer$", result.stdout, re.MULTILINE)
    assert re.search(r"^ok +route +on this machine, to ", result.stdout, re.MULTILINE)
    assert re.search(r"^ok +run +tiny-[0-9a-f]{12}, 5 stages$", result.stdout, re.MULTILINE)


def test_a_doctor_says_what_is_bad_and_fails(join: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "FIND_TIMEOUT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}"
        elsewhere = join_of(join.rsplit(":", 1)[1])
        arguments = ["doctor", "--join", elsewhere, "--host-maddr", taken, "--identity", str(tmp_path / "key")]
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == FAILED
    found = verdicts(result.stdout)
    assert (found["port"], found["seed"], found["swarm"]) == ("bad", "ok", "bad")
    assert "daemon" not in found
    assert "nobody knows the run" in result.stdout
    arguments = ["doctor", "--join", join_of(f"{taken}/p2p/{PEER}"), *LISTEN, "--identity", str(tmp_path / "key")]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, verdicts(result.stdout)["seed"]) == (FAILED, "bad")


def test_a_doctor_finds_a_wrong_clock(join: str, tmp_path: Path) -> None:
    program = SKEWED_NODE.replace(
        "from understudy.node.__main__ import main", "from understudy.bootstrap.__main__ import main"
    )
    command = (sys.executable, "-W", "ignore", "-c", program, "doctor", "--join", join, *LISTEN)
    done = run_command(*command, "--identity", str(tmp_path / "key"), folder=tmp_path)
    assert done.returncode == FAILED, done.stderr
    pattern = r"^bad +clock +this machine's clock differs from the swarm's by (9|10|11)\.\d s: set the clock"
    assert re.search(pattern, done.stdout, re.MULTILINE), done.stdout


# --- processes of their own --------------------------------------------------------------------


def run_command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    brood = Brood(folder)
    try:
        return subprocess.run(
            arguments,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            cwd=folder,
            env=dict(brood.environment()),
            check=False,
        )
    finally:
        left = brood.processes()
        brood.kill_all()
        assert left == []


def test_a_clock_that_differs_is_named_with_the_difference(join: str, tmp_path: Path) -> None:
    node = ["--quiet", "--join", join, *LISTEN, "--identity", str(tmp_path / "key")]
    done = run_command(sys.executable, "-W", "ignore", "-c", SKEWED_NODE, *node, folder=tmp_path)
    assert_one_line(done.stderr, r"clock differs from the swarm's by (9|10|11)\.\d s: set the clock")
    assert (done.returncode, done.stdout) == (FAILED, "")


def test_a_node_says_what_it_looks_for_before_it_imports_what_takes_seconds(tmp_path: Path) -> None:
    node = ("node", "--join", join_of(), "--identity", str(tmp_path / "key"))
    done = run_command(sys.executable, "-W", "ignore", "-c", FIRST_WORD, *node, folder=tmp_path)
    run = f"looking for the run tiny-{DIGEST[:12]} at /ip4/127.0.0.1/tcp/1/p2p/{PEER}"
    assert (done.returncode, done.stdout) == (0, f"{run} []\n"), done.stderr


@pytest.mark.parametrize(
    "command",
    [
        (UNDERSTUDY, "local", "huge"),
        (UNDERSTUDY, "node", "--join", "hello"),
        (sys.executable, "-m", "understudy.node", "--join", "hello"),
        (sys.executable, "-m", "understudy.bootstrap", "huge"),
    ],
)
def test_every_way_to_start_says_it_the_same_way(command: tuple[str, ...], tmp_path: Path) -> None:
    done = run_command(*command, folder=tmp_path)
    assert_one_line(done.stderr, "use one of|copy the whole line")
    assert (done.returncode, done.stdout) == (USAGE, "")


def test_a_wrong_option_is_a_wrong_usage(tmp_path: Path) -> None:
    for arguments in (["node"], ["local", "--steps", "many"], ["frobnicate"], ["local", "--frobnicate"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == USAGE
        assert "Usage: " in result.stderr
        assert result.stdout == ""
