"""Work for env runners: tasks are shared evenly, and those of runners that die are played by others.

And what every learner is to do at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from rllib_vlm.env.played import Played
from rllib_vlm.errors import SimulatorError

_ATTEMPTS = 3  # times work is given out before the run fails


def play(
    group: EnvRunnerGroup,
    method: str,
    tasks: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    on_metrics: Callable[[Any], object],
    on_loss: Callable[[EnvRunnerGroup], object],
) -> list[Any]:
    """What the runners of `group` make of `tasks`, in their order.

    Args:
        group: the runners.
        method: of `VLMEnvRunner`, one that gives `Played`.
        tasks: its first argument, shared among the runners.
        kwargs: its further arguments.
        on_metrics: called with each runner's metrics.
        on_loss: called where a runner died, to bring it back.

    Raises:
        SimulatorError: runners keep dying.
        RLlibVLMError: what a runner says is wrong.
    """
    found: dict[int, list[Any]] = {}
    for _ in range(_ATTEMPTS):
        shares = _shares([i for i in range(len(tasks)) if i not in found], group)
        work = {worker: [tasks[i] for i in share] for worker, share in shares.items()}
        for played in _dispatch(group, method, work, kwargs):
            if played.error is not None:
                raise played.error
            on_metrics(played.metrics)
            found |= _by_task(shares[played.worker], played.items)
        if len(found) == len(tasks):
            return [item for i in sorted(found) for item in found[i]]
        on_loss(group)
    raise SimulatorError(f"env runners died {_ATTEMPTS} times during {method}; see their logs")


def _shares(left: Sequence[int], group: EnvRunnerGroup) -> dict[int, Sequence[int]]:
    """Tasks for every runner that lives, evenly; the local one is number 0."""
    if not group.num_remote_env_runners():
        return {0: left}
    workers = group.healthy_env_runner_ids()
    return {w: left[k :: len(workers)] for k, w in enumerate(workers) if left[k :: len(workers)]}


def _dispatch(
    group: EnvRunnerGroup, method: str, work: dict[int, list[Any]], kwargs: dict[str, Any]
) -> list[Played]:
    """Has every runner do its share, at the same time; runners that die are missing from the answer."""
    if not work:
        return []
    if not group.num_remote_env_runners():
        return [getattr(group.local_env_runner, method)(work[0], **kwargs)]
    played: list[Played] = group.foreach_env_runner(
        method,
        kwargs=[{"tasks": tasks, **kwargs} for tasks in work.values()],
        local_env_runner=False,
        remote_worker_ids=list(work),
    )
    return played


def _by_task(share: Sequence[int], items: Sequence[Any]) -> dict[int, list[Any]]:
    """Items by the task they belong to: a whole group per task, or what is left of fewer demonstrations."""
    if len(items) % len(share):
        return {share[0]: list(items)} | {i: [] for i in share[1:]}
    size = len(items) // len(share)
    return {i: list(items[k * size : (k + 1) * size]) for k, i in enumerate(share)}


def ask_learners(group: LearnerGroup | None, method: str) -> None:
    """Has every learner do what `method` of it does, and waits for all of them."""
    assert group is not None
    for result in group.foreach_learner(func=lambda learner: getattr(learner, method)()):
        result.get()
