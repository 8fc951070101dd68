"""The algorithm behind all others here: warm start, then sample, give credit, learn, synchronise."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    EVALUATION_RESULTS,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    TIMERS,
)
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_vlm import registry
from rllib_vlm.algorithms.buffer import DemonstrationBuffer
from rllib_vlm.algorithms.dispatch import require_learners
from rllib_vlm.algorithms.driver_credit import charge_kl, give_credit
from rllib_vlm.algorithms.engine_sync import EngineSync
from rllib_vlm.algorithms.placed import PlacedAlgorithm
from rllib_vlm.algorithms.placement import ENGINES
from rllib_vlm.algorithms.run_state import RunState
from rllib_vlm.algorithms.sampling import SamplingAlgorithm
from rllib_vlm.algorithms.vlm_config import VLMAlgorithmConfig
from rllib_vlm.batching.sharding import shard_groups, trajectory_tokens
from rllib_vlm.connectors.trajectories import by_group, to_trajectory
from rllib_vlm.core.columns import GROUP, INDEX, SUCCESS
from rllib_vlm.core.heap import give_back
from rllib_vlm.core.probe import log_ratio_max
from rllib_vlm.core.step_guard import StepGuard
from rllib_vlm.core.update_plan import UpdatePlan, learning_rate
from rllib_vlm.data import open_demonstrations
from rllib_vlm.env.summary import summarize
from rllib_vlm.env.tasks import Task, TaskSampler, heldout_tasks
from rllib_vlm.env.transcript import Transcript
from rllib_vlm.errors import RLlibVLMError, SimulatorError

_KL = (LEARNER_RESULTS, DEFAULT_MODULE_ID, "kl_to_reference")


class VLMAlgorithm(SamplingAlgorithm):
    """One training iteration is one update: of imitation while the warm start lasts, then of RL."""

    config: VLMAlgorithmConfig
    ending: RLlibVLMError | None = None  # set by callbacks: what the next iteration raises

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> VLMAlgorithmConfig:
        return VLMAlgorithmConfig()

    @override(Algorithm)
    def setup(self, config: Any) -> None:
        self.run_state = RunState()
        self.buffer = DemonstrationBuffer()
        super().setup(config)
        self._tasks = TaskSampler(seed=self.config.seed or 0, num_task_seeds=self.config.num_task_seeds)
        credit = registry.resolve("credit", self.config.credit)(**self.config.credit_options)
        self._driver_credit = None if credit.stage == "learner" else credit
        if self.config.curriculum is not None:
            self.run_state.level = float(self.config.curriculum.get("start", 0.0))
        self.run_state.advance(self.config)
        self._share_module()
        self._sync_weights(self.env_runner_group)

    @override(PlacedAlgorithm)
    def take_bundles(self) -> None:
        self._engines = EngineSync.of(self.config)
        if self._engines is not None:
            self._engines.place(self._demand(self.config).first_bundle(ENGINES))

    @classmethod
    @override(Algorithm)
    def _should_create_evaluation_env_runners(cls, eval_config: Any) -> bool:
        """Training runners evaluate too, unless evaluation is given runners of its own."""
        return bool(eval_config.evaluation_num_env_runners > 0)

    # One iteration.

    @override(Algorithm)
    def step(self) -> dict[str, Any]:
        if self.ending is not None:
            raise self.ending
        before = self._evaluate_if_due()  # of a run that begins, or one whose evaluation was interrupted
        phase = self.run_state.phase
        results: dict[str, Any] = super().step()
        if before is not None:
            results.setdefault(EVALUATION_RESULTS, before)
        after = self._evaluate_if_due()
        if after is not None:
            results[EVALUATION_RESULTS] = after
        state = self.run_state
        results |= {
            "phase": state.phase,
            "iteration_phase": phase,
            "num_updates": state.updates,
            "num_warm_start_updates": state.warm_start_updates,
            "done": state.phase == "finished",
        }
        if state.level is not None:
            results["curriculum_level"] = state.level
        return _without_nan(results)  # RLlib keeps keys of metrics that had no value this time

    @override(Algorithm)
    def training_step(self) -> None:
        state, start = self.run_state, time.perf_counter()
        if state.phase == "warm_start":
            self._imitate()
            state.warm_start_updates += 1
            state.warm_start_s += time.perf_counter() - start
        elif state.phase == "rl":
            self._reinforce()
            state.rl_s += time.perf_counter() - start
        state.advance(self.config)
        if state.phase != "warm_start":
            self.buffer.clear()  # with their pictures; nothing reads them any more
        give_back()

    def _imitate(self) -> None:
        config, state = self.config, self.run_state
        with self.metrics.log_time((TIMERS, "sample"), reduce="sum"):
            episodes = self._demonstrations()
        # Each stage has a whole schedule of its own: what the second begins with is a finished tower.
        first, last = 0, config.warm_start_grounding_updates
        if state.warm_start_updates >= last:
            first, last = last, config.warm_start_updates
        lr = learning_rate(
            config.lr if config.warm_start_lr is None else config.warm_start_lr,
            state.warm_start_updates - first,
            schedule=config.warm_start_lr_schedule,
            warmup=config.warm_start_warmup_updates,
            total=last - first,
            final_fraction=config.warm_start_lr_final_fraction,
            spent=state.spent(config) if config.warm_start_lr_schedule_by_time else 0.0,
        )
        plan = UpdatePlan(
            losses=config.imitation_settings(state.warm_start_updates),
            lr=lr,
            num_epochs=config.warm_start_epochs,
            minibatch_size=config.warm_start_rows(state.warm_start_updates),
            seed=self._update_seed(),
            expects_credit=False,
            precision=config.warm_start_precision,
        )
        self._learn(episodes, plan)

    def _reinforce(self) -> None:
        config, state = self.config, self.run_state
        with self.metrics.log_time((TIMERS, "sample"), reduce="sum"):
            episodes, played = self._sample()
        self._log_group_spread(played)
        successes = [bool(e.custom_data[SUCCESS]) for e in played]
        success_rate = sum(successes) / max(1, len(successes))
        if config.one_step_off_policy:
            self._sample_ahead(success_rate)
        self._log_policy_lag(episodes)
        kl_coeff = config.kl_coeff if state.kl_coeff is None else state.kl_coeff
        critic_only = state.updates < config.critic_warmup_updates
        rates = [
            learning_rate(
                base,
                state.updates,
                schedule=config.lr_schedule,
                warmup=config.lr_warmup_updates,
                total=config.total_updates,
                final_fraction=config.lr_final_fraction,
                spent=state.spent(config) if config.lr_schedule_by_time else 0.0,
            )
            for base in (config.lr, config.lr if config.value_lr is None else config.value_lr)
        ]
        plan = UpdatePlan(
            losses=config.loss_settings(
                critic_only=critic_only, kl_coeff=state.kl_coeff, clip_scale=state.clip_scale
            ),
            lr=rates[0] * state.lr_scale,
            value_lr=rates[1] * state.lr_scale,
            num_epochs=config.num_epochs,
            minibatch_size=config.minibatch_size,
            seed=self._update_seed(),
            normalize_advantages=config.normalize_advantages,
            drop_uninformative=config.drop_uninformative,
            downsample=config.downsample,
            precision=config.precision,
            guard=StepGuard(**config.step_guard),
            kl_reward=kl_coeff if config.kl_in == "reward" and not critic_only else 0.0,
            reference=config.kl_reference,
        )
        with self.metrics.log_time((TIMERS, "credit"), reduce="sum"):
            self._charge(episodes, plan)
            self._give_credit(episodes)
        self._learn(episodes, plan)
        if plan.needs_reference:
            self.metrics.log_value("kl_coeff", kl_coeff, window=1)
            state.adapt_kl(float(self.metrics.peek(_KL)), config)
        state.updates += 1
        state.learn_from(success_rate, config)

    # Data.

    def _demonstrations(self) -> list[SingleAgentEpisode]:
        """New ones, from the expert or from disk, and older ones where a buffer is kept."""
        config = self.config
        count = config.warm_start_episodes_per_update
        if config.warm_start_demonstrations is not None:
            return self._recorded(config.warm_start_demonstrations, count)
        update = self.run_state.warm_start_updates
        imitates = config.imitates(update)
        new = self._play(
            self.env_runner_group,
            "play_demonstrations",
            self._draw_tasks(count),
            self._log_runner_metrics,
            policy_share=config.policy_share(update),
            mixing=config.warm_start_mixing,
            only_successes=config.warm_start_only_successes,
            level=self.run_state.level,
            seed=self._update_seed(),
            **({} if imitates else config.grounding_settings),
        )
        if not new:
            raise SimulatorError(
                f"the expert of {config.env!r} gave no demonstrations in {count} episodes: the simulator may "
                "have no expert. Give warm_start.demonstrations a path, or set warm_start.updates to 0."
            )
        old: list[SingleAgentEpisode] = []
        if config.warm_start_buffer_episodes:
            rng = np.random.default_rng([config.seed or 0, update])
            count = round(config.warm_start_replay_ratio * len(new))
            old = self.buffer.draw(count, imitates=imitates, rng=rng)
            self.buffer.add(new, imitates=imitates, most=config.warm_start_buffer_episodes)
        return [*new, *old]

    def _recorded(self, path: str, count: int) -> list[SingleAgentEpisode]:
        """The next `count` recorded episodes, in a new random order each time all were read."""
        with open_demonstrations(path) as reader:
            where = reader.successes() if self.config.warm_start_only_successes else reader.indices
        indices = np.array(where, np.int64)
        cursor, size = self.run_state.demonstration_cursor, len(indices)
        chosen = []
        for position in range(cursor, cursor + count):
            order = np.random.default_rng([self.config.seed or 0, position // size]).permutation(size)
            chosen.append(int(indices[order[position % size]]))
        self.run_state.demonstration_cursor += count
        return self._play(
            self.env_runner_group, "read_demonstrations", chosen, self._log_runner_metrics, path=path
        )

    def _charge(self, episodes: list[SingleAgentEpisode], plan: UpdatePlan) -> None:
        """A KL in the reward, where the driver gives the credit; learners charge what they give credit of."""
        if self._driver_credit is not None and plan.kl_reward:
            self.let_learn()
            kl = charge_kl(episodes, self._shards(episodes), self.learner_group, plan)
            self.metrics.log_value(_KL, kl, window=1)

    def _give_credit(self, episodes: Sequence[SingleAgentEpisode]) -> None:
        """Estimators that compare episodes need whole groups or updates, which only the driver has."""
        if self._driver_credit is not None:
            for name, value in give_credit(self._driver_credit, episodes).items():
                self.metrics.log_value((ENV_RUNNER_RESULTS, name), value, window=1)

    def _log_group_spread(self, episodes: Sequence[SingleAgentEpisode]) -> None:
        """How much the returns of siblings differ, the mean of all groups that have any."""
        returns = [[e.get_return() for e in members] for members in by_group(episodes).values()]
        spreads = [float(np.std(r)) for r in returns if len(r) > 1]
        if spreads:
            self.metrics.log_value(
                (ENV_RUNNER_RESULTS, "group_return_std"), float(np.mean(spreads)), window=1
            )

    # Learning.

    def _learn(self, episodes: list[SingleAgentEpisode], plan: UpdatePlan) -> None:
        config = self.config
        steps = self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0)
        timesteps = {NUM_ENV_STEPS_SAMPLED_LIFETIME: steps}
        with self.metrics.log_time((TIMERS, "learn"), reduce="sum"):
            self.let_learn()
            shards = self._shards(episodes)
            if self.learner_group.is_local:
                results = self.learner_group.update(episodes=episodes, plan=plan, timesteps=timesteps)
            else:
                results = self.learner_group.update(episodes_refs=shards, plan=plan, timesteps=timesteps)
                require_learners(self.learner_group)
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        if config.one_step_off_policy and self.run_state.phase == "rl":
            return  # runners that sample get them when they are through
        with self.metrics.log_time((TIMERS, "sync"), reduce="sum"):
            self._sync_weights(self.env_runner_group)

    def _shards(self, episodes: list[SingleAgentEpisode]) -> list[Any]:
        """Whole groups per learner, numbered: RLlib's own sharding would cut episodes and scatter siblings."""
        for index, episode in enumerate(episodes):
            episode.custom_data[INDEX] = index
        if self.learner_group.is_local:
            return [episodes]
        shards = shard_groups(
            [e.custom_data[GROUP] for e in episodes],
            [trajectory_tokens(to_trajectory(e)) for e in episodes],
            self.config.num_learners,
        )
        return [ray.put([episodes[i] for i in shard]) for shard in shards]

    # Evaluation.

    def _evaluate_if_due(self) -> dict[str, Any] | None:
        """The evaluation of the milestone the run stands at, unless it was made or is not wanted."""
        config, state = self.config, self.run_state
        due = [m for m in state.milestones(config) if m in config.evaluation_at]
        if not due or due[0] in state.evaluations:
            return None
        results: dict[str, Any] = self._run_one_evaluation()[EVALUATION_RESULTS]
        return results

    @override(Algorithm)
    def evaluate(self, parallel_train_future: Any = None) -> dict[str, Any]:
        """Plays exactly `evaluation_duration` held-out tasks, always the same ones.

        Returns:
            The record of `env.summary.summarize`, and `at`: "start", "warm_start_end", "final", or
            "interval" for any other time.
        """
        config, state = self.config, self.run_state
        make_callback(
            "on_evaluate_start",
            callbacks_objects=self.callbacks,
            callbacks_functions=config.callbacks_on_evaluate_start,
            kwargs={"algorithm": self, "metrics_logger": self.metrics},
        )
        group = self._evaluation_runners()
        start = time.perf_counter()
        tasks = heldout_tasks(int(config.evaluation_duration))
        own = MetricsLogger(root=True)  # of this evaluation alone
        episodes = self._play(group, "play_heldout", tasks, lambda m: own.aggregate([m]))
        reached = state.milestones(config)
        record: dict[str, Any] = {
            **summarize(episodes),
            "at": reached[0] if reached else "interval",
            "num_updates": state.updates,
            "wall_s": time.perf_counter() - start,
            ENV_RUNNER_RESULTS: own.compile(),
        }
        for milestone in reached:
            state.evaluations.setdefault(milestone, record)
        make_callback(
            "on_evaluate_end",
            callbacks_objects=self.callbacks,
            callbacks_functions=config.callbacks_on_evaluate_end,
            kwargs={"algorithm": self, "metrics_logger": self.metrics, "evaluation_metrics": record},
        )
        return record

    def transcribe(
        self, tasks: Sequence[Task], options: Mapping[str, Any], tell: Callable[[], object] | None = None
    ) -> list[Transcript]:
        """Plays tasks, an episode each, by the settings of evaluation, and gives what was said; no event is fired.

        Args:
            tasks: to play.
            options: of the simulator's resets, before those of the settings.
            tell: called in the runners' processes after each episode; travels there.

        Raises:
            SimulatorError: simulators or runners fail so persistently that no episode can be finished.
        """
        group = self._evaluation_runners()
        return self._play(
            group, "play_transcripts", tasks, lambda metrics: None, options=dict(options), tell=tell
        )

    def _evaluation_runners(self) -> EnvRunnerGroup:
        """Those that evaluate, with the learner's weights."""
        group = self.eval_env_runner_group or self.env_runner_group
        if group is not self.env_runner_group:
            self._sync_weights(group)
        else:
            self._settle()
        return group

    def probe_sync(self) -> float:
        """Largest |log-ratio|, in nats, between the runners and the learner over answers to a probe of each runner.

        Engine and learner hold the same weights where this is rounding alone (1e-3 in float32).
        """
        self._settle()
        self.let_sample(self.env_runner_group)
        answered = self.env_runner_group.foreach_env_runner(
            lambda runner: runner.probe(), local_env_runner=not self.env_runner_group.num_remote_env_runners()
        )
        self.let_learn()
        found = self.learner_group.foreach_learner(func=partial(log_ratio_max, answered=answered))
        return max(result.get() for result in found)


def _without_nan(results: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_nan(value) if isinstance(value, dict) else value
        for key, value in results.items()
        if not (isinstance(value, float) and math.isnan(value))
    }
