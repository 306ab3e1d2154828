"""The tests do not see the shell that they were started from. Before any of them is imported: some draw at once."""

from __future__ import annotations

import os

from tests.surroundings import settled

calm = settled(os.environ)
for name in set(os.environ) - set(calm):
    del os.environ[name]
os.environ.update(calm)
