"""Work for env runners: tasks are shared evenly, and those of runners that die are played by others.

And what every learner is to do at once.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from rllib_vlm.env.played import Played
from rllib_vlm.errors import LearnerError, SimulatorError

ATTEMPTS = 3  # times work is given out before the run fails
RESTART_S = 300.0  # for the last of all runners to come back: importing torch takes a while on a busy machine


@dataclass(slots=True)
class Call:
    """A method of `VLMEnvRunner`, one that gives `Played`, for every runner that has something to do.

    Runners work when they are waited for, or from `start` on.
    """

    group: EnvRunnerGroup
    method: str
    arguments: dict[int, dict[str, Any]]  # by runner; the local one is number 0
    shares: dict[int, Sequence[int]] = field(default_factory=dict)  # which places of a list of tasks each has
    _tag: str | None = None
    _played: list[Played] | None = None

    def start(self) -> Self:
        """Has remote runners begin, while the caller does something else."""
        if self.arguments:
            self._tag = f"{self.method} {uuid.uuid4().hex}"
            self.group.foreach_env_runner_async(
                self.method,
                tag=self._tag,
                kwargs=list(self.arguments.values()),
                remote_worker_ids=list(self.arguments),
            )
        return self

    def wait(self) -> list[Played]:
        """What they made of it, once all are through; runners that died are missing."""
        if self._played is None:
            self._played = self._fetch()
        return self._played

    def _fetch(self) -> list[Played]:
        if not self.arguments:
            return []
        if not self.group.num_remote_env_runners():
            return [getattr(self.group.local_env_runner, self.method)(**self.arguments[0])]
        if self._tag is not None:
            found = self.group.fetch_ready_async_reqs(tags=self._tag, timeout_seconds=None)
            return [played for _, played in found]
        played: list[Played] = self.group.foreach_env_runner(
            self.method,
            kwargs=list(self.arguments.values()),
            local_env_runner=False,
            remote_worker_ids=list(self.arguments),
        )
        return played


def plan(
    group: EnvRunnerGroup,
    method: str,
    tasks: Sequence[Any],
    kwargs: dict[str, Any],
    left: Sequence[int] | None = None,
) -> Call:
    """The call that has the runners of `group` play `tasks`, or those at the places `left`."""
    shares = _shares(range(len(tasks)) if left is None else left, group)
    arguments = {worker: {"tasks": [tasks[i] for i in share], **kwargs} for worker, share in shares.items()}
    return Call(group, method, arguments, shares)


def play(
    group: EnvRunnerGroup,
    method: str,
    tasks: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    on_metrics: Callable[[Any], object],
    on_loss: Callable[[EnvRunnerGroup], object],
    begun: Call | None = None,
) -> list[Any]:
    """What the runners of `group` make of `tasks`, in their order.

    Args:
        group: the runners.
        method: of `VLMEnvRunner`, one that gives `Played`.
        tasks: its first argument, shared among the runners.
        kwargs: its further arguments.
        on_metrics: called with each runner's metrics.
        on_loss: called where a runner died, to bring it back.
        begun: the `plan` of this very work, where runners are at it already.

    Raises:
        SimulatorError: runners keep dying.
        RLlibVLMError: what a runner says is wrong.
    """
    found: dict[int, list[Any]] = {}
    for _ in range(ATTEMPTS):
        left = [i for i in range(len(tasks)) if i not in found]
        call, begun = begun or plan(group, method, tasks, kwargs, left), None
        for played in call.wait():
            if played.error is not None:
                raise played.error
            on_metrics(played.metrics)
            found |= _by_task(call.shares[played.worker], played.items)
        if len(found) == len(tasks):
            return [item for i in sorted(found) for item in found[i]]
        make_up(group, on_loss)
    raise SimulatorError(f"env runners died {ATTEMPTS} times during {method}; see their logs")


def make_up(group: EnvRunnerGroup, on_loss: Callable[[EnvRunnerGroup], object]) -> None:
    """Has `on_loss` bring runners back; where none is left, until one is there, or `RESTART_S` are over."""
    end = time.monotonic() + RESTART_S
    on_loss(group)
    while not workers(group) and time.monotonic() < end:
        time.sleep(0.5)
        on_loss(group)


def workers(group: EnvRunnerGroup) -> list[int]:
    """Runners that live; the local one is number 0."""
    return list(group.healthy_env_runner_ids()) if group.num_remote_env_runners() else [0]


def _shares(left: Sequence[int], group: EnvRunnerGroup) -> dict[int, Sequence[int]]:
    """Tasks for every runner that lives, evenly."""
    living = workers(group)
    if living == [0]:
        return {0: left}
    return {w: left[k :: len(living)] for k, w in enumerate(living) if left[k :: len(living)]}


def _by_task(share: Sequence[int], items: Sequence[Any]) -> dict[int, list[Any]]:
    """Items by the task they belong to: a whole group per task, or what is left of fewer demonstrations."""
    if len(items) % len(share):
        return {share[0]: list(items)} | {i: [] for i in share[1:]}
    size = len(items) // len(share)
    return {i: list(items[k * size : (k + 1) * size]) for k, i in enumerate(share)}


def ask_learners(group: LearnerGroup | None, method: str) -> None:
    """Has every learner do what `method` of it does, and waits for all of them.

    Raises:
        LearnerError: one of them died.
        Exception: what one of them raised.
    """
    assert group is not None
    results = list(group.foreach_learner(func=lambda learner: getattr(learner, method)()))
    require_learners(group)
    for result in results:
        result.get()


def require_learners(group: LearnerGroup) -> None:
    """RLlib passes over learners that died or raised, as if the others were all.

    Raises:
        LearnerError: there are such, as far as the last call found out.
    """
    if not group.is_local and (lost := len(group) - group._worker_manager.num_healthy_actors()):  # noqa: SLF001
        raise LearnerError(
            f"{lost} of {len(group)} learner processes died or failed; what stands above in the log says why. With "
            "`max_failures` a run goes on from its last checkpoint."
        )
