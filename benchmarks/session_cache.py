"""What a turn of a long conversation costs when its past is kept, and when it is computed again."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np
import torch

from rllib_vlm.backends.base import GenerationRequest
from rllib_vlm.backends.hf import HFBackend
from rllib_vlm.models.cached_attention import compiled
from rllib_vlm.models.qwen2_5_vl import Qwen25VL
from rllib_vlm.types import Message, SamplingParams

_CHATS, _TURNS, _REPEATS = 8, 10, 9
_WORDS, _ANSWER = 60, 16  # tokens; with a picture of 84x84 and the chat's marks about a hundred a turn
_VOCABULARY = ("go", "left", "right", "on", "to", "the", "red", "mug", "and", "stop")


class _Player:
    """Plays the same conversations, up to the model's own answers, again and again."""

    def __init__(self, family: Qwen25VL, session_cache_mib: float) -> None:
        self._family = family
        self._backend = HFBackend(family, session_cache_mib=session_cache_mib)
        self.seconds: list[list[float]] = []  # of each turn, a list a repeat
        self.lengths: list[int] = []  # tokens of the prompts of each turn, mean; of the latest repeat

    @property
    def prefill(self) -> int:
        return self._backend.counts()["num_prefill_tokens"]

    def play(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        chats = [[Message(role="system", text="You are a robot in a house.")] for _ in range(_CHATS)]
        seconds, self.lengths = [], []
        for _ in range(_TURNS):
            seeds = rng.integers(2**31, size=_CHATS).tolist()
            for chat in chats:
                frame = rng.integers(0, 256, (84, 84, 3), dtype=np.uint8)
                text = " ".join(rng.choice(_VOCABULARY, _WORDS))
                chat.append(Message(role="user", text=f"<image>{text}", images=(frame,)))
            prompts = [self._family.encode(chat) for chat in chats]
            start = time.perf_counter()
            futures = [
                self._backend.submit(
                    GenerationRequest(
                        prompt=p, sampling=SamplingParams(max_new_tokens=_ANSWER, seed=seeds[i]), session=i
                    )
                )
                for i, p in enumerate(prompts)
            ]
            self._backend.poll()
            seconds.append(time.perf_counter() - start)
            self.lengths.append(round(sum(len(p.token_ids) for p in prompts) / _CHATS))
            for chat, future in zip(chats, futures, strict=True):
                answer = future.result()
                chat.append(Message(role="assistant", text=answer.text, token_ids=answer.token_ids))
        for i in range(_CHATS):
            self._backend.end_session(i)
        self.seconds.append(seconds)

    def turn_ms(self, turn: int) -> float:
        """Median over the repeats; turns count from 1."""
        return 1e3 * median(seconds[turn - 1] for seconds in self.seconds)


def run() -> dict[str, Any]:
    """The headline figure is the time of turn 10 over that of turn 2, with the cache."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    family = Qwen25VL.build({"size": "tiny"})
    kept, plain = _Player(family, 256), _Player(family, 0)
    for player in (kept, plain):
        player.play(seed=0)  # warm-up
        player.seconds.clear()
    before = kept.prefill, plain.prefill
    for seed in range(1, _REPEATS + 1):
        for player in (kept, plain):  # side by side, so that both meet the same machine
            player.play(seed)
    torch.set_num_threads(threads)
    computed, all_of_it = kept.prefill - before[0], plain.prefill - before[1]
    whole = [sum(median(turn) for turn in zip(*p.seconds, strict=True)) for p in (kept, plain)]
    return {
        "name": "session_cache",
        "value": round(kept.turn_ms(_TURNS) / kept.turn_ms(2), 3),
        "unit": f"times the cost of turn 2 for turn {_TURNS}, with a session cache, one thread",
        "details": {
            "the same without a cache": round(plain.turn_ms(_TURNS) / plain.turn_ms(2), 3),
            "prefill without a cache over with one": round(all_of_it / computed, 2),
            "share of prefill saved": round(1 - computed / all_of_it, 3),
            "whole conversation without a cache over with one, time": round(whole[1] / whole[0], 2),
            "turn 2 with a cache, ms": round(kept.turn_ms(2), 1),
            f"turn {_TURNS} with a cache, ms": round(kept.turn_ms(_TURNS), 1),
            "turn 2 without, ms": round(plain.turn_ms(2), 1),
            f"turn {_TURNS} without, ms": round(plain.turn_ms(_TURNS), 1),
            "prompt tokens of turn 2, mean": kept.lengths[1],
            f"prompt tokens of turn {_TURNS}, mean": kept.lengths[-1],
            "conversations at a time": _CHATS,
            "repeats": _REPEATS,
            "compiled attention": compiled(),
        },
    }
