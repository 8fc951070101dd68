"""Configuration shared by every algorithm of this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.annotations import override
from typing_extensions import Self

from rllib_vlm import registry
from rllib_vlm.algorithms.validation import check
from rllib_vlm.connectors import pipelines
from rllib_vlm.core.loss_terms import LossSettings
from rllib_vlm.env.simulator_process import SimulatorSpec
from rllib_vlm.env.slots import Deadlines, SlotPool
from rllib_vlm.errors import ConfigErrors
from rllib_vlm.types import SamplingParams


class VLMAlgorithmConfig(AlgorithmConfig):
    """RLlib's settings and those of agents that answer in text.

    Beside RLlib's own builder methods there are `prompting`, `generation`, `simulation` and
    `warm_start`, and more arguments for `training`, `learners`, `env_runners` and `evaluation`.
    Some of RLlib's arguments have no meaning here: batches are counted in whole groups of episodes
    (`groups_per_update` x `group_size`), not in time steps.
    """

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class)
        self._host_defaults()
        # simulation
        self.simulator_process = "inline"
        self.simulator_start_deadline_s = 120.0
        self.simulator_reset_deadline_s = 60.0
        self.simulator_turn_deadline_s = 60.0
        self.simulator_max_retries = 2
        self.max_turns = 100
        self.num_task_seeds: int | None = None
        self.reset_options: dict[str, Any] = {}
        self.curriculum: dict[str, Any] | None = None
        # prompting
        self.parser = "no_think"
        self.parser_options: dict[str, Any] = {}
        self.history: str | dict[str, Any] = "current"
        self.template = "default"
        self.max_actions_per_turn = 1
        self.observation = "vision"
        self.image_placeholder: str | None = None
        self.max_images: int | None = None
        self.max_prompt_tokens: int | None = None
        self.format_reward = 0.0
        self.invalid_penalty = 0.0
        # generation
        self.backend = "hf"
        self.backend_options: dict[str, Any] = {}
        self.temperature = 1.0
        self.top_p = 1.0
        self.max_new_tokens = 64
        self.stop: tuple[str, ...] = ()
        # warm start
        self.warm_start_updates = 0
        self.warm_start_episodes_per_update = 32
        self.warm_start_epochs = 1
        self.warm_start_minibatch_size: int | None = 32
        self.warm_start_lr: float | None = None
        self.warm_start_lr_schedule = "constant"
        self.warm_start_warmup_updates = 0
        self.warm_start_policy_share = 0.0
        self.warm_start_mixing = "turn"
        self.warm_start_demonstrations: str | None = None
        self.warm_start_buffer_episodes = 0
        self.warm_start_only_successes = False
        self.warm_start_time_budget_s: float | None = None
        # training
        self.groups_per_update = 16
        self.group_size = 1
        self.credit = "gae"
        self.credit_options: dict[str, Any] = {}
        self.normalize_advantages = False
        self.clip_low = 0.2
        self.clip_high: float | None = None
        self.dual_clip: float | None = None
        self.policy_loss_coeff = 1.0
        self.value_loss_coeff = 0.0
        self.value_clip: float | None = None
        self.entropy_coeff = 0.0
        self.kl_coeff = 0.0
        self.kl_estimator = "k3"
        self.imitation_coeff = 0.0
        self.loss_reduction = "token_mean"
        self.loss_reduction_constant: float | None = None
        self.mask_truncated = False
        self.drop_uninformative = False
        self.critic_warmup_updates = 0
        self.value_lr: float | None = None
        self.lr_schedule = "constant"
        self.lr_warmup_updates = 0
        self.lr_final_fraction = 0.0
        self.total_updates: int | None = None
        self.time_budget_s: float | None = None
        self.weight_decay = 0.01
        self.adam_betas: tuple[float, float] = (0.9, 0.999)
        self.adam_epsilon = 1e-8
        self.row_tokens = 2048
        self.micro_batch_tokens = 8192
        self.packing = True
        self.logprob_chunk = 1024
        self.log_entropy = True
        self.learner_torch_threads: int | None = None
        self.env_runner_torch_threads: int | None = 1
        # evaluation
        self.evaluation_at: tuple[str, ...] = ("warm_start_end", "final")

    def _host_defaults(self) -> None:
        """What RLlib would do to episodes and batches, and ragged tokens cannot bear, is turned off."""
        from rllib_vlm.env.vlm_env_runner import VLMEnvRunner  # after this module, which it needs

        self.env_runner_cls = VLMEnvRunner
        self.add_default_connectors_to_env_to_module_pipeline = False
        self.add_default_connectors_to_module_to_env_pipeline = False
        self.add_default_connectors_to_learner_pipeline = False
        self.episodes_to_numpy = False
        self.batch_mode = "complete_episodes"
        self.create_local_env_runner = False
        self.num_env_runners = 2
        self.num_cpus_per_env_runner = 0.5
        self.num_envs_per_env_runner = 8
        self.seed = 0
        self.lr = 1e-5
        self.grad_clip = 1.0
        self.grad_clip_by = "global_norm"
        self.sample_timeout_s = None
        self.evaluation_sample_timeout_s = None
        self.evaluation_duration = 100
        self.evaluation_config = {"temperature": 0.0}
        self._is_atari = False

    # Builder methods.

    def prompting(
        self,
        *,
        parser: Any = NotProvided,
        parser_options: Any = NotProvided,
        history: Any = NotProvided,
        template: Any = NotProvided,
        max_actions_per_turn: Any = NotProvided,
        observation: Any = NotProvided,
        image_placeholder: Any = NotProvided,
        max_images: Any = NotProvided,
        max_prompt_tokens: Any = NotProvided,
        format_reward: Any = NotProvided,
        invalid_penalty: Any = NotProvided,
    ) -> Self:
        """What the model is shown and how it answers.

        Args:
            parser: the answer format, a name of the table `parsers`.
            parser_options: of the parser.
            history: which past turns are shown: "full", "current", "last_4" or {name: ..., ...}.
            template: the system prompt, a name or the path of a file ending in ".md".
            max_actions_per_turn: actions one answer may hold.
            observation: "vision" shows images and text, "text" only text.
            image_placeholder: shown instead of images, if set.
            max_images: images a prompt may hold.
            max_prompt_tokens: tokens a prompt may hold; older turns are cut, whole, and counted.
            format_reward: added for every turn whose answer parses.
            invalid_penalty: taken off for every turn whose answer does not.

        Returns:
            This updated AlgorithmConfig object.
        """
        return self._update(locals())

    def generation(
        self,
        *,
        backend: Any = NotProvided,
        backend_options: Any = NotProvided,
        temperature: Any = NotProvided,
        top_p: Any = NotProvided,
        max_new_tokens: Any = NotProvided,
        stop: Any = NotProvided,
    ) -> Self:
        """How answers are sampled. `evaluation_config` may set the same names for evaluation.

        Args:
            backend: a name of the table `backends`.
            backend_options: of the backend.
            temperature: 0 is greedy, which reinforcement learning cannot use.
            top_p: mass of the nucleus that is sampled from.
            max_new_tokens: tokens an answer may have.
            stop: strings after which an answer ends.

        Returns:
            This updated AlgorithmConfig object.
        """
        if isinstance(stop, str):
            stop = (stop,)
        return self._update(locals())

    def simulation(
        self,
        *,
        process: Any = NotProvided,
        start_deadline_s: Any = NotProvided,
        reset_deadline_s: Any = NotProvided,
        turn_deadline_s: Any = NotProvided,
        max_retries: Any = NotProvided,
        max_turns: Any = NotProvided,
        num_task_seeds: Any = NotProvided,
        reset_options: Any = NotProvided,
        curriculum: Any = NotProvided,
    ) -> Self:
        """How simulators are run.

        Args:
            process: "inline", or "subprocess" for a process per simulator, which may hang or die.
            start_deadline_s: seconds a simulator may take to start.
            reset_deadline_s: seconds a reset may take.
            turn_deadline_s: seconds a turn may take.
            max_retries: failures a group of episodes may have before another task replaces it.
            max_turns: turns after which an episode is cut.
            num_task_seeds: training tasks there are; nothing draws ever new ones.
            reset_options: `options` of every reset, in training and evaluation.
            curriculum: how `level` of training resets grows: `{start, end, updates}` linearly, or
                `{start, step, threshold}` by a step after each update whose success rate reaches the
                threshold. Nothing leaves the level out. Evaluation always plays the full task.

        Returns:
            This updated AlgorithmConfig object.
        """
        values = locals()
        renamed = {"process", "start_deadline_s", "reset_deadline_s", "turn_deadline_s", "max_retries"}
        return self._update({f"simulator_{k}" if k in renamed else k: v for k, v in values.items()})

    def warm_start(
        self,
        *,
        updates: Any = NotProvided,
        episodes_per_update: Any = NotProvided,
        epochs: Any = NotProvided,
        minibatch_size: Any = NotProvided,
        lr: Any = NotProvided,
        lr_schedule: Any = NotProvided,
        warmup_updates: Any = NotProvided,
        policy_share: Any = NotProvided,
        mixing: Any = NotProvided,
        demonstrations: Any = NotProvided,
        buffer_episodes: Any = NotProvided,
        only_successes: Any = NotProvided,
        time_budget_s: Any = NotProvided,
    ) -> Self:
        """Imitation before reinforcement learning.

        Args:
            updates: training iterations of imitation; 0 is no warm start.
            episodes_per_update: demonstrations read in each.
            epochs: times each is read.
            minibatch_size: rows of one optimizer step; nothing reads all in one.
            lr: learning rate; nothing is that of `training`.
            lr_schedule: "constant", "linear" or "cosine", over `updates`.
            warmup_updates: iterations of linear warm-up.
            policy_share: how often the policy acts while the expert labels (DAgger), 0 to 1.
            mixing: who acts is drawn each "turn" or once an "episode".
            demonstrations: path of recorded ones; nothing collects live ones from the simulator's expert.
            buffer_episodes: older live demonstrations to keep and read again, drawn at random; each
                iteration then reads as many old as new ones.
            only_successes: leave out demonstrations of episodes that failed.
            time_budget_s: seconds after which the warm start ends, whatever `updates` says.

        Returns:
            This updated AlgorithmConfig object.
        """
        return self._update({f"warm_start_{k}" if k != "self" else k: v for k, v in locals().items()})

    @override(AlgorithmConfig)
    def training(
        self,
        *,
        groups_per_update: Any = NotProvided,
        group_size: Any = NotProvided,
        credit: Any = NotProvided,
        credit_options: Any = NotProvided,
        normalize_advantages: Any = NotProvided,
        clip_low: Any = NotProvided,
        clip_high: Any = NotProvided,
        dual_clip: Any = NotProvided,
        policy_loss_coeff: Any = NotProvided,
        value_loss_coeff: Any = NotProvided,
        value_clip: Any = NotProvided,
        entropy_coeff: Any = NotProvided,
        kl_coeff: Any = NotProvided,
        kl_estimator: Any = NotProvided,
        loss_reduction: Any = NotProvided,
        loss_reduction_constant: Any = NotProvided,
        mask_truncated: Any = NotProvided,
        drop_uninformative: Any = NotProvided,
        critic_warmup_updates: Any = NotProvided,
        value_lr: Any = NotProvided,
        lr_schedule: Any = NotProvided,
        lr_warmup_updates: Any = NotProvided,
        lr_final_fraction: Any = NotProvided,
        total_updates: Any = NotProvided,
        time_budget_s: Any = NotProvided,
        weight_decay: Any = NotProvided,
        adam_betas: Any = NotProvided,
        adam_epsilon: Any = NotProvided,
        row_tokens: Any = NotProvided,
        micro_batch_tokens: Any = NotProvided,
        packing: Any = NotProvided,
        logprob_chunk: Any = NotProvided,
        log_entropy: Any = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """RLlib's `training` (`lr`, `grad_clip`, `num_epochs`, `minibatch_size`, ...) and ours.

        `minibatch_size` counts rows (turns, or several turns of one growing prompt) of one optimizer
        step over all learners; nothing reads the whole update in one step. `grad_clip` bounds the
        global norm.

        Args:
            groups_per_update: groups of episodes each update learns from, over all env runners.
            group_size: episodes of a group, all of the same task.
            credit: advantage estimator, a name of the table `credit`.
            credit_options: of the estimator, e.g. `{gamma: 0.99, lam: 0.95}`.
            normalize_advantages: to mean 0 and spread 1 over the tokens of the update.
            clip_low: how far a ratio may fall below 1.
            clip_high: how far it may rise above 1; nothing is `clip_low`.
            dual_clip: bound of the loss at negative advantages.
            policy_loss_coeff: weight of the policy loss.
            value_loss_coeff: weight of the critic's loss; 0 needs no critic.
            value_clip: largest useful change of a value.
            entropy_coeff: weight of the entropy bonus.
            kl_coeff: weight of the KL to the policy that reinforcement learning started from.
            kl_estimator: "k1", "k2" or "k3".
            loss_reduction: "token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum" or "fixed".
            loss_reduction_constant: the divisor of "fixed", tokens per row.
            mask_truncated: answers cut at the token limit teach the policy nothing.
            drop_uninformative: rows whose advantages are all 0 are not read at all, where no critic learns
                from them (groups that all succeeded, or all failed); means are then over the others.
            critic_warmup_updates: first updates that train the critic only.
            value_lr: learning rate of the critic's head; nothing is `lr`.
            lr_schedule: "constant", "linear" or "cosine", over `total_updates`.
            lr_warmup_updates: updates of linear warm-up.
            lr_final_fraction: of `lr`, at the end of the schedule.
            total_updates: updates after the warm start; then the run evaluates and ends.
            time_budget_s: seconds of reinforcement learning; then the run evaluates and ends.
            weight_decay: of AdamW, on matrices only.
            adam_betas: of AdamW.
            adam_epsilon: of AdamW.
            row_tokens: length of a packed row, and the longest prompt with its answer.
            micro_batch_tokens: positions of one forward and backward pass, padding included.
            packing: several turns in one row, or one each.
            logprob_chunk: token positions whose logits are held at a time.
            log_entropy: measure the entropy where the loss does not need it.
            **kwargs: of `AlgorithmConfig.training`.

        Returns:
            This updated AlgorithmConfig object.
        """
        self._update({k: v for k, v in locals().items() if k not in ("kwargs", "__class__")})
        super().training(**kwargs)
        return self

    @override(AlgorithmConfig)
    def learners(self, *, torch_threads: Any = NotProvided, **kwargs: Any) -> Self:
        """RLlib's `learners`, and `torch_threads`: CPU threads of a learner.

        By default a learner in the driver takes all of the machine (the env runners rest meanwhile),
        and learner actors as many as `num_cpus_per_learner`.
        """
        self._update({"self": self, "learner_torch_threads": torch_threads})
        super().learners(**kwargs)
        return self

    @override(AlgorithmConfig)
    def env_runners(self, *, torch_threads: Any = NotProvided, **kwargs: Any) -> Self:
        """RLlib's `env_runners`, and `torch_threads`: CPU threads of an env runner."""
        self._update({"self": self, "env_runner_torch_threads": torch_threads})
        super().env_runners(**kwargs)
        return self

    @override(AlgorithmConfig)
    def evaluation(self, *, evaluation_at: Any = NotProvided, **kwargs: Any) -> Self:
        """RLlib's `evaluation`, and when else to evaluate.

        Exactly `evaluation_duration` held-out episodes are played, the same ones each time, by the
        training env runners or, with `evaluation_num_env_runners`, by runners of their own.

        Args:
            evaluation_at: any of "start", "warm_start_end" and "final", beside `evaluation_interval`.
            **kwargs: of `AlgorithmConfig.evaluation`. `evaluation_config` may set `temperature`,
                `top_p`, `max_new_tokens`, `max_turns` and any other setting for evaluation.

        Returns:
            This updated AlgorithmConfig object.
        """
        if isinstance(evaluation_at, str):
            evaluation_at = (evaluation_at,)
        self._update({"self": self, "evaluation_at": evaluation_at})
        super().evaluation(**kwargs)
        return self

    def _update(self, values: Mapping[str, Any]) -> Self:
        for name, value in values.items():
            if name != "self" and value is not NotProvided:
                setattr(self, name, tuple(value) if isinstance(getattr(self, name), tuple) and value else value)
        return self

    # What the rest of the package reads.

    @property
    def prompting_settings(self) -> dict[str, Any]:
        """The arguments of `prompting`, by name, without the rewards."""
        names = (
            "parser",
            "parser_options",
            "history",
            "template",
            "max_actions_per_turn",
            "observation",
            "image_placeholder",
            "max_images",
            "max_prompt_tokens",
        )
        return {name: getattr(self, name) for name in names}

    @property
    def sampling_params(self) -> SamplingParams:
        return SamplingParams(
            temperature=float(self.temperature),
            top_p=float(self.top_p),
            max_new_tokens=int(self.max_new_tokens),
            stop=tuple(self.stop),
        )

    @property
    def deadlines(self) -> Deadlines:
        return Deadlines(
            start_s=self.simulator_start_deadline_s,
            reset_s=self.simulator_reset_deadline_s,
            turn_s=self.simulator_turn_deadline_s,
        )

    @property
    def needs_critic(self) -> bool:
        return bool(self.value_loss_coeff) or self.credit_stage == "learner"

    @property
    def credit_stage(self) -> str:
        stage: str = registry.resolve("credit", self.credit).stage
        return stage

    def loss_settings(self, *, critic_only: bool = False) -> LossSettings:
        """Of an update of reinforcement learning."""
        coefficients = {
            "policy": self.policy_loss_coeff,
            "value": self.value_loss_coeff,
            "entropy": self.entropy_coeff,
            "kl": self.kl_coeff,
        }
        if critic_only:
            coefficients = {"value": self.value_loss_coeff}
        return self._loss_settings(coefficients)

    def imitation_settings(self) -> LossSettings:
        """Of an update of imitation."""
        return self._loss_settings({"imitation": 1.0})

    def _loss_settings(self, coefficients: Mapping[str, float]) -> LossSettings:
        return LossSettings(
            coefficients=dict(coefficients),
            clip_low=self.clip_low,
            clip_high=self.clip_low if self.clip_high is None else self.clip_high,
            dual_clip=self.dual_clip,
            value_clip=self.value_clip,
            kl_estimator=self.kl_estimator,
            reduction=self.loss_reduction,
            reduction_constant=self.loss_reduction_constant,
        )

    # What RLlib asks.

    @property
    @override(AlgorithmConfig)
    def _model_config_auto_includes(self) -> dict[str, Any]:
        return super()._model_config_auto_includes | {
            "family": "qwen2_5_vl",
            "value_head": self.needs_critic,
            "backend": self.backend,
            "backend_options": dict(self.backend_options),
            "temperature": float(self.temperature),
            "top_p": float(self.top_p),
            "max_new_tokens": int(self.max_new_tokens),
            "logprob_chunk": int(self.logprob_chunk),
        }

    @override(AlgorithmConfig)
    def get_default_rl_module_spec(self) -> RLModuleSpec:
        from rllib_vlm.core.rl_module import VLMRLModule

        return RLModuleSpec(module_class=VLMRLModule)

    @override(AlgorithmConfig)
    def get_default_learner_class(self) -> type:
        from rllib_vlm.core.learner import VLMTorchLearner

        return VLMTorchLearner

    @override(AlgorithmConfig)
    def build_env_to_module_connector(self, env: Any = None, spaces: Any = None, device: Any = None) -> Any:
        pipeline = super().build_env_to_module_connector(env=env, spaces=spaces, device=device)
        return _extend(pipeline, pipelines.env_to_module(_spec(env), self.prompting_settings))

    @override(AlgorithmConfig)
    def build_module_to_env_connector(self, env: Any = None, spaces: Any = None) -> Any:
        pipeline = super().build_module_to_env_connector(env=env, spaces=spaces)
        return _extend(pipeline, pipelines.module_to_env(_spec(env), self.prompting_settings))

    @override(AlgorithmConfig)
    def build_learner_connector(
        self, input_observation_space: Any = None, input_action_space: Any = None, device: Any = None
    ) -> Any:
        pipeline = super().build_learner_connector(input_observation_space, input_action_space, device)
        pieces = pipelines.learner(
            credit=self.credit,
            credit_options=self.credit_options,
            row_tokens=self.row_tokens,
            micro_batch_tokens=self.micro_batch_tokens,
            mask_truncated=self.mask_truncated,
            packing=self.packing,
        )
        return _extend(pipeline, pieces)

    @override(AlgorithmConfig)
    def validate(self) -> None:
        """Checks everything, and reports everything that is wrong at once.

        Raises:
            ConfigErrors: what is wrong, one line each.
        """
        if not self._validate_config:
            return
        errors = check(self)
        try:
            super().validate()
        except ConfigErrors:
            raise
        except ValueError as error:
            errors.append(str(error).split("\nTo suppress", maxsplit=1)[0])
        if errors:
            raise ConfigErrors(type(self).__name__, errors)


def _extend(pipeline: Any, pieces: Sequence[Any]) -> Any:
    for piece in pieces:
        pipeline.append(piece)
    return pipeline


def _spec(env: Any) -> SimulatorSpec | None:
    return env.unwrapped.spec if env is not None and isinstance(env.unwrapped, SlotPool) else None
