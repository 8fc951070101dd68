"""Who deserves what: the protocol of every advantage estimator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol

from rllib_vlm.types import TokenCredit, Trajectory


class CreditAssigner(Protocol):
    """`stage` says where it runs: on the driver (sees whole groups) or in a learner (sees values)."""

    stage: ClassVar[Literal["driver", "learner"]]

    def __call__(self, group: Sequence[Trajectory]) -> list[list[TokenCredit]]:
        """Credit of every turn of every trajectory, in the same order.

        `group` is one whole group for driver-stage estimators; for learner-stage ones it is any
        set of trajectories whose `values` are filled.
        """
