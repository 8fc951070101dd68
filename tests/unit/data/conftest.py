from __future__ import annotations

import numpy as np
import pytest

from rllib_vlm.data import Manifest, RecordedEpisode, RecordedTurn
from rllib_vlm.types import Demonstration, Detection, Mention


@pytest.fixture
def manifest():
    return Manifest(
        simulator="frozen_lake",
        seeds=tuple(range(100, 110)),
        env_config={"size": 4},
        expert={"max_actions": 2},
    )


@pytest.fixture
def make_episode(manifest):
    """Episode `index` of the manifest: `turns` turns with two small images each."""

    def make(index: int, turns: int = 3, success: bool = True) -> RecordedEpisode:
        rng = np.random.default_rng(index)
        images = rng.integers(0, 255, (turns + 1, 2, 6, 5, 3), np.uint8)
        return RecordedEpisode(
            index=index,
            task_seed=manifest.seeds[index],
            instruction=f"fetch mug {index}",
            turns=tuple(
                RecordedTurn(
                    demonstration=Demonstration(
                        actions=("left", "down")[: 1 + t % 2],
                        observation=f"o{t}",
                        reasoning="",
                        prediction=f"p{t}",
                        questions=(("where?", "there"),) * (t % 2),
                        detections=(Detection(image=t % 2, x=0.25, y=0.5, words="red mug", pixels=40.0),) * t,
                        mentions=(Mention(words="red mug", named=t > 0), Mention(words="bed", named=False)),
                    ),
                    text=f"text {t} ü",
                    images=tuple(images[t]),
                    reward=0.1 * t,
                )
                for t in range(turns)
            ),
            terminated=success,
            truncated=not success,
            success=success,
            metrics={"spl": 0.5, "sel": float("nan")},
            final_text="the end",
            final_images=tuple(images[turns]),
        )

    return make
