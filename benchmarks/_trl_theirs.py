"""TRL's side of the benchmark `trl`: its `GRPOTrainer` plays our simulator through `environment_factory`.

What is given to TRL so that it plays the same game, and as fast as it can:

- The game's one tool is `act`, and every answer is a call of it: the game has an answer format of its own. So the
  tokenizer parses answers itself; a template of transformers would take longer.
- TRL's environments cannot end an episode. A game that is over says so, the model answers once more, and that answer is
  no call. With seven rounds of calls there are eight answers, the eighth of which TRL leaves unplayed.
- float32 as on our side (on a processor without matrix units for it bfloat16 is slower), no gradient checkpointing, the
  micro-batch that was fastest, no reference model, and in text a tokenizer without its processor.
"""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from transformers import (
    AutoTokenizer,
    ProcessorMixin,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    TrainerCallback,
)
from transformers.utils import is_torchvision_available

from benchmarks._trl_game import (
    ANSWER_TOKENS,
    CLIP_HIGH,
    CLIP_LOW,
    GRAD_CLIP,
    GROUP_SIZE,
    GROUPS,
    LR,
    TEMPERATURE,
    THREADS,
    TURNS,
    Case,
    peak_mib,
)
from rllib_vlm.models.qwen2_5_vl import Qwen25VL
from rllib_vlm.prompts import build_history, build_parser
from rllib_vlm.prompts.renderer import PromptRenderer
from rllib_vlm.sims.frozen_lake import FrozenLake

_PARSER = build_parser("no_think")
_OVER = "The game is over."
_LOOK_BACK = 40  # tokens at the end of a prompt that hold such a message whole
# The tokenizer's own ChatML, with calls and what tools answer in it, as `environment_factory` wants it.
_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + ('user' if message['role'] == 'tool' else message['role']) + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% for call in message['tool_calls'] or [] %}{{ call['function'] | tojson }}{% endfor %}"
    "<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def play(pipe: Connection, case: Case, folder: str, steps: int, micro_batch: int) -> None:
    """Builds the trainer, says so, then takes `steps` steps, each when told, and tells of each."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    torch.set_num_threads(THREADS)
    from trl import GRPOConfig, GRPOTrainer

    family = Qwen25VL.build({"checkpoint": folder})
    arguments = GRPOConfig(
        output_dir=str(Path(folder) / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=GROUPS * GROUP_SIZE // micro_batch,
        num_generations=GROUP_SIZE,
        num_iterations=1,
        max_completion_length=4096,
        max_tool_calling_iterations=TURNS - 1,
        generation_kwargs={
            "max_new_tokens": ANSWER_TOKENS,
            "suppress_tokens": list(family.banned_token_ids),
        },
        temperature=TEMPERATURE,
        epsilon=CLIP_LOW,
        epsilon_high=CLIP_HIGH,
        loss_type="dapo",
        beta=0.0,
        learning_rate=LR,
        lr_scheduler_type="constant",
        max_grad_norm=GRAD_CLIP,
        weight_decay=0.0,
        max_steps=steps,
        logging_steps=steps + 1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )
    # Beside a tokenizer, TRL looks for it where models of text alone have it.
    model.config.max_position_embeddings = model.config.text_config.max_position_embeddings
    trainer = GRPOTrainer(
        model=model,
        args=arguments,
        train_dataset=_tasks(case, steps),
        processing_class=_processing(folder, case),
        environment_factory=lambda: _Game(case),
    )
    trainer.add_callback(_Told(pipe, trainer))
    pipe.send({})
    trainer.train()


class _Game:
    """FrozenLake as TRL's environments are: `act` is its tool."""

    def __init__(self, case: Case) -> None:
        self._lake = FrozenLake(**case.env_config)
        self._return = 0.0
        self._over = False

    def reset(self, seed: int, **kwargs: Any) -> Any:
        observation, _ = self._lake.reset(seed=seed, options={"split": "train"})
        self._return, self._over = 0.0, False
        return _content(observation)

    def act(self, answer: str) -> Any:
        """Makes a move.

        Args:
            answer: the move, in the game's answer format.
        """
        meant = _PARSER(answer, self._lake.actions, 1)
        if meant.valid:
            outcome = self._lake.step(self._lake.actions.names.index(meant.actions[0]))
        else:
            outcome = self._lake.idle()
        observation, reward, terminated, truncated, _ = outcome
        self._return += reward
        self._over = terminated or truncated
        return _OVER if self._over else _content(observation)

    def get_reward(self) -> float:
        return self._return


class _Told(TrainerCallback):
    """A step when told, and what it took."""

    def __init__(self, pipe: Connection, trainer: Any) -> None:
        self._pipe = pipe
        self._trainer = trainer
        self._start = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._pipe.recv()
        self._start = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        seconds = time.perf_counter() - self._start
        metrics = self._trainer._metrics["train"]  # noqa: SLF001
        episodes = GROUPS * GROUP_SIZE
        calls = metrics["tools/call_frequency"][-1] * episodes
        self._pipe.send(
            {
                "seconds": seconds,
                "calls": calls,
                "sampled tokens": metrics["completions/mean_length"][-1] * episodes,
                "memory": peak_mib(),
            }
        )


def _content(observation: Any) -> Any:
    if "images" not in observation:
        return observation["text"]
    return [{"type": "image", "image": Image.fromarray(image)} for image in observation["images"]]


def _tasks(case: Case, steps: int) -> Dataset:
    """A prompt a group; what is seen is added by the environment."""
    renderer = PromptRenderer(
        FrozenLake.description,
        FrozenLake.actions,
        _PARSER,
        build_history("full"),
        1,
        template="short",
        observation=case.observation,
    )
    _, info = FrozenLake(**case.env_config).reset(seed=0)
    prompt = [
        {"role": "system", "content": renderer.system(info["instruction"])},
        {"role": "user", "content": ""},
    ]
    count = GROUPS * steps
    return Dataset.from_dict({"prompt": [prompt] * count, "seed": list(range(count))})


def _processing(folder: str, case: Case) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.chat_template = _TEMPLATE

    def parse(ids: Any, prefix: Any = (), tools: Any = None) -> dict[str, Any]:
        text = tokenizer.decode(ids, skip_special_tokens=True)
        if _OVER in tokenizer.decode(prefix[-_LOOK_BACK:]):
            return {"role": "assistant", "content": text}
        call = {"type": "function", "function": {"name": "act", "arguments": {"answer": text}}}
        return {"role": "assistant", "content": "", "tool_calls": [call]}

    tokenizer.response_template = {"fields": {}}  # TRL asks whether there is one
    tokenizer.parse_response = parse
    if case.observation == "text":
        return tokenizer
    return _Processor(_image_processor(folder), tokenizer, chat_template=_TEMPLATE)


class _Processor(Qwen2_5_VLProcessor):
    """Without videos, whose processor wants torchvision."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def _image_processor(folder: str) -> Any:
    """The faster one where torchvision is there, as TRL's extra `vlm` wants it."""
    if is_torchvision_available():
        from transformers import Qwen2VLImageProcessor

        return Qwen2VLImageProcessor.from_pretrained(folder)
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil.from_pretrained(folder)
