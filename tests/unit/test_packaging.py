"""What is installed: the wheel, the versions, and that nothing in the current folder takes its place."""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

from understudy.bootstrap.local.children import Child

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
UNDERSTUDY = str(Path(sys.executable).with_name("understudy"))
TIMEOUT_S = 120.0
PIN = re.compile(r"^([A-Za-z0-9_.-]+)==(\S+)", re.MULTILINE)


def docker_copies() -> list[str]:
    """What the Dockerfile copies from the tree in order to build the wheel."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    stage = text[text.index("AS package") : text.index("pip wheel")]
    return [name for line in re.findall(r"^COPY (.+) \S+$", stage, re.MULTILINE) for name in line.split()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from what a container's image is built from, without a network."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in docker_copies():
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    (path,) = target.iterdir()
    return zipfile.ZipFile(path)


def test_the_image_is_built_from_what_it_may_see() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{name}" for name in docker_copies()} <= set(ignored)


def test_the_wheel_claims_one_name(wheel: zipfile.ZipFile) -> None:
    """Others may be called node and protocol."""
    names = {name.partition("/")[0] for name in wheel.namelist()}
    assert names == {"understudy", f"understudy-{PROJECT['version']}.dist-info"}


@pytest.mark.parametrize("package", ["protocol", "node", "bootstrap"])
def test_the_wheel_holds_every_module_and_says_that_it_is_typed(wheel: zipfile.ZipFile, package: str) -> None:
    ours = {f"understudy/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / package).rglob("*.py")}
    assert ours | {f"understudy/{package}/py.typed"} == {
        name for name in wheel.namelist() if name.startswith(f"understudy/{package}/")
    }


def test_the_wheel_has_the_command_and_the_bounds(wheel: zipfile.ZipFile) -> None:
    about = f"understudy-{PROJECT['version']}.dist-info"
    entries = wheel.read(f"{about}/entry_points.txt").decode()
    assert entries.split("\n", 1)[1].strip() == "understudy = understudy.bootstrap.__main__:main"
    metadata = HeaderParser().parsestr(wheel.read(f"{about}/METADATA").decode())
    assert metadata["Requires-Python"] == "<3.14,>=3.11"
    assert {"torch<2.14,>=2.4", "hivemind<1.1.13,>=1.1.12"} <= set(metadata.get_all("Requires-Dist", []))


# --- versions ----------------------------------------------------------------------------------


def pins(name: str) -> dict[str, str]:
    """Package -> version in a list of ours; names as registries compare them."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in PIN.findall(text)}


def test_every_tested_version_but_torchs_has_its_hashes() -> None:
    """Each build of torch, for a CPU or a CUDA, is another file."""
    tested, hashed = pins("constraints.txt"), pins("hashes.txt")
    assert hashed == {name: version for name, version in tested.items() if name != "torch"}
    text = (ROOT / "hashes.txt").read_text(encoding="utf-8")
    for entry in re.split(r"\n(?=\S)", text.strip()):
        assert entry.startswith("#") or re.search(r" \\\n    --hash=sha256:[0-9a-f]{64}\b", entry), entry


def test_the_bounds_let_the_tested_versions_in() -> None:
    tested = pins("constraints.txt")
    for requirement in PROJECT["dependencies"]:
        name, bounds = re.fullmatch(r"([a-z-]+)(.*)", requirement).groups()  # type: ignore[union-attr]
        version = [int(part) for part in tested[name].split(".")]
        for relation, bound in re.findall(r"(>=|<)([0-9.]+)", bounds):
            limit = [int(part) for part in bound.split(".")]
            assert version >= limit if relation == ">=" else version < limit, requirement


def test_another_index_for_torch_is_asked_for_torch_alone(tmp_path: Path) -> None:
    command = ["make", "--dry-run", "setup", f"VENV={tmp_path}", "TORCH_INDEX=https://index.example/cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S, cwd=ROOT)
    asked = [shlex.split(line) for line in done.stdout.splitlines() if "https://index.example/cpu" in line]
    (words,) = asked
    assert words[-3:] == ["torch", "--extra-index-url", "https://index.example/cpu"]


def test_the_image_says_the_version_of_the_package() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^ARG VERSION=(.+)$", text, re.MULTILINE) == [PROJECT["version"]]


# --- names in the current folder ---------------------------------------------------------------


@pytest.fixture
def squatted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder holds packages with our names, and their own ideas."""
    for name in ("node", "protocol", "bootstrap", "understudy", "understudy/node", "understudy/bootstrap"):
        (tmp_path / name).mkdir()
        for module in ("__init__", "__main__"):
            (tmp_path / name / f"{module}.py").write_text('raise SystemExit("somebody else")\n', encoding="utf-8")
    (tmp_path / "typer.py").write_text('raise SystemExit("somebody else")\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("squatted")
def test_the_command_is_ours_whatever_lies_in_the_current_folder() -> None:
    done = subprocess.run(
        [UNDERSTUDY, "local", "--help"], capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Run a whole swarm on this machine" in done.stdout


@pytest.mark.parametrize("module", ["understudy.node", "understudy.bootstrap", "understudy.node.export.command"])
def test_the_children_of_a_local_swarm_are_ours_whatever_lies_there(squatted: Path, module: str) -> None:
    log = squatted / "log"

    async def main() -> int | None:
        child = await Child.start("child", module, ["--help"], log)
        assert await child.wait(TIMEOUT_S)
        return child.exit_status

    assert asyncio.run(main()) == 0, log.read_text(encoding="utf-8")
    assert "Usage: " in log.read_text(encoding="utf-8")


def test_every_package_of_the_tree_is_installed(wheel: zipfile.ZipFile) -> None:
    folders = [path.parent for top in ("protocol", "node", "bootstrap") for path in (ROOT / top).rglob("*.py")]
    expected = {f"understudy/{folder.relative_to(ROOT)}/__init__.py" for folder in folders}
    assert expected <= set(wheel.namelist())
