"""Configuration shared by every algorithm of this package."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.annotations import override

from rllib_vlm import registry
from rllib_vlm.algorithms.agent_config import AgentConfig
from rllib_vlm.algorithms.placement import Placement
from rllib_vlm.algorithms.validation import check, engines_of
from rllib_vlm.backends.vllm.settings import VLLMSettings
from rllib_vlm.connectors import pipelines
from rllib_vlm.core.engines.base import EngineKind, EngineSettings, Offload
from rllib_vlm.core.loss_terms import LossSettings
from rllib_vlm.core.optimizers import Optimizer
from rllib_vlm.core.update_plan import KLPlace, Reference, Schedule
from rllib_vlm.env.simulator_process import SimulatorSpec
from rllib_vlm.env.slots import SlotPool
from rllib_vlm.errors import ConfigErrors
from rllib_vlm.losses.kl import KLEstimator
from rllib_vlm.losses.policy import PolicyLoss
from rllib_vlm.losses.ratio import RatioLevel
from rllib_vlm.losses.reduce import Reduction
from rllib_vlm.models.precision import Precision
from rllib_vlm.prompts import only_grows

_SESSION_CACHE_MIB = 256


class VLMAlgorithmConfig(AgentConfig):
    """RLlib's settings and those of agents that answer in text.

    Beside RLlib's own builder methods there are `prompting`, `generation`, `simulation` and
    `warm_start`, and more arguments for `training`, `learners`, `env_runners` and `evaluation`.
    Some of RLlib's arguments have no meaning here: batches are counted in whole groups of episodes
    (`groups_per_update` x `group_size`), not in time steps.
    """

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class)
        self._host_defaults()
        # training
        self.groups_per_update = 16
        self.group_size = 1
        self.sampling_rounds = 0
        self.credit = "gae"
        self.credit_options: dict[str, Any] = {}
        self.bootstrap_truncated = True
        self.normalize_advantages = False
        self.clip_low = 0.2
        self.clip_high: float | None = None
        self.dual_clip: float | None = None
        self.policy_loss: PolicyLoss = "ppo_clip"
        self.ratio_level: RatioLevel = "token"
        self.policy_loss_coeff = 1.0
        self.value_loss_coeff = 0.0
        self.value_clip: float | None = None
        self.value_huber: float | None = None
        self.entropy_coeff = 0.0
        self.entropy_floor: float | None = None
        self.kl_coeff = 0.0
        self.kl_target: float | None = None
        self.kl_estimator: KLEstimator = "k3"
        self.kl_in: KLPlace = "loss"
        self.kl_reference: Reference = "copy"
        self.loss_reduction: Reduction = "token_mean"
        self.loss_reduction_constant: float | None = None
        self.mask_truncated = False
        self.span_weights: dict[str, float] = {}
        self.old_logprobs = "sampler"
        self.mismatch: dict[str, Any] = {}
        self.drop_uninformative = False
        self.downsample = 1.0
        self.critic_warmup_updates = 0
        self.value_lr: float | None = None
        self.lr_schedule: Schedule = "constant"
        self.lr_warmup_updates = 0
        self.lr_final_fraction = 0.0
        self.lr_schedule_by_time = False
        self.total_updates: int | None = None
        self.time_budget_s: float | None = None
        self.precision: Precision = "float32"
        self.step_guard: dict[str, Any] = {}
        self.optimizer_type: Optimizer = "adamw"
        self.weight_decay = 0.01
        self.adam_betas: tuple[float, float] = (0.9, 0.999)
        self.adam_epsilon = 1e-8
        self.row_tokens = 2048
        self.micro_batch_tokens = 2048
        self.packing = True
        self.logprob_chunk = 1024
        self.log_entropy = True
        self.learner_engine: EngineKind = "plain"
        self.zero_stage = 2
        self.offload_optimizer: Offload = "none"
        self.engine_options: dict[str, Any] = {}
        self.learner_torch_threads: int | None = None
        self.env_runner_torch_threads: int | None = 1
        self.batch_wait_ms = 20.0
        self.one_step_off_policy = False
        self.partial_rollouts = 0
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
        self.placement: Placement = "separate"
        self.nodes_wait_s = 0.0
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

    @override(AlgorithmConfig)
    def training(
        self,
        *,
        groups_per_update: Any = NotProvided,
        group_size: Any = NotProvided,
        sampling_rounds: Any = NotProvided,
        credit: Any = NotProvided,
        credit_options: Any = NotProvided,
        bootstrap_truncated: Any = NotProvided,
        normalize_advantages: Any = NotProvided,
        clip_low: Any = NotProvided,
        clip_high: Any = NotProvided,
        dual_clip: Any = NotProvided,
        policy_loss: Any = NotProvided,
        ratio_level: Any = NotProvided,
        policy_loss_coeff: Any = NotProvided,
        value_loss_coeff: Any = NotProvided,
        value_clip: Any = NotProvided,
        value_huber: Any = NotProvided,
        entropy_coeff: Any = NotProvided,
        entropy_floor: Any = NotProvided,
        kl_coeff: Any = NotProvided,
        kl_target: Any = NotProvided,
        kl_estimator: Any = NotProvided,
        kl_in: Any = NotProvided,
        kl_reference: Any = NotProvided,
        loss_reduction: Any = NotProvided,
        loss_reduction_constant: Any = NotProvided,
        mask_truncated: Any = NotProvided,
        span_weights: Any = NotProvided,
        old_logprobs: Any = NotProvided,
        mismatch: Any = NotProvided,
        drop_uninformative: Any = NotProvided,
        downsample: Any = NotProvided,
        critic_warmup_updates: Any = NotProvided,
        value_lr: Any = NotProvided,
        lr_schedule: Any = NotProvided,
        lr_warmup_updates: Any = NotProvided,
        lr_final_fraction: Any = NotProvided,
        lr_schedule_by_time: Any = NotProvided,
        total_updates: Any = NotProvided,
        time_budget_s: Any = NotProvided,
        precision: Any = NotProvided,
        step_guard: Any = NotProvided,
        optimizer_type: Any = NotProvided,
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
            sampling_rounds: groups whose members all earned the same are dropped, counted, and made up for by new ones,
                in at most so many rounds of sampling in all; 0 keeps them (DAPO's dynamic sampling, with a bound).
            credit: advantage estimator, a name of the table `credit`.
            credit_options: of the estimator, e.g. `{gamma: 0.99, lam: 0.95}`.
            bootstrap_truncated: an episode that a limit cuts is worth what the critic says of its last state, as if it
                went on; false: it is over, which is right where running out of turns is failing.
            normalize_advantages: to mean 0 and spread 1 over the tokens of the update.
            clip_low: how far a ratio may fall below 1.
            clip_high: how far it may rise above 1; nothing is `clip_low`.
            dual_clip: bound of the loss at negative advantages.
            policy_loss: "ppo_clip", "cispo", or "gspo": "ppo_clip" at the level "sequence", which wants small
                clips, e.g. 3e-4 and 4e-4.
            ratio_level: whose importance ratio is clipped: each "token"'s, or the mean of its "turn" or "sequence".
            policy_loss_coeff: weight of the policy loss.
            value_loss_coeff: weight of the critic's loss; 0 needs no critic.
            value_clip: largest useful change of a value.
            value_huber: error of a value from which on its loss grows linearly.
            entropy_coeff: weight of the entropy bonus.
            entropy_floor: nats of a token from which on it earns no more bonus; None pays for any entropy.
            kl_coeff: weight of the KL to the policy that reinforcement learning started from.
            kl_target: nats a token that the weight is moved to keep: doubled above 1.5 times as much, halved below.
            kl_estimator: "k1", "k2" or "k3", in the loss.
            kl_in: "loss", or "reward": then each token is rewarded with -kl_coeff * k1, and credit spreads it; the
                estimators of the driver cost another reading of the rows for it.
            kl_reference: "copy" of the policy that reinforcement learning started from, or "adapters_off": the model
                without its LoRA, which costs no memory.
            loss_reduction: "token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum" or "fixed".
            loss_reduction_constant: the divisor of "fixed", tokens per row.
            mask_truncated: answers cut at the token limit teach the policy nothing.
            span_weights: of parts of an answer in the policy's loss, by the parser's names for them, and "rest":
                `{reasoning: 0.5}`, or `{answer: 1, rest: 0}` for the actions alone.
            old_logprobs: ratios are taken to the probabilities of the "sampler", or to the "learner"'s own at the
                weights the update starts from, which costs another reading of its rows where there is no critic.
            mismatch: what is done, with the "learner"'s, about tokens the sampler saw another probability of: fields of
                `batching.mismatch.MismatchSettings`, e.g. `{correction: truncate, cap: 2}`.
            drop_uninformative: rows whose advantages are all 0 are not read at all, where no critic learns
                from them (groups that all succeeded, or all failed); means are then over the others.
            downsample: share of an update's rows that are learnt from, those whose advantages are furthest from 0: 0.5
                learns in half the time, from the turns that say most. Without a critic only.
            critic_warmup_updates: first updates that train the critic's head only; the policy stays as it is.
            value_lr: learning rate of the critic's head; nothing is `lr`.
            lr_schedule: "constant", "linear" or "cosine", over `total_updates`.
            lr_warmup_updates: updates of linear warm-up.
            lr_final_fraction: of `lr`, at the end of the schedule.
            lr_schedule_by_time: the schedule ends with `time_budget_s` too, if that is sooner: a machine too slow for
                all updates ends at the low rate as well, and its rates are then those of its clock.
            total_updates: updates after the warm start; then the run evaluates and ends.
            time_budget_s: seconds of reinforcement learning; then the run evaluates and ends.
            precision: of matrix products where it learns. "bfloat16" puts ratios to what the samplers saw off by
                about a percent; "auto" is that where the device multiplies it in hardware, and "float32" elsewhere,
                where it would be many times slower.
            step_guard: limits of one optimizer step and what is done beyond them: fields of
                `core.step_guard.StepGuard`, e.g. `{max_kl: 0.1, action: stop}`.
            optimizer_type: "adamw", or "muon" for the matrices between embeddings and heads (the rest stays with
                AdamW at the same rate): fewer samples where a model learns from nothing.
            weight_decay: on matrices only.
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
    def resources(
        self, *, placement: Any = NotProvided, nodes_wait_s: Any = NotProvided, **kwargs: Any
    ) -> Self:
        """RLlib's `resources`, and who is beside whom. docs/placement.md.

        Args:
            placement: "separate": who samples (engines, or env runners) and who learns have GPUs of their own.
                "shared": an engine (or runner) and a learner on each GPU, by the fractions they ask for, and both stay
                in its memory. "hybrid": the same, and who rests leaves the GPU's memory until its turn comes.
            nodes_wait_s: seconds in which nodes may join before a trial that does not fit is refused; an
                autoscaler is told what is missing. 0 refuses at once.
            **kwargs: of `AlgorithmConfig.resources`, such as `placement_strategy`.

        Returns:
            This updated AlgorithmConfig object.
        """
        self._update({"self": self, "placement": placement, "nodes_wait_s": nodes_wait_s})
        super().resources(**kwargs)
        return self

    @override(AlgorithmConfig)
    def learners(
        self,
        *,
        engine: Any = NotProvided,
        zero_stage: Any = NotProvided,
        offload_optimizer: Any = NotProvided,
        engine_options: Any = NotProvided,
        torch_threads: Any = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """RLlib's `learners`, and what learners learn with (docs/engines.md).

        Args:
            engine: "plain": every learner holds all weights and optimizer state; "deepspeed": they are in parts on the
                learners.
            zero_stage: of DeepSpeed, what is in parts: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too.
            offload_optimizer: where DeepSpeed keeps optimizer state and takes its steps: "none" is the learner's
                device, "cpu" spares a GPU's memory.
            engine_options: of DeepSpeed's own configuration, e.g. `{zero_optimization: {overlap_comm: true}}`.
            torch_threads: CPU threads of a learner. By default a learner in the driver takes all of the machine (the
                env runners rest meanwhile), and learner actors as many as `num_cpus_per_learner`.
            **kwargs: of `AlgorithmConfig.learners`.

        Returns:
            This updated AlgorithmConfig object.
        """
        given = {
            "learner_engine": engine, "zero_stage": zero_stage, "offload_optimizer": offload_optimizer,
            "engine_options": engine_options, "learner_torch_threads": torch_threads,
        }  # fmt: skip
        self._update({"self": self, **given})
        super().learners(**kwargs)
        return self

    @override(AlgorithmConfig)
    def env_runners(
        self,
        *,
        torch_threads: Any = NotProvided,
        batch_wait_ms: Any = NotProvided,
        one_step_off_policy: Any = NotProvided,
        partial_rollouts: Any = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """RLlib's `env_runners`, how each of them generates, and what an update waits for (docs/performance.md).

        Args:
            torch_threads: CPU threads of an env runner.
            batch_wait_ms: how long a prompt may wait for other simulators' to be answered in one batch. Simulators
                that have been at their turn for longer are not waited for. Backends that batch by themselves get
                every prompt at once.
            one_step_off_policy: while an update learns, the next one's episodes are sampled already, by the weights
                that it starts from.
            partial_rollouts: groups under way beyond the `groups_per_update` of an update: it takes the first that are
                whole, and the episodes of the others go on by its weights. 0 waits for all.
            **kwargs: of `AlgorithmConfig.env_runners`.

        Returns:
            This updated AlgorithmConfig object.
        """
        given = {
            "env_runner_torch_threads": torch_threads, "batch_wait_ms": batch_wait_ms,
            "one_step_off_policy": one_step_off_policy, "partial_rollouts": partial_rollouts,
        }  # fmt: skip
        self._update({"self": self, **given})
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

    # What the rest of the package reads.

    @property
    def needs_critic(self) -> bool:
        return bool(self.value_loss_coeff) or self.credit_stage == "learner"

    @property
    def bootstraps(self) -> bool:
        """Whether cut episodes are worth what a critic says of their last state."""
        return self.credit_stage == "learner" and bool(self.bootstrap_truncated)

    @property
    def credit_stage(self) -> str:
        stage: str = registry.resolve("credit", self.credit).stage
        return stage

    def loss_settings(
        self, *, critic_only: bool = False, kl_coeff: float | None = None, clip_scale: float = 1.0
    ) -> LossSettings:
        """Of an update of reinforcement learning; `clip_scale` is of the clip range."""
        coefficients = {
            "policy": self.policy_loss_coeff,
            "value": self.value_loss_coeff,
            "entropy": self.entropy_coeff,
            "kl": 0.0 if self.kl_in == "reward" else self.kl_coeff if kl_coeff is None else kl_coeff,
        }
        if critic_only:
            coefficients = {"value": self.value_loss_coeff}
        settings = self._loss_settings(coefficients)
        return replace(
            settings, clip_low=settings.clip_low * clip_scale, clip_high=settings.clip_high * clip_scale
        )

    @property
    def engine_settings(self) -> EngineSettings:
        """What learners learn with."""
        return EngineSettings(
            kind=self.learner_engine,
            zero_stage=self.zero_stage,
            offload_optimizer=self.offload_optimizer,
            options=self.engine_options,
            optimizer=self.optimizer_type,
            lr=self.lr,
            weight_decay=self.weight_decay,
            betas=(self.adam_betas[0], self.adam_betas[1]),
            epsilon=self.adam_epsilon,
            grad_clip=self.grad_clip,
        )

    def imitates(self, update: int) -> bool:
        """Whether this update of the warm start teaches answers; the first ones, and some later, teach seeing alone."""
        done = update - self.warm_start_grounding_updates
        every = self.warm_start_grounding_every
        return done >= 0 and (not every or (done + 1) % every != 0)

    def policy_share(self, update: int) -> float:
        """How often the policy acts in this update of the warm start."""
        done = update - self.warm_start_grounding_updates
        if not self.imitates(update):
            return 0.0
        grown = (done + 1) / (self.warm_start_policy_share_updates + 1)
        return float(self.warm_start_policy_share) * min(1.0, grown)

    @property
    def grounding_settings(self) -> dict[str, Any]:
        """How episodes are played that teach seeing alone."""
        return {"crops": self.warm_start_grounding_crops, "options": self.warm_start_grounding_options}

    def warm_start_rows(self, update: int) -> int | None:
        """Rows of an optimizer step in this update of the warm start."""
        own = None if self.imitates(update) else self.warm_start_grounding_minibatch_size
        return self.warm_start_minibatch_size if own is None else own

    def imitation_settings(self, update: int) -> LossSettings:
        """Of an update of imitation; they count from 0."""
        imitates = float(self.imitates(update))
        grounding = self.warm_start_grounding_coeff
        return self._loss_settings(
            {"imitation": imitates, "grounding": grounding, "referring": grounding * imitates}
        )

    def _loss_settings(self, coefficients: Mapping[str, float]) -> LossSettings:
        return LossSettings(
            coefficients=dict(coefficients),
            policy_loss=self.policy_loss,
            ratio_level=self.ratio_level,
            clip_low=self.clip_low,
            clip_high=self.clip_low if self.clip_high is None else self.clip_high,
            dual_clip=self.dual_clip,
            value_clip=self.value_clip,
            value_huber=self.value_huber,
            entropy_floor=self.entropy_floor,
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
            "backend_options": self._backend_options(),
            "temperature": float(self.temperature),
            "top_p": float(self.top_p),
            "max_new_tokens": int(self.max_new_tokens),
            "logprob_chunk": int(self.logprob_chunk),
        }

    @property
    def vllm_settings(self) -> VLLMSettings:
        """Of the engines that env runners share.

        Raises:
            ConfigErrors: options there are not, or values out of their range.
        """
        return VLLMSettings.read(self._engine_values())

    @property
    @override(AgentConfig)
    def engine_bundles(self) -> list[dict[str, float]]:
        return self.vllm_settings.bundles() if engines_of(self.backend) else []

    def _engine_values(self) -> dict[str, Any]:
        """`engine`, and what the run's other settings say of engines."""
        given = self._model_config if isinstance(self._model_config, dict) else {}
        known = {"max_model_len": self.row_tokens, "dtype": given.get("dtype", "float32")}
        return known | (self.engine if isinstance(self.engine, dict) else {})

    def _backend_options(self) -> dict[str, Any]:
        if engines_of(self.backend):
            return {"engine": self._engine_values(), "shared": True, **self.backend_options}
        if self.backend != "hf":
            return dict(self.backend_options)
        kept = self.session_cache_mib
        if kept is None:
            kept = _SESSION_CACHE_MIB if only_grows(self.history) else 0
        return {
            "session_cache_mib": kept,
            "prompt_precision": self.prompt_precision,
            **self.backend_options,
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
            span_weights=self.span_weights,
            old_logprobs=self.old_logprobs,
            mismatch=self.mismatch,
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
        except Exception as error:  # noqa: BLE001  (RLlib compares and converts before it asks what it was given)
            text = str(error).split("\nTo suppress", maxsplit=1)[0]
            known = any(e.split(" ", 1)[0] in re.findall(r"`(\w+)`", text) for e in errors)
            if not errors or (isinstance(error, ValueError) and not known):
                errors.append(text or type(error).__name__)
        if errors:
            raise ConfigErrors(type(self).__name__, errors)


def _extend(pipeline: Any, pieces: Sequence[Any]) -> Any:
    for piece in pieces:
        pipeline.append(piece)
    return pipeline


def _spec(env: Any) -> SimulatorSpec | None:
    return env.unwrapped.spec if env is not None and isinstance(env.unwrapped, SlotPool) else None
