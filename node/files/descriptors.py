"""The standard descriptors, which some supervisors close before they start a program.

Whatever is opened next would get their numbers: a socket would be written to as if it were the terminal, and libuv,
whose sockets are never one of these, aborts the process when it closes it.
"""

from __future__ import annotations

import os
import sys

_LAST = 2


def open_standard_descriptors() -> None:
    """Give those that are closed, and the streams upon them, to /dev/null. Before anything else is opened."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _LAST:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            stream = open(number, "w" if number else "r", encoding="utf-8", closefd=False)  # noqa: SIM115 - for good
            setattr(sys, name, stream)
