"""What an evaluation suite is: a simulator's tests by name, as data.

Whoever brings a simulator puts a `Suite` beside it and one row into the registry's table `suites` (a package of its
own: an entry point in the group `rllib_vlm.suites`). `rllib evaluate CHECKPOINT --suite NAME` plays it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One test: tasks of one split, under one rule."""

    name: str  # also of its file
    split: str  # one of the simulator's `splits`
    episodes: int
    first_seed: int = 0  # of the tasks, which count up from there
    env_config: Mapping[str, Any] = field(default_factory=dict)  # over the checkpoint's own
    # Played only where the checkpoint's simulator has one of these values for the argument, such as
    # {"observation": ("vision", "both")}.
    only_with: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Tests of policies of one simulator."""

    simulator: str  # a name of the table `simulators`, or a dotted path
    parts: tuple[Part, ...]
