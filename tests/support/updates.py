"""The same updates with any engine and any number of learners: what losses they report, and what weights they leave."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import ray
from tiny import tiny_config

from rllib_vlm.batching.sharding import shard_groups, trajectory_tokens
from rllib_vlm.connectors.trajectories import to_trajectory
from rllib_vlm.core.columns import GROUP, INDEX
from rllib_vlm.core.update_plan import UpdatePlan
from rllib_vlm.env.vlm_env_runner import VLMEnvRunner

LOSSES = ("policy_loss", "value_loss", "imitation_loss", "grad_norm", "entropy")


class Updates:
    """Nine episodes that one policy played, to learn from again and again."""

    def __init__(self, *, observation: str = "text", **training: Any) -> None:
        settings = {"normalize_advantages": True, "row_tokens": 160, "micro_batch_tokens": 320, **training}
        self.config = tiny_config("ppo", observation=observation).training(**settings)
        runner = VLMEnvRunner(config=self.config, worker_index=0, num_workers=0)
        self.episodes = runner.sample(num_episodes=9)
        self.spaces = runner.get_spaces()
        runner.stop()
        for index, episode in enumerate(self.episodes):
            episode.custom_data[INDEX] = index

    def group(self, *, num_learners: int = 0, model: dict[str, Any] | None = None, **learners: Any) -> Any:
        """Learners that all begin with the same weights."""
        config = self.config.copy(copy_frozen=False)
        config.learners(num_learners=num_learners, num_cpus_per_learner=0.5, **learners)
        if model:
            config.rl_module(model_config={**config._model_config, **model})
        spec = config.get_multi_rl_module_spec(spaces=self.spaces, inference_only=False)
        return config.build_learner_group(rl_module_spec=spec)

    def plan(self, update: int, **changes: Any) -> UpdatePlan:
        """Imitation, then reinforcement learning, of the critic alone every fourth time; rates fall."""
        losses = self.config.loss_settings(critic_only=update % 4 == 3)
        if update < 2:
            losses = replace(losses, coefficients={"imitation": 1.0})
        settings = {"lr": 3e-3 * (1.0 - update / 30), "value_lr": 1e-3, "minibatch_size": 7, **changes}
        return UpdatePlan(
            losses=losses, seed=update, normalize_advantages=True, expects_credit=update >= 2, **settings
        )

    def learn(self, group: Any, plan: UpdatePlan) -> dict[str, float]:
        """One update; what it reports, of all learners together."""
        if group.is_local:
            results = group.update(episodes=self.episodes, plan=plan, timesteps={})
        else:
            shards = shard_groups(
                [e.custom_data[GROUP] for e in self.episodes],
                [trajectory_tokens(to_trajectory(e)) for e in self.episodes],
                len(group),
            )
            refs = [ray.put([self.episodes[i] for i in shard]) for shard in shards]
            results = group.update(episodes_refs=refs, plan=plan, timesteps={})
        own = [result["default_policy"] for result in results]
        found = {name: [float(r[name].peek()) for r in own if name in r] for name in own[0]}
        return {name: float(np.mean(values)) for name, values in found.items() if values}

    def curve(self, group: Any, updates: range, **changes: Any) -> list[dict[str, float]]:
        """What each update reports, of losses and norms."""
        found = [self.learn(group, self.plan(update, **changes)) for update in updates]
        return [{name: r[name] for name in LOSSES if name in r and np.isfinite(r[name])} for r in found]


def weights(group: Any) -> dict[str, np.ndarray]:
    """Of the policy and its critic."""
    found = group.get_weights()["default_policy"]
    return {name: np.array(value, copy=True) for name, value in found.items()}
