"""The half of the configuration that is about acting: simulators, prompts, generation, imitation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided

from rllib_vlm.core.update_plan import Schedule
from rllib_vlm.env.slots import Deadlines
from rllib_vlm.models.precision import Precision
from rllib_vlm.types import SamplingParams

# Attributes that say how prompts are made and answers are read.
PROMPTING = (
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


class AgentConfig(AlgorithmConfig):
    """Adds the sections `prompting`, `generation`, `simulation` and `warm_start` to RLlib's."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class)
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
        self.engine: dict[str, Any] = {}
        self.temperature = 1.0
        self.top_p = 1.0
        self.max_new_tokens = 64
        self.stop: tuple[str, ...] = ()
        self.session_cache_mib: float | None = None
        self.prompt_precision: Precision = "float32"
        # warm start
        self.warm_start_updates = 0
        self.warm_start_episodes_per_update = 32
        self.warm_start_epochs = 1
        self.warm_start_minibatch_size: int | None = 32
        self.warm_start_lr: float | None = None
        self.warm_start_lr_schedule: Schedule = "constant"
        self.warm_start_lr_final_fraction = 0.0
        self.warm_start_lr_schedule_by_time = False
        self.warm_start_warmup_updates = 0
        self.warm_start_policy_share = 0.0
        self.warm_start_policy_share_updates = 0
        self.warm_start_mixing = "turn"
        self.warm_start_demonstrations: str | None = None
        self.warm_start_buffer_episodes = 0
        self.warm_start_replay_ratio = 1.0
        self.warm_start_only_successes = False
        self.warm_start_time_budget_s: float | None = None
        self.warm_start_precision: Precision = "float32"
        self.warm_start_grounding_coeff = 0.5
        self.warm_start_grounding_updates = 0
        self.warm_start_grounding_every = 0
        self.warm_start_grounding_options: dict[str, Any] = {}
        self.warm_start_grounding_crops = 0
        self.warm_start_grounding_minibatch_size: int | None = None

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
        engine: Any = NotProvided,
        temperature: Any = NotProvided,
        top_p: Any = NotProvided,
        max_new_tokens: Any = NotProvided,
        stop: Any = NotProvided,
        session_cache_mib: Any = NotProvided,
        prompt_precision: Any = NotProvided,
    ) -> Self:
        """How answers are sampled. `evaluation_config` may set the same names for evaluation.

        Args:
            backend: a name of the table `backends`.
            backend_options: of the backend.
            engine: of the engines that the backend "vllm" shares between env runners: `{count: 2, num_gpus: 1}` and
                more, see `backends.vllm.settings.VLLMSettings` and docs/engines.md.
            temperature: 0 is greedy, which reinforcement learning cannot use.
            top_p: mass of the nucleus that is sampled from.
            max_new_tokens: tokens an answer may have.
            stop: strings after which an answer ends.
            session_cache_mib: MiB of keys and values that the backend "hf" keeps of conversations between turns, on
                each env runner: a turn then costs what is new. 0 keeps none; nothing is 256 where every prompt goes
                on with the one before (history "full", laid out as chat), else 0.
            prompt_precision: of the matrix products by which the backend "hf" reads pictures and prompts: "float32";
                "bfloat16", which puts log-probs off by about a percent; or "auto", which is that where the device
                multiplies it in hardware. Of mllama only pictures are read so; weights of half precision read in
                their own, as engines do.

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
        lr_final_fraction: Any = NotProvided,
        lr_schedule_by_time: Any = NotProvided,
        warmup_updates: Any = NotProvided,
        policy_share: Any = NotProvided,
        policy_share_updates: Any = NotProvided,
        mixing: Any = NotProvided,
        demonstrations: Any = NotProvided,
        buffer_episodes: Any = NotProvided,
        replay_ratio: Any = NotProvided,
        only_successes: Any = NotProvided,
        time_budget_s: Any = NotProvided,
        precision: Any = NotProvided,
        grounding_coeff: Any = NotProvided,
        grounding_updates: Any = NotProvided,
        grounding_every: Any = NotProvided,
        grounding_options: Any = NotProvided,
        grounding_crops: Any = NotProvided,
        grounding_minibatch_size: Any = NotProvided,
    ) -> Self:
        """Imitation before reinforcement learning.

        Args:
            updates: training iterations of imitation; 0 is no warm start.
            episodes_per_update: demonstrations read in each.
            epochs: times each is read.
            minibatch_size: rows of one optimizer step; nothing reads all in one.
            lr: learning rate; nothing is that of `training`.
            lr_schedule: "constant", "linear" or "cosine", over `updates`; where `grounding_updates` come first,
                once over those and once over the rest.
            lr_final_fraction: of `lr`, at the end of the schedule.
            lr_schedule_by_time: the schedule ends with `time_budget_s` too, if that is sooner; not with
                `grounding_updates`.
            warmup_updates: iterations of linear warm-up.
            policy_share: how often the policy acts while the expert labels (DAgger), 0 to 1.
            policy_share_updates: iterations over which that share grows from 0.
            mixing: who acts is drawn each "turn" or once an "episode".
            demonstrations: recorded ones: a folder of `rllib demos`, or a JSON file of conversations (LLaVA's
                format); nothing collects live ones from the simulator's expert.
            buffer_episodes: older live demonstrations to keep and read again, drawn at random.
            replay_ratio: older ones that each iteration reads beside every new one, where a buffer is kept.
            only_successes: leave out demonstrations of episodes that failed.
            time_budget_s: seconds after which the warm start ends, whatever `updates` says.
            precision: "bfloat16" runs the model's matrix products in it, "auto" where the device knows it;
                weights and losses stay "float32". Reinforcement learning always computes as the sampler did.
            grounding_coeff: weight of telling what image tokens show, where that is, and whether the instruction
                names it; where the expert tells (`detections`).
            grounding_updates: iterations, the first of `updates`, that teach what image tokens show and no more: the
                vision tower learns several times more pictures a second while the language model rests. The
                expert plays.
            grounding_every: after those, every so-manieth iteration is such a one again; 0 is none.
            grounding_options: `options` of resets in such iterations: {tour: true} where a simulator knows tours.
            grounding_crops: small cuts around each thing shown, at places drawn anew, that these iterations read in
                place of the whole pictures: several times more names a second. 0 reads the pictures.
            grounding_minibatch_size: rows (pictures' turns or crops) of their optimizer steps; nothing is
                `minibatch_size`.

        Returns:
            This updated AlgorithmConfig object.
        """
        return self._update({f"warm_start_{k}" if k != "self" else k: v for k, v in locals().items()})

    def _update(self, values: Mapping[str, Any]) -> Self:
        for name, value in values.items():
            if name != "self" and value is not NotProvided:
                is_tuple = isinstance(getattr(self, name), tuple) and isinstance(value, list)
                setattr(self, name, tuple(value) if is_tuple else value)
        return self

    @property
    def prompting_settings(self) -> dict[str, Any]:
        """The arguments of `prompting`, by name, without the rewards."""
        return {name: getattr(self, name) for name in PROMPTING}

    @property
    def sampling_params(self) -> SamplingParams:
        return SamplingParams(
            temperature=float(self.temperature),
            top_p=float(self.top_p),
            max_new_tokens=int(self.max_new_tokens),
            stop=tuple(self.stop),
        )

    @property
    def engine_bundles(self) -> list[dict[str, float]]:
        """What each engine of the backend asks Ray for; none where runners generate by themselves."""
        return []

    @property
    def deadlines(self) -> Deadlines:
        return Deadlines(
            start_s=self.simulator_start_deadline_s,
            reset_s=self.simulator_reset_deadline_s,
            turn_s=self.simulator_turn_deadline_s,
        )
