"""A model that imitated for a moment: most of its answers are valid, so episodes end when they end."""

from __future__ import annotations

from rllib_vlm.algorithms.vlm_config import VLMAlgorithmConfig
from rllib_vlm.core.learner import VLMTorchLearner
from rllib_vlm.core.update_plan import UpdatePlan
from rllib_vlm.env.vlm_env_runner import VLMEnvRunner

_DEMONSTRATIONS, _EPOCHS, _ROWS, _LR = 48, 6, 16, 2e-3


def teach(config: VLMAlgorithmConfig) -> tuple[VLMEnvRunner, VLMTorchLearner]:
    """A runner and a learner that share such a model, for the game of `config`; whoever asks stops the runner."""
    config.warm_start(updates=1, minibatch_size=_ROWS, lr=_LR)
    runner = VLMEnvRunner(config=config, worker_index=0, num_workers=0)
    learner = VLMTorchLearner(
        config=config,
        module_spec=config.get_multi_rl_module_spec(spaces=runner.get_spaces(), inference_only=False),
    )
    learner.build()
    plan = UpdatePlan(
        losses=config.imitation_settings(0),
        lr=_LR,
        num_epochs=_EPOCHS,
        minibatch_size=_ROWS,
        expects_credit=False,
    )
    learner.update(episodes=runner.sample_demonstrations(_DEMONSTRATIONS), plan=plan, timesteps={})
    runner.share_module(learner.module["default_policy"])
    return runner, learner
