"""Who deserves what: the protocol of every advantage estimator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol

from rllib_vlm.types import TokenCredit, Trajectory


class CreditAssigner(Protocol):
    """`stage` says what it sees: a "group" or an "update" at a time, on the driver, or in a "learner" values too."""

    stage: ClassVar[Literal["group", "update", "learner"]]

    def __call__(self, group: Sequence[Trajectory]) -> list[list[TokenCredit]]:
        """Credit of every turn of every trajectory, in the same order.

        `group` is one whole group of siblings, or all trajectories of the update, or for the learner's stage
        any set of trajectories whose `values` are filled.
        """
