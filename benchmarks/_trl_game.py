"""What both sides of the benchmark `trl` play: the game, its settings, and the model they begin with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rllib_vlm.models.qwen2_5_vl import Qwen25VL

GROUPS, GROUP_SIZE, TURNS, ANSWER_TOKENS = 8, 8, 8, 12
LR, CLIP_LOW, CLIP_HIGH, GRAD_CLIP, TEMPERATURE = 1e-6, 0.2, 0.28, 1.0, 1.0
THREADS = 2
_IMAGE = 56  # pixels; four image tokens

Observation = Literal["text", "vision"]


@dataclass(frozen=True, slots=True)
class Case:
    """FrozenLake in one of three ways, the whole conversation in the prompt."""

    name: str

    @property
    def observation(self) -> Observation:
        return "vision" if self.name == "vision" else "text"

    @property
    def env_config(self) -> dict[str, Any]:
        return {"observation": self.observation, "image_size": _IMAGE, "max_steps": 50}

    def make_model(self, folder: Path) -> None:
        """Writes the model that both begin with: random weights, or for `taught` one that imitated for a moment."""
        if self.name != "taught":
            Qwen25VL.build({"size": "tiny"}).save_pretrained(folder)
            return
        from benchmarks._taught import teach

        config = self.config().rl_module(model_config={"size": "tiny"})
        config.env_runners(num_env_runners=0, num_envs_per_env_runner=32)
        runner, learner = teach(config)
        runner.stop()
        learner.module["default_policy"].family.save_pretrained(folder)

    def config(self) -> Any:
        """Of our side; the model and where things run are for the caller."""
        from rllib_vlm.algorithms.grpo import VLMGRPOConfig  # loads Ray, which is not for TRL's process

        config = VLMGRPOConfig().environment("frozen_lake", env_config=self.env_config)
        config.prompting(parser="no_think", template="short", history="full", observation=self.observation)
        config.generation(max_new_tokens=ANSWER_TOKENS, temperature=TEMPERATURE).simulation(max_turns=TURNS)
        config.training(
            groups_per_update=GROUPS,
            group_size=GROUP_SIZE,
            num_epochs=1,
            lr=LR,
            clip_low=CLIP_LOW,
            clip_high=CLIP_HIGH,
            grad_clip=GRAD_CLIP,
            weight_decay=0.0,
            drop_uninformative=False,  # groups whose members all earned the same are read, too, as TRL does
        )
        config.evaluation(evaluation_at=[])
        return config


def peak_mib() -> float:
    """The most memory this process has had resident, from Linux."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))
