"""The command that writes, and what people give it; and what every command does with an output or locale that fails."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from understudy.bootstrap.__main__ import app
from understudy.node.compute.model import build_stage
from understudy.node.compute.weights import snapshot
from understudy.node.export.folder import ExportFolder, Origin
from understudy.node.export.generate_command import read_prompt
from understudy.node.files.standard_output import Outlet
from understudy.node.process import run_guarded
from understudy.protocol.errors import SettingsError, StorageError
from understudy.protocol.manifest import ModelSettings, RunManifest

MANIFEST = RunManifest(
    name="exported",
    model=ModelSettings(hidden_size=32, intermediate_size=48, block_stages=2, context_length=16),
)
COMMAND_TIMEOUT_S = 120.0
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("exports") / "out"
    with ExportFolder.reserved(target, MANIFEST.digest()) as folder:
        folder.begin(7, 0)
        for stage in range(MANIFEST.stage_count):
            weights = snapshot(build_stage(MANIFEST.model, stage, 0))
            folder.add(MANIFEST, 7, stage, (weights, Origin("peer", 1, weights.digest)))
        return folder.finish(MANIFEST, 7)


def understudy(
    *arguments: str | bytes, changes: dict[str, str] | None = None, output: int = subprocess.PIPE
) -> subprocess.CompletedProcess[bytes]:
    """The command as a process of its own."""
    command = [sys.executable, "-c", "from understudy.bootstrap.__main__ import main; main()", *arguments]
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"} | (changes or {})
    return subprocess.run(
        command, stdout=output, stderr=subprocess.PIPE, env=environment, timeout=COMMAND_TIMEOUT_S, check=False
    )


# --- what people give ---


@pytest.mark.parametrize("seed", ["18446744073709551616", "-9223372036854775809", "9" * 400])
def test_a_seed_that_no_generator_takes_is_a_wrong_usage(seed: str, exported: Path) -> None:
    result = CliRunner().invoke(app, ["generate", str(exported), "--seed", seed])
    assert (result.exit_code, type(result.exception)) == (2, SystemExit)
    assert "--seed" in result.stderr


@pytest.mark.parametrize("seed", ["9223372036854775807", "-9223372036854775808"])
@pytest.mark.parametrize("temperature", ["1e-45", "1e300"])
def test_extremes_are_taken(seed: str, temperature: str, exported: Path) -> None:
    wish = ["--seed", seed, "--temperature", temperature, "--tokens", "3"]
    result = CliRunner().invoke(app, ["generate", str(exported), "--prompt", "ß", *wish])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("ß")


@pytest.mark.parametrize("temperature", ["inf", "nan"])
def test_a_temperature_that_is_no_number_is_refused(temperature: str, exported: Path) -> None:
    result = CliRunner().invoke(app, ["generate", str(exported), "--temperature", temperature])
    assert (result.exit_code, type(result.exception), result.stdout) == (2, SystemExit, "")


def test_a_prompt_is_read_as_utf8_or_refused() -> None:
    assert read_prompt(os.fsdecode("ß€".encode())) == "ß€"
    with pytest.raises(SettingsError, match="--prompt is not UTF-8 text"):
        read_prompt("half \udcff")
    with pytest.raises(SettingsError, match="--prompt is not UTF-8 text"):
        read_prompt("\ud800")


@pytest.mark.parametrize("changes", [{}, ASCII], ids=["utf-8", "ascii"])
def test_bytes_that_are_no_text_are_one_line(changes: dict[str, str], exported: Path) -> None:
    done = understudy("generate", str(exported), "--prompt", b"\xff\xfe", changes=changes)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"understudy: --prompt is not UTF-8 text")


# --- an output that fails ---


@pytest.fixture
def full() -> Iterator[io.TextIOWrapper]:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    stream = io.TextIOWrapper(io.BufferedWriter(io.FileIO(descriptor, "w")))
    yield stream
    stream.close()


def test_a_full_disk_is_a_storage_error_once(full: io.TextIOWrapper) -> None:
    outlet = Outlet(full)
    outlet.write("kept in the buffer\n")
    with pytest.raises(StorageError, match="the standard output cannot be written: No space left on device"):
        outlet.flush()
    outlet.flush()


def test_a_large_write_fails_as_a_flush_does(full: io.TextIOWrapper) -> None:
    with pytest.raises(StorageError, match="No space left"):
        Outlet(full).write("x" * (1 << 20))


def test_letters_that_the_encoding_lacks_are_escaped() -> None:
    target = io.BytesIO()
    outlet = Outlet(io.TextIOWrapper(target, encoding="ascii"))
    outlet.write("ö \udcff")
    outlet.flush()
    assert target.getvalue() == rb"\xf6 \udcff"


def test_the_command_behind_a_full_output_fails_with_one_line(
    full: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def say() -> None:
        sys.stdout.write("said and not flushed")

    monkeypatch.setattr("sys.stdout", full)
    with pytest.raises(SystemExit) as ended:
        run_guarded(say)
    assert ended.value.code == 1
    assert capsys.readouterr().err == "understudy: the standard output cannot be written: No space left on device\n"


def test_generating_into_a_full_disk_or_a_closed_pipe_ends_without_a_traceback(exported: Path) -> None:
    with open("/dev/full", "wb") as disk:
        done = understudy("generate", str(exported), "--tokens", "3", output=disk.fileno())
    assert done.returncode == 1
    assert done.stderr == b"understudy: the standard output cannot be written: No space left on device\n"
    reader, writer = os.pipe()
    os.close(reader)
    done = understudy("generate", str(exported), "--tokens", "3", output=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


# --- an ASCII locale ---

COMMANDS = [
    ("status", "--join", "hellö"),
    ("node", "--join", "hellö"),
    ("export", "mödel", "--join", "hellö"),
    ("local", "hüge"),
    ("local", "tiny", "--dir", "/dev/null/ö"),
    ("bootstrap", "hüge"),
    ("doctor", "--identity", "/tmp/dö/key"),
    ("--help",),
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_every_command_speaks_in_an_ascii_locale(arguments: tuple[str, ...]) -> None:
    done = understudy(*(part.encode() for part in arguments), changes=ASCII)
    assert b"Traceback" not in done.stderr, done.stderr
    assert b"Exception ignored" not in done.stderr, done.stderr
    assert done.stdout.isascii()
    assert done.stdout or done.stderr.startswith(b"understudy: ")


def test_what_the_model_writes_is_utf8_in_every_locale(exported: Path) -> None:
    arguments = [part.encode() for part in ("generate", str(exported), "--prompt", "ß€", "--tokens", "20")]
    plain, ascii_only = understudy(*arguments, changes={"LC_ALL": "C.UTF-8"}), understudy(*arguments, changes=ASCII)
    assert plain.stdout.decode("utf-8").startswith("ß€")
    assert (ascii_only.stdout, ascii_only.returncode, ascii_only.stderr) == (plain.stdout, 0, b"")
