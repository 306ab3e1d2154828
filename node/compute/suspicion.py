"""Who spoils the numbers? Every stage's update is skipped when one computes NaN or Inf; only that one should end."""

from __future__ import annotations

import torch
from torch import Tensor


class Suspicion:
    """Looks at what goes through a stage while its updates are skipped, and at no other time: looking costs time."""

    def __init__(self) -> None:
        self.is_confirmed = False
        """Finite numbers came in, and others went out."""

    def look(self, came: Tensor | None, went: Tensor) -> None:
        """Compare what came in, if anything, with what the stage made of it."""
        if not self.is_confirmed and (came is None or _is_finite(came)) and not _is_finite(went):
            self.is_confirmed = True


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.detach()).all())
