"""Who follows the steps of a stage and does its own work on the weights in between: exports, standby copies."""

from __future__ import annotations


class StepObserver:
    """Told by the host of a stage; whoever builds the host says who observes it, and the host knows no more of them.

    What an observer wants done on the compute thread it pushes into the queue of the stage, and the host pumps the
    queue afterwards. An observer overrides what it has use for.
    """

    def closed(self, step: int) -> None:
        """The step's update is queued, and no later one: a job that is as urgent comes right behind it."""

    def applied(self, step: int) -> None:
        """The step's update is applied: these are our weights until the next one."""

    def owner_changed(self, stage: int) -> None:
        """Another stage has a new owner, who serves it."""
