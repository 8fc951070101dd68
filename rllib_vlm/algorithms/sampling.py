"""Whole groups of training episodes for each update: played when it is due, while the one before learns, or bit by bit.

With `one_step_off_policy`, update k learns while runners sample for update k + 1::

    learners   |        | update 0 | update 1 | update 2 |
    runners    | batch 0| batch 1  | batch 2  |   ...            batch k + 1 by the weights that update k starts from
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, TIMERS

from rllib_vlm.algorithms.checkpointing import CheckpointedAlgorithm
from rllib_vlm.algorithms.dispatch import Call, plan, play
from rllib_vlm.algorithms.open_groups import Holders
from rllib_vlm.algorithms.placed import PlacedAlgorithm
from rllib_vlm.algorithms.synced import SyncedAlgorithm
from rllib_vlm.connectors.trajectories import by_group, executed
from rllib_vlm.credit.group import has_spread

if TYPE_CHECKING:
    from rllib_vlm.algorithms.run_state import RunState
    from rllib_vlm.env.tasks import Task, TaskSampler

_METHOD = "play_groups"


@dataclass(slots=True, kw_only=True)
class Batch:
    """The groups of an update, which runners play when it is due, or play already."""

    tasks: dict[int, Task]  # of all groups that are to be under way, by their places in the sequence of tasks
    wanted: int  # of these groups
    cursor: int  # of the sequence of tasks, once an update has taken the batch
    kwargs: dict[str, Any]  # of the runners' method
    begun: Call | None = None


class SamplingAlgorithm(SyncedAlgorithm, PlacedAlgorithm):
    """Has env runners play what updates learn from."""

    _tasks: TaskSampler
    _batch: Batch | None = None  # that the next update takes, where runners sample ahead
    _holders: Holders

    @override(PlacedAlgorithm)
    def setup(self, config: Any) -> None:
        self._holders = Holders()
        super().setup(config)

    def _sample(self) -> tuple[list[SingleAgentEpisode], list[SingleAgentEpisode]]:
        """The episodes to learn from, in whole groups, and all that were played.

        With `sampling_rounds`, groups that teach nothing are made up for by others.
        Source: the dynamic sampling of DAPO (arXiv 2503.14476), here with a bound.
        """
        config = self.config
        kept: list[SingleAgentEpisode] = []
        dropped: list[SingleAgentEpisode] = []
        missing = config.groups_per_update
        for round_ in range(max(1, config.sampling_rounds)):
            batch, self._batch = self._batch or self._next_batch(self.run_state, missing, round_), None
            episodes = self._take(batch)
            if not config.sampling_rounds:
                return episodes, episodes
            for members in by_group(episodes).values():
                differ = has_spread(np.array([member.get_return() for member in members]))
                (kept if differ else dropped).extend(members)
                missing -= differ
            if not missing:
                break
        count = len(by_group(dropped))
        self.metrics.log_value((ENV_RUNNER_RESULTS, "num_groups_dropped"), count, reduce="sum")
        return kept or dropped, kept + dropped  # where all are alike, an update without a gradient

    def _next_batch(self, state: RunState, wanted: int, round_: int = 0) -> Batch:
        """What a run in this state samples next: groups that were begun and not learnt from yet, then new ones."""
        most = wanted + self.config.partial_rollouts
        begun = state.open_tasks[:most]
        cursor = state.task_cursor + most - len(begun)
        return Batch(
            tasks={place: self._tasks.at(place) for place in (*begun, *range(state.task_cursor, cursor))},
            wanted=wanted,
            cursor=cursor,
            kwargs={"level": state.level, "seed": self._update_seed(round_, state)},
        )

    def _take(self, batch: Batch) -> list[SingleAgentEpisode]:
        """The episodes of a batch, as soon as they are there; it counts as drawn from now on."""
        group, state, tasks = self.env_runner_group, self.run_state, batch.tasks
        self.let_sample(group)
        if batch.begun is None and self._behind is not None:
            self._send(group, self._behind)
        handlers: dict[str, Any] = {"on_metrics": self._log_runner_metrics, "on_loss": self._bring_back}
        handlers["begun"] = batch.begun
        if self.config.partial_rollouts:
            found = self._holders.play(group, tasks, batch.wanted, batch.kwargs, **handlers)
            episodes = [episode for members in found.values() for episode in members]
            left = [place for place in tasks if place not in found]
        else:
            episodes = play(group, _METHOD, list(tasks.values()), batch.kwargs, **handlers)
            left = []
        state.open_tasks = [*left, *(place for place in state.open_tasks if place not in tasks)]
        state.task_cursor = batch.cursor
        return episodes

    def _sample_ahead(self, success_rate: float) -> None:
        """Runners begin with the next update's batch, by the weights from which the present update starts.

        Args:
            success_rate: of the present update's episodes, which a curriculum goes by.
        """
        with self.metrics.log_time((TIMERS, "sync"), reduce="sum"):
            self._behind = self._sync_weights(self.env_runner_group)
        upcoming = replace(self.run_state, updates=self.run_state.updates + 1)
        upcoming.learn_from(success_rate, self.config)
        upcoming.advance(self.config)
        if upcoming.phase != "rl":
            return
        batch = self._batch = self._next_batch(upcoming, self.config.groups_per_update)
        group = self.env_runner_group
        if self.config.partial_rollouts:
            batch.begun = self._holders.plan(group, batch.tasks, batch.wanted, batch.kwargs).start()
        else:
            batch.begun = plan(group, _METHOD, list(batch.tasks.values()), batch.kwargs).start()

    def _settle(self) -> None:
        """Runners have finished what they sample ahead, and have the learner's weights."""
        if self.config.one_step_off_policy:
            if self._batch is not None and self._batch.begun is not None:
                self._batch.begun.wait()
            self._sync_weights(self.env_runner_group)

    @override(CheckpointedAlgorithm)
    def _drop_rollouts(self) -> None:
        if self._batch is not None and self._batch.begun is not None:
            self._batch.begun.wait()
        self._batch = None
        self._holders.clear()
        if self.config.partial_rollouts:
            self.env_runner_group.foreach_env_runner(lambda runner: runner.forget())

    def _bring_back(self, group: EnvRunnerGroup) -> None:
        """Runners that died while they sampled for an update are there again, with the weights they sampled by."""
        self.restore_env_runners(group)
        if self._behind is not None:
            self._send(group, self._behind)

    def _play(
        self, group: EnvRunnerGroup, method: str, tasks: Sequence[Any], log: Any, **kwargs: Any
    ) -> list[Any]:
        """See `algorithms.dispatch.play`."""
        self.let_sample(group)
        return play(group, method, tasks, kwargs, on_metrics=log, on_loss=self.restore_env_runners)

    def _draw_tasks(self, count: int) -> list[Task]:
        first = self.run_state.task_cursor
        self.run_state.task_cursor += count
        return [self._tasks.at(place) for place in range(first, first + count)]

    def _log_runner_metrics(self, metrics: Any) -> None:
        self.metrics.aggregate([metrics], key=ENV_RUNNER_RESULTS)

    def _log_policy_lag(self, episodes: Sequence[SingleAgentEpisode]) -> None:
        """How many updates older than the learner's the oldest weights behind an episode are, the mean of all."""
        lags = [self._version - min(a.policy_version for a in executed(e)) for e in episodes if len(e)]
        if lags:
            self.metrics.log_value((ENV_RUNNER_RESULTS, "policy_lag"), fmean(lags), window=1)

    def _update_seed(self, part: int = 0, state: RunState | None = None) -> int:
        """Of what is drawn in the update that a state is before, or in one part of it."""
        state = state or self.run_state
        mixed = [self.config.seed or 0, state.warm_start_updates, state.updates, state.rollbacks, part]
        return int(np.random.SeedSequence(mixed).generate_state(1)[0])
