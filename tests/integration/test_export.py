"""What a run learnt, outside of the package: a real checkpoint, exported, answers as the algorithm's own policy."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny import MODEL, tiny_config
from transformers import AutoImageProcessor, Qwen2_5_VLForConditionalGeneration

from rllib_vlm.config.export import export
from rllib_vlm.types import Message, SamplingParams

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_an_exported_policy_answers_as_the_algorithms_own(tmp_path, lora):
    config = tiny_config("ppo", observation="vision").rl_module(model_config={**MODEL, "lora": lora})
    config.warm_start(updates=1, episodes_per_update=4, lr=5e-2)
    algorithm = config.build_algo()
    try:
        for _ in range(2):
            algorithm.train()
        algorithm.save_to_path(tmp_path / "checkpoint_000000")
        policy = algorithm.learner_group._learner.module["default_policy"].family
        rng = np.random.default_rng(0)
        prompts = [
            policy.encode(
                [
                    Message(
                        role="user",
                        text="<image>" * images + " go " * words,
                        images=tuple(rng.integers(0, 256, (images, 56, 84, 3), dtype=np.uint8)),
                    )
                ]
            )
            for images in range(3)
            for words in (1, 4)
        ]
        greedy = SamplingParams(temperature=0, max_new_tokens=8)
        answers = [ids.tolist() for ids, _ in policy.generate(prompts, greedy)]
    finally:
        algorithm.stop()

    done = export(tmp_path, tmp_path / "exported")
    assert not done.notes
    told = json.loads((done.directory / "rllib_vlm.json").read_text())
    assert told["updates"] == {"warm_start": 1, "reinforcement_learning": 1}
    assert told["prompting"]["observation"] == "vision" and told["value_head"] is True
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(done.directory)
    processor = AutoImageProcessor.from_pretrained(done.directory)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.from_numpy(prompt.token_ids)[None]
        pictures = {}
        if prompt.images:
            pictures = dict(processor(images=list(prompt.images), return_tensors="pt"))
            pictures["mm_token_type_ids"] = (ids == policy.image_token_id).int()
        said = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False, **pictures)
        assert said[0, ids.shape[1] :].tolist() == answer
