"""Engines that a run's env runners share: started, given the learner's weights, and held to what the learner says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.actor import ActorHandle
from ray.rllib.core import DEFAULT_MODULE_ID

from rllib_vlm.algorithms.validation import engines_of
from rllib_vlm.backends.base import completed
from rllib_vlm.backends.vllm.export import export_policy
from rllib_vlm.backends.vllm.group import EngineGroup
from rllib_vlm.backends.vllm.messages import Answer, Ask, PolicyWeights, unexpanded
from rllib_vlm.backends.vllm.settings import VLLMSettings
from rllib_vlm.backends.vllm.transfer import device_ids, send_weights
from rllib_vlm.core.probe import Answered, log_ratio_max
from rllib_vlm.errors import ModelError
from rllib_vlm.types import Message, Prompt, SamplingParams

if TYPE_CHECKING:
    from rllib_vlm.algorithms.vlm_config import VLMAlgorithmConfig

_PROBE_TOKENS = 8
_PROBE_TEXT = "<image>Describe what you see, then say where you would go next and why."


class EngineSync:
    """The engines of one algorithm.

    Args:
        settings: of the engines.
        sampling: of the run; the probe compares log-probs of this distribution.
    """

    def __init__(self, settings: VLLMSettings, sampling: SamplingParams) -> None:
        self._settings = settings
        self._sampling = replace(sampling, max_new_tokens=_PROBE_TOKENS, stop=(), seed=0)
        self._group = EngineGroup(settings)
        self._key: tuple[int, str] | None = None
        self._restarts = 0
        self._files: Mapping[str, bytes] | None = None  # of the model's directory

    @classmethod
    def of(cls, config: VLMAlgorithmConfig) -> EngineSync | None:
        """Of an algorithm's config; None where env runners generate by themselves."""
        return cls(config.vllm_settings, config.sampling_params) if engines_of(config.backend) else None

    @property
    def version(self) -> int:
        """Of the policy that the engines hold."""
        return self._key[0] if self._key is not None else 0

    @property
    def engines(self) -> tuple[ActorHandle, ...]:
        """For env runners to connect to."""
        return self._group.engines

    def place(self, first_bundle: int) -> None:
        """Starts the engines' processes; they wait for weights.

        Args:
            first_bundle: of this trial's reservation, where there is one: the first engine's, the others' follow.

        Raises:
            ModelError: an engine does not start.
        """
        self._group.place(first_bundle)

    def sync(self, learner_group: Any, key: str) -> dict[str, float]:
        """All engines have the learner's weights when this returns.

        Args:
            learner_group: RLlib's.
            key: another one where weights may be others though they are of the same version.

        Returns:
            Metrics, by name; none where there was nothing to do.

        Raises:
            ModelError: engines do not start, or answer as if they had other weights than the learner.
        """
        (version,) = _first(learner_group, _version)
        if (version, key) == self._key:
            return {}
        weights = self._export(learner_group, version)
        if self._key is None:
            devices = learner_group.foreach_learner(func=lambda learner: device_ids())
            self._group.learner_devices = tuple(device for result in devices for device in result.get())
            self._group.load(weights)
        else:
            self._give(self._group, learner_group, weights)
        gap = self._probe(self._group, learner_group)
        if not gap <= self._settings.probe_gap:  # NaN is too large
            self._group.load(weights)
            gap = self._probe(self._group, learner_group)
        if not gap <= self._settings.probe_gap:
            raise ModelError(
                f"an engine and the learner differ by {gap:.3g} nats about the same tokens at version {version}, after "
                f"the weights were loaded twice; {self._settings.probe_gap:g} is the most that rounding explains in "
                f"{self._settings.dtype} (generation.engine.max_probe_gap)"
            )
        self._key = (version, key)
        restarts = self._group.num_restarts()
        new, self._restarts = restarts - self._restarts, restarts
        return {"engine_probe_gap": gap, "num_engine_restarts": float(new)}

    def stop(self) -> None:
        """Ends the engines."""
        self._group.stop()

    def _give(self, group: EngineGroup, learner_group: Any, weights: PolicyWeights) -> None:
        if group.transport == "files":
            group.load(weights)
            return
        group.keep(weights)
        sent = learner_group.foreach_learner(
            func=_send,
            engines=group.engines,
            transport=group.transport,
            workers_per_engine=self._settings.tensor_parallel,
            version=weights.version,
            anew=group.num_restarts() != self._restarts,
        )
        for result in sent:
            result.get()

    def _export(self, learner_group: Any, version: int) -> PolicyWeights:
        export = partial(_exported, version=version, files=self._files)
        exported: PolicyWeights
        (exported,) = _first(learner_group, export)
        self._files = exported.files
        return exported

    def _probe(self, group: EngineGroup, learner_group: Any) -> float:
        """The largest gap, in nats, over a short answer of every engine to a prompt with a picture."""
        ((prompt, ask),) = _first(learner_group, partial(_probe_prompt, sampling=self._sampling))
        answers = group.ask_each(ask)
        (gap,) = _first(learner_group, partial(_gap, prompt=prompt, answers=answers))
        return float(gap)


def _first(learner_group: Any, func: Any) -> list[Any]:
    """What `func` gives of one learner; they are all alike."""
    one = None if learner_group.is_local else learner_group._worker_manager.healthy_actor_ids()[:1]  # noqa: SLF001
    return [result.get() for result in learner_group.foreach_learner(func=func, remote_actor_ids=one)]


# On a learner.


def _module(learner: Any) -> Any:
    return learner.module[DEFAULT_MODULE_ID].unwrapped()


def _version(learner: Any) -> int:
    return int(learner._weights_seq_no)  # noqa: SLF001


def _exported(learner: Any, version: int, files: Mapping[str, bytes] | None) -> PolicyWeights:
    return export_policy(_module(learner).family, version=version, files=files)


def _send(learner: Any, **arguments: Any) -> None:
    send_weights(learner, _module(learner).family.model, **arguments)


def _probe_prompt(learner: Any, sampling: SamplingParams) -> tuple[Prompt, Ask]:
    family = _module(learner).family
    shades = np.linspace(0, 255, 56 * 56 * 3).reshape(56, 56, 3).astype(np.uint8)
    prompt = family.encode([Message(role="user", text=_PROBE_TEXT, images=(shades,))])
    ask = Ask(
        token_ids=unexpanded(prompt.token_ids, family.image_token_id),
        images=prompt.images,
        sampling=sampling,
        seed=0,
        stop_token_ids=family.stop_token_ids,
    )
    return prompt, ask


def _gap(learner: Any, prompt: Prompt, answers: list[Answer]) -> float:
    family = _module(learner).family
    answered: list[Answered] = [
        (prompt, completed(family, a.token_ids, a.logprobs, SamplingParams(), version=a.version))
        for a in answers
    ]
    return log_ratio_max(learner, answered)
