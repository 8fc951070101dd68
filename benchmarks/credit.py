"""What an estimator's advantages know: how well they go with what an expert would have done.

`python -m benchmarks credit [EXAMPLE] [episodes=320]`, by default `spoc`: its policy plays training tasks as it would
in reinforcement learning, while the simulator's expert says of every state what it would do. A turn's agreement is the
share of its actions, place by place, that are the expert's. Good actions should have high advantages, so that the
correlation of the two, over all turns, says how much of an advantage is signal: the square of it is the share of
variance, and settings can be compared by it in minutes, without learning anything. An expert is one good way of
several, so the figures stay far from 1. About 4 minutes for 160 episodes of the household on one thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rllib_vlm.config.loader import load
from rllib_vlm.config.resources import examples
from rllib_vlm.config.runner import register
from rllib_vlm.connectors.trajectories import to_trajectory
from rllib_vlm.core.columns import SUCCESS, VLMColumns
from rllib_vlm.credit.fitted_gae import FittedGAE
from rllib_vlm.env.vlm_env_runner import VLMEnvRunner
from rllib_vlm.errors import RLlibVLMError, UnknownNameError
from rllib_vlm.prompts import build_parser

LAMBDAS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
_ONE_PROCESS = ("env_runners.num_env_runners=0", "learners.num_learners=0")


def run(example: str = "spoc", episodes: str = "episodes=320") -> dict[str, Any]:
    """Headline: the lambda of `fitted_gae` whose advantages go best with the expert."""
    if example not in examples():
        raise UnknownNameError("tuned examples", example, examples())
    experiment = load(examples()[example], overrides=_ONE_PROCESS)[0]
    if experiment.config.credit != "fitted_gae":
        raise RLlibVLMError(f"{example} takes its credit from {experiment.config.credit!r}, not fitted_gae")
    register(experiment)
    config = experiment.config.copy(copy_frozen=False).callbacks([])
    runner = VLMEnvRunner(config=config, worker_index=0, num_workers=0)
    played = runner.sample_demonstrations(int(episodes.split("=")[-1]), policy_share=1.0)
    parser, actions = build_parser(config.parser, **config.parser_options), runner.pool.spec.actions
    agreement = []
    for episode in played:
        for turn in range(len(episode)):
            expert = parser(episode.get_actions(turn).text, actions, config.max_actions_per_turn).actions
            own = episode.get_extra_model_outputs(VLMColumns.PARSED, turn).actions
            same = sum(a == b for a, b in zip(own, expert, strict=False))
            agreement.append(same / max(len(own), len(expert), 1))
    runner.stop()
    trajectories = [to_trajectory(episode) for episode in played]
    found = {}
    for lam in LAMBDAS:
        estimator = FittedGAE(**{**config.credit_options, "lam": lam})
        credit = estimator(trajectories)
        advantages = [float(turn.advantages[0]) for own in credit for turn in own]
        found[lam] = float(np.corrcoef(advantages, agreement)[0, 1])
    best = max(found, key=lambda lam: found[lam])
    return {
        "name": "credit",
        "value": best,
        "unit": "is the lambda whose advantages agree best with the expert",
        "details": {
            "episodes": len(played),
            "turns": len(agreement),
            "success": float(np.mean([e.custom_data[SUCCESS] for e in played])),
            "agreement with the expert": float(np.mean(agreement)),
            **{f"correlation at lambda {lam:g}": round(value, 3) for lam, value in found.items()},
        },
    }
