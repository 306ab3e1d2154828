"""How a process of ours ends: its status, and the one line that a person reads."""

from __future__ import annotations

import asyncio

import pytest

from understudy.node.process import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, StopSwitch, supervise
from understudy.protocol.errors import LocalProtocolError, NetworkError, SettingsError

ENDS = {
    "understudy: of a\\nstranger's \\x1b[2J": (NetworkError("of a\nstranger's \x1b[2J"), EXIT_FAILED),
    "understudy: no answer": (NetworkError("no answer"), EXIT_FAILED),
    "understudy: --stage 9: there is none": (SettingsError("--stage 9: there is none"), EXIT_USAGE),
    "understudy: a bug of understudy's, please report it: it is done": (LocalProtocolError("it is done"), EXIT_FAILED),
}


@pytest.mark.parametrize("line", ENDS)
def test_a_failure_is_one_line_and_its_status(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    error, status = ENDS[line]

    async def main(switch: StopSwitch) -> int:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())
        return EXIT_DONE

    async def fail() -> None:
        raise error

    assert asyncio.run(supervise(main)) == status
    assert capsys.readouterr().err == f"{line}\n"


def test_an_unknown_error_keeps_its_traceback() -> None:
    async def main(switch: StopSwitch) -> int:
        raise ExceptionGroup("of a TaskGroup", [ZeroDivisionError("made up")])

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(supervise(main))
    assert caught.value.subgroup(ZeroDivisionError) is not None
