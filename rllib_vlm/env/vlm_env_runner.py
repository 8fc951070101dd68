"""The env runner: whole groups of episodes, each simulator at its own pace, no episode favoured.

RLlib's own runner returns the episodes that finish first, which favours short ones, and steps all
simulators in lockstep. This one starts exactly the episodes it was asked for and finishes all.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from rllib_vlm.connectors.parse_actions import ParseActions
from rllib_vlm.core.columns import SUCCESS, VLMColumns
from rllib_vlm.core.heap import give_back, leave_unwritten
from rllib_vlm.core.rl_module import FROZEN
from rllib_vlm.data import Conversation, RecordedEpisode, open_demonstrations
from rllib_vlm.env.conversations import told_episode
from rllib_vlm.env.creators import simulator_factory
from rllib_vlm.env.lessons import Teacher
from rllib_vlm.env.play import DemonstrationSettings, RolloutSettings
from rllib_vlm.env.played import Played, without_views
from rllib_vlm.env.recorded import recorded_episode
from rllib_vlm.env.rollout import EpisodeQueue, Rollout
from rllib_vlm.env.rollout_metrics import log_rollout
from rllib_vlm.env.slots import SlotPool
from rllib_vlm.env.summary import EpisodeSummary
from rllib_vlm.env.tasks import GroupQueue, OpenGroups, Task, TaskSampler, heldout_tasks
from rllib_vlm.env.transcript import Transcript
from rllib_vlm.env.weights import FrozenWeights, WeightsReader
from rllib_vlm.errors import RLlibVLMError
from rllib_vlm.types import Completion, Message, ParsedAction, Prompt

logger = logging.getLogger(__name__)

TASK_CURSOR = "task_cursor"
_PROBE_TOKENS = 16
REPLACEMENTS = 1_000_000_000  # position in the sequence of tasks where replacements begin


class VLMEnvRunner(SingleAgentEnvRunner):
    """Plays training, held-out and expert episodes in a pool of simulators."""

    env: Any
    module: Any
    metrics: Any

    @override(SingleAgentEnvRunner)
    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        if config.env_runner_torch_threads and kwargs.get("worker_index", 0):
            torch.set_num_threads(config.env_runner_torch_threads)
        leave_unwritten()
        self.level: float | None = None  # of the curriculum; the driver says
        self._num_samples = 0
        self._open: tuple[Rollout, OpenGroups[SingleAgentEpisode]] | None = None  # episodes that go on
        self._tell: Callable[[], object] | None = None  # called after each episode of the present call
        self._weights = WeightsReader()
        self._given_seed: int | None = None  # of what is drawn in the present call; the driver says
        super().__init__(config=config, **kwargs)
        workers = max(1, self.num_workers)
        share = {"worker": self._position, "workers": workers}
        seed = self.config.seed or 0
        self.tasks = TaskSampler(seed=seed, num_task_seeds=self.config.num_task_seeds, **share)
        # Drawn where simulators fail a task for good; never tasks that another runner plays.
        self._replacements = TaskSampler(
            seed=seed, num_task_seeds=self.config.num_task_seeds, first=REPLACEMENTS, **share
        )
        self._spare = TaskSampler(seed=seed, split="heldout", first=REPLACEMENTS, **share)
        self._evaluation_config = self.config if self.config.in_evaluation else None

    @property
    def _position(self) -> int:
        """Among the runners that share the work: 0 to num_workers - 1."""
        return max(0, (self.worker_index or 0) - 1)

    @property
    def pool(self) -> SlotPool:
        assert isinstance(self.env, SlotPool)
        return self.env

    # What RLlib calls.

    @override(SingleAgentEnvRunner)
    def make_env(self) -> None:
        """Starts the simulators.

        Raises:
            UnknownNameError: no such simulator.
            SimulatorError: it does not start.
        """
        if self.env is not None:
            self.env.close()
        config = self.config
        self.env = SlotPool(
            simulator_factory(config.env, config.env_config),
            config.num_envs_per_env_runner,
            process=config.simulator_process,
            deadlines=config.deadlines,
        )
        self.num_envs = len(self.env)
        make_callback(
            "on_environment_created",
            callbacks_objects=self._callbacks,
            callbacks_functions=config.callbacks_on_environment_created,
            kwargs={
                "env_runner": self,
                "metrics_logger": self.metrics,
                "env": self.env,
                "env_context": config.env_config,
            },
        )

    @override(SingleAgentEnvRunner)
    def sample(
        self,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool | None = None,
        random_actions: bool = False,
        force_reset: bool = False,
    ) -> list[SingleAgentEpisode]:
        """Plays whole groups of training tasks, or in an evaluation runner its share of the held-out ones.

        Args:
            num_timesteps: not supported; episodes are what counts.
            num_episodes: rounded up to whole groups; by default one group per slot.
            explore: False samples greedily.
            random_actions: not supported.
            force_reset: every episode starts with a reset anyway.

        Raises:
            ValueError: an argument that is not supported.
        """
        if num_timesteps is not None or random_actions:
            raise ValueError("VLMEnvRunner samples whole episodes of its policy: give num_episodes")
        if self.config.in_evaluation:
            workers = max(1, self.num_workers)
            wanted = (num_episodes or math.ceil(self.config.evaluation_duration / workers)) * workers
            return self.sample_heldout(heldout_tasks(wanted, worker=self._position, workers=workers))
        size = self.config.group_size
        groups = math.ceil(num_episodes / size) if num_episodes else max(1, self.num_envs // size)
        return self._play_groups([self.tasks.draw() for _ in range(groups)], greedy=explore is False)

    def rest(self) -> None:
        """Frees the GPU for who learns on it, until `wake`."""
        self.module.rest()

    def wake(self) -> None:
        self.module.wake()

    # What the algorithm calls: work by the task, and what became of it.

    # `seed` is of what is drawn in this call. It comes from the driver, whose counters a checkpoint keeps: what a
    # resumed run samples is what the interrupted one would have.

    def play_groups(
        self, tasks: Sequence[Task], level: float | None = None, seed: int | None = None
    ) -> Played:
        """Plays training tasks, a whole group each, by the policy; `level` is the curriculum's."""
        self.level, self._given_seed = level, seed
        return self._played(lambda: without_views(self._play_groups(tasks)))

    def play_open_groups(
        self, tasks: Mapping[int, Task], wanted: int, level: float | None = None, seed: int | None = None
    ) -> Played:
        """Plays training tasks on, a whole group each, until `wanted` of them are whole.

        The others keep their slots, and go on with the next call, by the weights there are then. Whatever else this
        runner is asked to play has them forgotten; the next call begins them again.

        Args:
            tasks: all that are to be under way here, by number.
            wanted: groups.
            level: the curriculum's, of groups that begin.
            seed: of what is drawn in episodes that begin.
        """
        self.level, self._given_seed = level, seed
        played = self._played(lambda: without_views(self._play_on(tasks, wanted)))
        return replace(played, numbers=self._open[1].taken if self._open is not None else ())

    def forget(self) -> None:
        """Gives up the episodes that would go on."""
        if self._open is not None:
            self._open[0].close()
            self._open = None

    def play_demonstrations(
        self,
        tasks: Sequence[Task],
        policy_share: float = 0.0,
        mixing: str = "turn",
        only_successes: bool = False,
        level: float | None = None,
        crops: int = 0,
        options: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> Played:
        """Plays training tasks, an episode each, with the simulator's expert; see `sample_demonstrations`."""
        self.level, self._given_seed = level, seed
        return self._played(
            lambda: without_views(
                self._play_demonstrations(tasks, policy_share, mixing, only_successes, crops, options)
            )
        )

    def play_heldout(self, tasks: Sequence[Task]) -> Played:
        """Plays held-out tasks, an episode each, by the settings of evaluation; gives `EpisodeSummary`s."""
        return self._played(lambda: [EpisodeSummary.of(e) for e in self.sample_heldout(tasks)])

    def play_transcripts(
        self,
        tasks: Sequence[Task],
        options: Mapping[str, Any] | None = None,
        tell: Callable[[], object] | None = None,
    ) -> Played:
        """`play_heldout` with `options` for the resets; gives `Transcript`s, and calls `tell` after each episode."""
        self._tell = tell
        try:
            return self._played(lambda: [Transcript.of(e) for e in self.sample_heldout(tasks, options)])
        finally:
            self._tell = None

    def read_demonstrations(self, tasks: Sequence[int], path: str = "") -> Played:
        """Reads recorded episodes, by index, into prompts and answers of this policy's model."""
        return self._played(lambda: without_views(self._read_demonstrations(tasks, path)))

    def _played(self, work: Callable[[], list[Any]]) -> Played:
        try:
            items, error = work(), None
        except RLlibVLMError as raised:  # a mistake of the user's, not a fault of this actor
            items, error = [], raised
        give_back()
        return Played(worker=self.worker_index or 0, items=items, metrics=self.get_metrics(), error=error)

    def _read_demonstrations(self, indices: Sequence[int], path: str) -> list[SingleAgentEpisode]:
        with open_demonstrations(path) as reader:
            episodes = [self._demonstrated(reader.read(index), index) for index in indices]
        return [e for e in episodes if len(e)]

    def _demonstrated(self, read: RecordedEpisode | Conversation, index: int) -> SingleAgentEpisode:
        teacher = self._teacher
        if isinstance(read, Conversation):
            limit = self.config.max_prompt_tokens
            return told_episode(read, index, self.module.family, teacher.say, max_prompt_tokens=limit)
        return recorded_episode(read, self._render_prompts, teacher.answer, teacher.lesson)

    def _play_groups(self, tasks: Sequence[Task], *, greedy: bool = False) -> list[SingleAgentEpisode]:
        settings = self._settings(self.config, level=self.level, greedy=greedy)
        return self._play(tasks, self.config.group_size, settings)

    def _play_demonstrations(
        self,
        tasks: Sequence[Task],
        policy_share: float,
        mixing: str,
        only_successes: bool,
        crops: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> list[SingleAgentEpisode]:
        teacher = self._teacher
        demonstrations = DemonstrationSettings(
            answer=teacher.answer,
            lesson=partial(teacher.portraits, crops, np.random.default_rng(self._draw_seed()))
            if crops
            else teacher.lesson,
            policy_share=policy_share,
            mixing=mixing,  # type: ignore[arg-type]
        )
        settings = self._settings(self.config, level=self.level, demonstrations=demonstrations)
        settings = replace(settings, options={**settings.options, **(options or {})})
        episodes = self._play(tasks, 1, settings)
        return [e for e in episodes if len(e) and (e.custom_data[SUCCESS] or not only_successes)]

    def sample_heldout(
        self, tasks: Sequence[Task], options: Mapping[str, Any] | None = None
    ) -> list[SingleAgentEpisode]:
        """Plays held-out tasks, one episode each, by the settings of evaluation. The full task: no curriculum.

        `options` of the resets go before those of the settings. A task whose simulator fails for good gives way to
        one far beyond those that are ever asked for.
        """
        if self._evaluation_config is None:
            self._evaluation_config = self.config.get_evaluation_config_object()
        settings = self._settings(self._evaluation_config, level=None)
        settings = replace(settings, options={**settings.options, **(options or {})})
        return self._play(tasks, 1, settings, replacement=self._spare.draw, counted=False)

    def sample_demonstrations(
        self,
        num_episodes: int,
        policy_share: float = 0.0,
        mixing: str = "turn",
        only_successes: bool = False,
    ) -> list[SingleAgentEpisode]:
        """Plays training tasks with the simulator's expert: its answers are the episodes' actions.

        Args:
            num_episodes: episodes to play, one per task.
            policy_share: probability that the policy acts, while the expert labels all states it visits.
            mixing: who acts is drawn each "turn" or once an "episode".
            only_successes: leave out episodes that failed; fewer come back then.
        """
        tasks = [self.tasks.draw() for _ in range(num_episodes)]
        return self._play_demonstrations(tasks, policy_share, mixing, only_successes)

    @override(SingleAgentEnvRunner)
    def get_metrics(self) -> Any:
        return self.metrics.reduce()

    @override(SingleAgentEnvRunner)
    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> Any:
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(TASK_CURSOR, components, not_components):
            state[TASK_CURSOR] = self.tasks.cursor
        return state

    @override(SingleAgentEnvRunner)
    def set_state(self, state: Any) -> None:
        """RLlib's, and weights go through the generation backend with their version.

        Beside all weights, `rl_module` may hold those that learn, and `FROZEN` say where the others are.
        """
        state = dict(state)
        self.tasks.cursor = state.pop(TASK_CURSOR, self.tasks.cursor)
        weights = state.pop("rl_module", None)
        frozen: FrozenWeights | None = state.pop(FROZEN, None)
        version = state.get(WEIGHTS_SEQ_NO, 0)
        super().set_state(state)
        if weights is None:
            return
        weights = self._weights.read(weights, frozen, version=version, present=self.module.policy_version)
        if weights is None:
            return
        self.module.load_policy(weights, version=version)
        self._weights_seq_no = version

    def share_module(self, module: Any) -> None:
        """Generates with a learner's own module from now on: one copy of the weights in this process."""
        if self.module is not None:
            self.module.close()
        self.module = module

    def set_policy_version(self, version: int) -> None:
        """The shared module's weights have moved on."""
        self.module.load_policy({}, version=version)
        self._weights_seq_no = version

    def follow_engines(self, engines: Sequence[Any], version: int) -> None:
        """Generates with these engines, which hold the policy of this version."""
        self.module.backend.connect(engines)
        self.set_policy_version(version)

    def probe(self) -> tuple[Prompt, Completion]:
        """A prompt and this runner's answer to it, for a learner to say how likely it is by its own weights."""
        text = self.pool.spec.description
        prompt = self.module.family.encode([Message(role="user", text=text)])
        sampling = replace(self.config.sampling_params, max_new_tokens=_PROBE_TOKENS)
        return prompt, self.module.generate([prompt], sampling)[0]

    @override(EnvRunner)
    def stop(self) -> None:
        self.forget()
        if self.env is not None:
            self.env.close()
        if self.module is not None:
            self.module.close()

    # Helpers.

    def _play(
        self,
        tasks: Sequence[Task],
        group_size: int,
        settings: RolloutSettings,
        replacement: Any = None,
        counted: bool = True,
    ) -> list[SingleAgentEpisode]:
        self.forget()  # they have the slots
        queue: EpisodeQueue = GroupQueue(
            tasks,
            group_size,
            replacement=replacement or self._replacements.draw,
            max_retries=self.config.simulator_max_retries,
        )
        rollout = self._rollout(settings)
        return self._perform(rollout, queue, rollout.run, counted=counted)

    def _play_on(self, tasks: Mapping[int, Task], wanted: int) -> list[SingleAgentEpisode]:
        settings = self._settings(self.config, level=None)
        if self._open is None:
            retries = self.config.simulator_max_retries
            queue: OpenGroups[SingleAgentEpisode] = OpenGroups(
                self.config.group_size, replacement=self._replacements.draw, max_retries=retries
            )
            self._open = self._rollout(settings), queue
        rollout, queue = self._open
        rollout.settings = settings
        # Siblings may begin in several calls, and all of them begin alike.
        queue.hold(tasks, wanted, {} if self.level is None else {"level": self.level})
        try:
            return self._perform(rollout, queue, rollout.play)
        except BaseException:
            self.forget()
            raise

    def _rollout(self, settings: RolloutSettings) -> Rollout:
        return Rollout(
            pool=self.pool,
            backend=self.module.backend,
            render=self._render_prompts,
            parse=self._parse_answers,
            settings=settings,
            on_event=self._on_event,
        )

    def _perform(
        self,
        rollout: Rollout,
        queue: EpisodeQueue,
        play: Callable[[EpisodeQueue], list[SingleAgentEpisode]],
        *,
        counted: bool = True,
    ) -> list[SingleAgentEpisode]:
        """What `play` makes of the queue, with everything around it: threads, metrics and callbacks."""
        if self.config.env_runner_torch_threads:
            torch.set_num_threads(self.config.env_runner_torch_threads)
        start = time.perf_counter()
        was_training = self.module.training
        self.module.eval()
        with torch.no_grad():
            episodes = play(queue)
        self.module.train(was_training)
        for message in rollout.counts.failures[:3]:
            logger.warning("a simulator lost its episode: %s", message)
        wall_s = time.perf_counter() - start
        log_rollout(
            self.metrics, episodes, rollout.counts, queue, wall_s, self._weights_seq_no, rollout.num_under_way
        )
        if counted:
            self._increase_sampled_metrics(sum(len(e) for e in episodes), len(episodes))
            self.num_env_steps_sampled_lifetime += sum(len(e) for e in episodes)
        self._num_samples += 1
        make_callback(
            "on_sample_end",
            callbacks_objects=self._callbacks,
            callbacks_functions=self.config.callbacks_on_sample_end,
            kwargs={"env_runner": self, "metrics_logger": self.metrics, "samples": episodes},
        )
        return episodes

    def _settings(
        self,
        config: Any,
        *,
        level: float | None,
        demonstrations: DemonstrationSettings | None = None,
        greedy: bool = False,
    ) -> RolloutSettings:
        params = config.sampling_params
        if greedy:
            params = replace(params, temperature=0.0)
        options = dict(config.reset_options)
        if level is not None:
            options["level"] = level
        return RolloutSettings(
            sampling=params,
            max_turns=config.max_turns,
            max_actions=config.max_actions_per_turn,
            options=options,
            format_reward=config.format_reward,
            invalid_penalty=config.invalid_penalty,
            render_final=config.bootstraps and not config.in_evaluation,
            demonstrations=demonstrations,
            seed=self._draw_seed(evaluates=config.in_evaluation),
            batch_wait_s=config.batch_wait_ms / 1e3,
        )

    def _draw_seed(self, *, evaluates: bool = False) -> int:
        """Of what this runner draws in its present call of a `play` method; evaluations are all alike."""
        call = self._num_samples if self._given_seed is None else self._given_seed
        mixed = [self.config.seed or 0, 0 if evaluates else call, self._position]
        return int(np.random.SeedSequence(mixed).generate_state(1)[0])

    def _render_prompts(self, episodes: Sequence[SingleAgentEpisode]) -> list[Prompt]:
        batch = self._env_to_module(
            rl_module=self.module, batch={}, episodes=list(episodes), explore=True, shared_data={}
        )
        prompts: list[Prompt] = batch[VLMColumns.PROMPTS]
        return prompts

    def _parse_answers(
        self, completions: Sequence[Completion], episodes: Sequence[SingleAgentEpisode]
    ) -> list[ParsedAction]:
        batch = self._module_to_env(
            rl_module=self.module,
            batch={VLMColumns.ACTIONS: list(completions)},
            episodes=list(episodes),
            explore=True,
            shared_data={},
        )
        parsed: list[ParsedAction] = batch[VLMColumns.PARSED]
        return parsed

    @property
    def _teacher(self) -> Teacher:
        parser = next(c for c in self._module_to_env.connectors if isinstance(c, ParseActions))
        return Teacher(self.module.family, parser.format, lambda: self._weights_seq_no)

    def _on_event(self, which: str, episode: SingleAgentEpisode, slot: int) -> None:
        kwargs: dict[str, Any] = {
            "episode": episode,
            "env_runner": self,
            "metrics_logger": self.metrics,
            "env": self.pool,
            "rl_module": self.module,
            "env_index": slot,
        }
        if which == "on_episode_end":
            kwargs["prev_episode_chunks"] = []
            if self._tell is not None:
                self._tell()
        make_callback(
            which,
            callbacks_objects=self._callbacks,
            callbacks_functions=getattr(self.config, f"callbacks_{which}"),
            kwargs=kwargs,
        )
