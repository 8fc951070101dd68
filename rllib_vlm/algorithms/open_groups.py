"""Groups that outlive an update: each stays with the runner that plays it, and an update takes those that are whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray.rllib.env.env_runner_group import EnvRunnerGroup

from rllib_vlm.algorithms.dispatch import ATTEMPTS, Call, make_up, workers
from rllib_vlm.env.tasks import Task
from rllib_vlm.errors import SimulatorError

_METHOD = "play_open_groups"


@dataclass(slots=True)
class Holders:
    """Which runner plays which group.

    A runner is always told all the groups it holds. One that has lost them, because it died or played something else
    meanwhile, begins them again.
    """

    _of: dict[int, int] = field(default_factory=dict)  # runners by the number of the group

    def clear(self) -> None:
        """Who played what is not known any more."""
        self._of.clear()

    def plan(
        self, group: EnvRunnerGroup, tasks: Mapping[int, Task], wanted: int, kwargs: dict[str, Any]
    ) -> Call:
        """The call that has the runners go on until `wanted` of the groups of `tasks`, by number, are whole.

        New groups go where there are fewest. Of each runner as many are wanted as leaves all with equally many.
        """
        held: dict[int, list[int]] = {worker: [] for worker in workers(group)}
        if not held:
            return Call(group, _METHOD, {})
        for number in sorted(tasks, key=lambda n: (self._of.get(n) not in held, n)):
            if self._of.get(number) not in held:
                self._of[number] = min(held, key=lambda worker: len(held[worker]))
            held[self._of[number]].append(number)
        wants = dict.fromkeys((worker for worker in held if held[worker]), 0)
        for _ in range(wanted):
            # Among equals, who has the oldest: none is passed over for ever.
            next_ = max(wants, key=lambda worker: (len(held[worker]) - wants[worker], -min(held[worker])))
            wants[next_] += 1
        arguments = {
            worker: {"tasks": {n: tasks[n] for n in sorted(held[worker])}, "wanted": count, **kwargs}
            for worker, count in wants.items()
            if count
        }
        return Call(group, _METHOD, arguments)

    def play(
        self,
        group: EnvRunnerGroup,
        tasks: Mapping[int, Task],
        wanted: int,
        kwargs: dict[str, Any],
        *,
        on_metrics: Callable[[Any], object],
        on_loss: Callable[[EnvRunnerGroup], object],
        begun: Call | None = None,
    ) -> dict[int, list[Any]]:
        """`wanted` whole groups, by number; the others go on being played when this is called again.

        Args:
            group: the runners.
            tasks: of all groups that are to be under way, by number.
            wanted: groups.
            kwargs: further arguments of `VLMEnvRunner.play_open_groups`.
            on_metrics: called with each runner's metrics.
            on_loss: called where a runner died, to bring it back.
            begun: the `plan` of this very work, where runners are at it already.

        Raises:
            SimulatorError: runners keep dying.
            RLlibVLMError: what a runner says is wrong.
        """
        found: dict[int, list[Any]] = {}
        for _ in range(ATTEMPTS):
            left = {number: task for number, task in tasks.items() if number not in found}
            call, begun = begun or self.plan(group, left, wanted - len(found), kwargs), None
            for played in call.wait():
                if played.error is not None:
                    raise played.error
                on_metrics(played.metrics)
                size = len(played.items) // max(1, len(played.numbers))
                for k, number in enumerate(played.numbers):
                    found[number] = played.items[k * size : (k + 1) * size]
            if len(found) >= wanted:
                for number in found:
                    self._of.pop(number, None)
                return dict(sorted(found.items()))
            make_up(group, on_loss)
        raise SimulatorError(f"env runners died {ATTEMPTS} times during {_METHOD}; see their logs")
