"""How fast a learner learns, against a bare PyTorch loop on the same packed rows.

`python -m benchmarks learner [rounds=7]`: FrozenLake with one picture a turn and GRPO, the tiny vision model, two
threads. The learner's time is that of a whole update: episodes to rows, packing, forward and backward, metrics,
optimizer. The bare loop is given the packed micro-batches as tensors and does nothing else than learn: this model's own
layers, log-probs and entropy of the sampled tokens, the clipped loss, backward, clipping, AdamW. The two take turns.
Under `details` also a loop over transformers' own forward, which is what a bare loop usually is. About 2 minutes.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from torch import Tensor

from benchmarks._arguments import numbers
from rllib_vlm.algorithms.driver_credit import give_credit
from rllib_vlm.algorithms.grpo import VLMGRPOConfig
from rllib_vlm.batching.micro import micro_batches
from rllib_vlm.batching.packing import to_torch
from rllib_vlm.batching.rows import gather_predicting, predicting
from rllib_vlm.core.learner import VLMTorchLearner
from rllib_vlm.core.update_plan import UpdatePlan
from rllib_vlm.credit.grpo import GRPO
from rllib_vlm.env.vlm_env_runner import VLMEnvRunner
from rllib_vlm.models.base import TokenRows
from rllib_vlm.models.qwen2_5_vl.decoder import segment_mask

_THREADS, _EPISODES, _MINIBATCH, _TURNS, _LR = 2, 32, 64, 8, 1e-5
_ENTROPY = 0.01

Step = list[dict[str, Tensor]]  # the micro-batches of an optimizer step


def run(*arguments: str) -> dict[str, Any]:
    """Headline: tokens a second of the learner over those of the bare loop."""
    rounds = numbers("learner", arguments, {"rounds": 7})["rounds"]
    torch.set_num_threads(_THREADS)
    config = _config()
    runner = VLMEnvRunner(config=config, worker_index=0, num_workers=0)
    spec = config.get_multi_rl_module_spec(spaces=runner.get_spaces(), inference_only=False)
    learner = VLMTorchLearner(config=config, module_spec=spec)
    learner.build()
    episodes = runner.sample(num_episodes=_EPISODES)
    runner.stop()
    give_credit(GRPO(), episodes)
    plan = UpdatePlan(losses=config.loss_settings(), lr=_LR, minibatch_size=_MINIBATCH)
    steps = _packed(learner, episodes, plan)
    tokens = sum(int((piece["segment_ids"] > 0).sum()) for step in steps for piece in step)
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    ours, theirs = _Bare(module, config, _own_layers), _Bare(module, config, _transformers)
    ways: dict[str, Callable[[], object]] = {
        "learner": lambda: learner.update(episodes=episodes, plan=plan, timesteps={}),
        "bare loop": lambda: ours.learn(steps),
        "bare loop, transformers' forward": lambda: theirs.learn(steps),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    inside: list[float] = []  # of the learner's, in optimizer steps
    for i in range(rounds + 1):
        for way, work in ways.items():
            start, begin = time.perf_counter(), time.process_time()
            found = work()
            if i:  # the first round warms up
                seconds[way].append(time.perf_counter() - start)
                cpu[way].append(time.process_time() - begin)
                if way == "learner":
                    inside.append(float(found[DEFAULT_MODULE_ID]["tokens_per_s"].peek()))  # type: ignore[index]
    middle = {way: median(taken) for way, taken in seconds.items()}
    return {
        "name": "learner",
        "value": round(middle["bare loop"] / middle["learner"], 3),
        "unit": "times the tokens a second of a bare loop, two threads",
        "details": {
            "over a loop with transformers' forward": round(
                middle["bare loop, transformers' forward"] / middle["learner"], 3
            ),
            "processor time, bare loop's over the learner's": round(
                median(cpu["bare loop"]) / median(cpu["learner"]), 3
            ),
            "optimizer steps alone, over the bare loop": round(
                median(inside) / (tokens / middle["bare loop"]), 3
            ),
            **{f"tokens a second, {way}": round(tokens / taken, 1) for way, taken in middle.items()},
            "tokens": tokens,
            "optimizer steps": len(steps),
            "micro-batches": sum(map(len, steps)),
            "rounds": rounds,
            "threads": torch.get_num_threads(),
        },
    }


def _config() -> VLMGRPOConfig:
    config = VLMGRPOConfig()
    config.environment("frozen_lake", env_config={"observation": "vision", "max_steps": 50})
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=32, torch_threads=_THREADS)
    config.learners(torch_threads=_THREADS).rl_module(model_config={"size": "tiny"})
    config.prompting(parser="no_think", template="short", history="current")
    config.generation(max_new_tokens=12).simulation(max_turns=_TURNS)
    config.training(drop_uninformative=False, entropy_coeff=_ENTROPY, lr=_LR)
    return config


def _packed(learner: Any, episodes: Sequence[Any], plan: UpdatePlan) -> list[Step]:
    """The micro-batches of every optimizer step of the update, as the learner makes them."""
    learner.begin(plan)
    minibatches = learner._learner_connector(  # noqa: SLF001
        rl_module=learner.module,
        batch={},
        episodes=episodes,
        shared_data={"plan": plan, "all_gather": lambda value: [value], "reference": None},
        metrics=learner.metrics,
    )[DEFAULT_MODULE_ID]
    size = learner.config.micro_batch_tokens
    return [
        [to_torch(piece) for piece in micro_batches(columns, max_tokens=size)] for columns, _ in minibatches
    ]


class _Bare:
    """Learns from packed rows, and nothing else: no metrics, no names, no plan."""

    def __init__(self, module: Any, config: Any, forward: Callable[[Any, dict[str, Tensor]], Tensor]) -> None:
        self._module = copy.deepcopy(module)
        self._parameters = [p for p in self._module.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=_LR, weight_decay=config.weight_decay)
        self._low, self._high, self._clip = config.clip_low, config.clip_high, config.grad_clip
        self._forward = forward

    def learn(self, steps: Sequence[Step]) -> None:
        for step in steps:
            count = sum(int(piece["loss_mask"].sum()) for piece in step)
            self._optimizer.zero_grad(set_to_none=True)
            for piece in step:
                mask = piece["loss_mask"]
                states = gather_predicting(self._forward(self._module.family, piece), mask)
                every = self._module.family.logits(states).log_softmax(-1)
                logprobs = every.gather(-1, piece["token_ids"][mask][:, None])[:, 0]
                entropy = -(every.exp() * every.clamp(min=-1e30)).sum(-1)
                advantages = piece["advantages"][mask]
                ratio = (logprobs - piece["old_logprobs"][mask]).exp()
                clipped = ratio.clamp(1.0 - self._low, 1.0 + self._high)
                policy = -torch.minimum(ratio * advantages, clipped * advantages)
                ((policy - _ENTROPY * entropy).sum() / count).backward()
            torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
            self._optimizer.step()


def _own_layers(family: Any, piece: dict[str, Tensor]) -> Tensor:
    columns = ("token_ids", "segment_ids", "images", "image_sizes")
    read = predicting(piece["loss_mask"])
    hidden: Tensor = family.hidden(TokenRows(**{name: piece[name] for name in columns}, read=read))
    return hidden


def _transformers(family: Any, piece: dict[str, Tensor]) -> Tensor:
    """The packed rows through transformers' own modules, segments kept apart by a mask."""
    rows = TokenRows(**{name: piece[name] for name in ("token_ids", "segment_ids", "images", "image_sizes")})
    groups, grids, owners = family._group_rows(rows)  # noqa: SLF001
    x, positions = family._embed(rows.token_ids, rows.segment_ids, groups, grids, owners)  # noqa: SLF001
    out = family.model.model.language_model(
        inputs_embeds=x,
        attention_mask={"full_attention": segment_mask(rows.segment_ids, x.dtype)},
        position_ids=positions,
        use_cache=False,
    )
    hidden: Tensor = out.last_hidden_state
    return hidden
