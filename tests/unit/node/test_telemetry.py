"""The event file: whole lines or none, and a full disk is no reason to stop."""

from __future__ import annotations

import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from understudy.node.ui.telemetry import EventLog, configure_logging
from understudy.protocol.errors import SettingsError


def lines_of(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    assert data.endswith(b"\n") or not data
    return [msgspec.json.decode(line) for line in data.splitlines()]


def test_an_event_is_one_line_with_time_and_name(tmp_path: Path) -> None:
    path = tmp_path / "made" / "events.jsonl"
    log = EventLog(path)
    began = time.time()
    log.write("step.committed", {"step": 3, "loss": 2.5, "reason": "two\nlines", "norm": float("nan")})
    log.write("peer.spare", {"peer": "Qm", "coefficients": [0.25, 0.75]})
    log.close()
    first, second = lines_of(path)
    assert began <= first.pop("time") <= second.pop("time") <= time.time()
    assert first == {"event": "step.committed", "step": 3, "loss": 2.5, "reason": "two\nlines", "norm": None}
    assert second == {"event": "peer.spare", "peer": "Qm", "coefficients": [0.25, 0.75]}


def test_a_later_node_appends(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for number in range(2):
        log = EventLog(path)
        log.write("event", {"number": number})
        log.close()
        log.close()
        log.write("after the end", {})
    assert [line["number"] for line in lines_of(path)] == [0, 1]


def test_without_a_file_events_are_log_lines_only(caplog: pytest.LogCaptureFixture) -> None:
    log = EventLog(None)
    with caplog.at_level(logging.INFO, "understudy"):
        log.write("stage.recovered", {"donors": [1, 3], "seconds": 0.123456, "peer": "Q" * 46, "reason": "of it"})
    log.close()
    assert caplog.messages == ["stage.recovered donors=[1,3] seconds=0.1235 peer=..QQQQQQQQ reason=of it"]


def test_a_full_disk_costs_the_event_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    log = EventLog(Path("/dev/full"))
    log.write("step.committed", {"step": 1})
    log.close()
    assert [(record.levelno, record.getMessage()) for record in caplog.records if record.levelno > logging.INFO] == [
        (logging.WARNING, "the event step.committed could not be written: No space left on device")
    ]


def test_a_disk_that_fills_up_within_a_line_leaves_no_piece_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.write("before", {})
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda file, data: write(file, data[:10]))
        log.write("lost", {"step": 1})
    log.write("after", {})
    log.close()
    assert [line["event"] for line in lines_of(path)] == ["before", "after"]
    assert "the event lost could not be written: No space left on device" in caplog.text


def test_a_file_that_cannot_be_written_is_named_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "file" / "x.jsonl", "")):
        with pytest.raises(SettingsError, match=f"the event file {path} cannot be written: .*{reason}.*--events"):
            EventLog(path)


def test_events_go_through_a_pipe_and_are_never_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """As with ``--events >(command)``: what a slow reader has no room for is dropped aloud, in whole lines."""
    reading, writing = os.pipe()
    log = EventLog(Path(f"/dev/fd/{writing}"))
    os.close(writing)
    for number in range(100):
        log.write("event", {"number": number, "reason": "x" * 5000})
    assert "could not be written: Resource temporarily unavailable" in caplog.text
    came = os.read(reading, 1 << 20)
    log.write("event", {"number": 100})
    log.close()
    with open(reading, "rb") as file:
        lines = [msgspec.json.decode(line) for line in (came + file.read()).splitlines()]
    numbers = [line["number"] for line in lines]
    assert numbers == [*range(len(numbers) - 1), 100]
    assert 1 < len(numbers) < 100


def test_events_are_refused_what_takes_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SettingsError, match=r"pipe cannot be written: nobody reads it: start its reader first; choose"):
        EventLog(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        with pytest.raises(SettingsError, match="socket cannot be written: it is a socket, not a file; choose another"):
            EventLog(tmp_path / "socket")


@pytest.mark.parametrize(
    ("is_verbose", "is_quiet", "level"),
    [(False, False, logging.INFO), (True, False, logging.DEBUG), (False, True, logging.WARNING)],
)
def test_how_much_is_said(is_verbose: bool, is_quiet: bool, level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)  # the root logger is pytest's
    loggers = [logging.getLogger(name) for name in ("understudy", "understudy.node", "understudy.bootstrap")]
    before = [logger.level for logger in loggers]
    try:
        configure_logging(is_verbose=is_verbose, is_quiet=is_quiet)
        assert loggers[0].level == level
        assert loggers[1].level == (logging.DEBUG if is_verbose else logging.WARNING)
    finally:
        for logger, old in zip(loggers, before, strict=True):
            logger.setLevel(old)


def test_a_log_line_is_one_line_whoever_wrote_what_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[logging.Handler] = []
    monkeypatch.setattr(logging, "basicConfig", lambda **settings: given.extend(settings["handlers"]))
    level = logging.getLogger("understudy").level
    configure_logging(is_verbose=False)
    logging.getLogger("understudy").setLevel(level)
    record = logging.LogRecord("understudy", logging.INFO, "", 0, "peer %s said %s", ("Qm\n2026", "\x1b[2J"), None)
    line = given[0].format(record)
    assert line.endswith("peer Qm\\n2026 said \\x1b[2J")
    assert line.isprintable()
    try:
        raise ValueError("\x1b[2J")
    except ValueError as error:
        record.exc_info = (ValueError, error, error.__traceback__)
    assert "\x1b" not in given[0].format(record)
