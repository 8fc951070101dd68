"""An algorithm whose env runners get the learner's weights: what learns after every update, what is frozen once."""

from __future__ import annotations

import uuid
from typing import Any

import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, WEIGHTS_SEQ_NO

from rllib_vlm.algorithms.checkpointing import CheckpointedAlgorithm
from rllib_vlm.algorithms.engine_sync import EngineSync
from rllib_vlm.algorithms.sampling_weights import SamplingWeights
from rllib_vlm.core.rl_module import FROZEN, TRAINED
from rllib_vlm.env.weights import FrozenWeights


class SyncedAlgorithm(CheckpointedAlgorithm):
    """Sends weights from learners to env runners."""

    _engines: EngineSync | None = None  # where runners share engines
    _shared = False  # a runner in this process samples with the learner's own module
    _version = 0  # of the learner's weights, when they were last sent

    def _share_module(self) -> None:
        """A learner and a runner in this process need one model, not two."""
        runner = self.env_runner_group.local_env_runner
        shares = self.config.learner_engine == "plain" and self.learner_group.is_local
        self._shared = runner is not None and shares and runner.module is not None
        if self._shared:
            runner.share_module(self.learner_group._learner.module[DEFAULT_MODULE_ID])  # noqa: SLF001

    @override(CheckpointedAlgorithm)
    def _sync_weights(self, group: EnvRunnerGroup) -> SamplingWeights | None:
        """All runners of `group`, or the engines they share, have the learner's weights when this returns.

        What is frozen is put where runners find it once, and each of them reads it once: with adapters, or a frozen
        vision tower, what is sent after an update is what the update changed.

        Returns:
            What was sent; None where engines have it, or the only runner has the learner's own module.
        """
        if self._engines is not None:
            self._sync_engines(self._engines, group)
            return None
        local = group.local_env_runner
        if local is not None and self._shared and group is self.env_runner_group:
            self._version = self.learner_group._learner._weights_seq_no  # noqa: SLF001
            local.set_policy_version(self._version)
            if not group.num_remote_env_runners():
                return None
        if self._frozen is None:
            weights, _ = self._weights(FROZEN)
            self._frozen = FrozenWeights(uuid.uuid4().hex, ray.put(weights) if weights else None)
        trained, self._version = self._weights(TRAINED)
        sent = SamplingWeights(ray.put(trained), self._version)
        self._send(group, sent)
        return sent

    def _sync_engines(self, engines: EngineSync, group: EnvRunnerGroup) -> None:
        if self._frozen is None:  # weights may be others than those of the same number before
            self._frozen = FrozenWeights(uuid.uuid4().hex, None)
        for name, value in engines.sync(self.learner_group, self._frozen.key).items():
            how: dict[str, Any] = {"reduce": "sum"} if name.startswith("num_") else {"window": 1}
            self.metrics.log_value((ENV_RUNNER_RESULTS, name), value, **how)
        self._version = engines.version
        told = {"engines": engines.engines, "version": engines.version}
        group.foreach_env_runner(
            "follow_engines", kwargs=told, local_env_runner=group.local_env_runner is not None
        )

    @override(Algorithm)
    def restore_env_runners(self, env_runner_group: EnvRunnerGroup) -> list[int]:
        restored: list[int] = super().restore_env_runners(env_runner_group)
        if restored and self._engines is not None:  # new processes know of no engines
            self._sync_engines(self._engines, env_runner_group)
        return restored

    @override(Algorithm)
    def cleanup(self) -> None:
        super().cleanup()
        if self._engines is not None:
            self._engines.stop()

    def _send(self, group: EnvRunnerGroup, weights: SamplingWeights) -> None:
        """All runners of `group` have these weights when this returns."""
        state = weights.state(self._frozen)
        if group.local_env_runner is not None and not self._shared:
            group.local_env_runner.set_state(state)
        if group.num_remote_env_runners():
            group.foreach_env_runner("set_state", kwargs={"state": state}, local_env_runner=False)

    def _weights(self, part: str) -> tuple[dict[str, Any], int]:
        """One component of the module's state, as an actor needs it, and its version."""
        path = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}/{DEFAULT_MODULE_ID}/{part}"
        state = self.learner_group.get_state(components=path, inference_only=True)[COMPONENT_LEARNER]
        return state[COMPONENT_RL_MODULE][DEFAULT_MODULE_ID], state[WEIGHTS_SEQ_NO]
