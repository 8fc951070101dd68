"""The slot loop's own business: which prompts are answered together, and engines that answer by themselves."""

from __future__ import annotations

import math
import threading
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from tiny import MODEL

from rllib_vlm.backends.base import GenerationRequest
from rllib_vlm.backends.scripted import ScriptedBackend
from rllib_vlm.env.play import RolloutSettings
from rllib_vlm.env.rollout import Rollout
from rllib_vlm.env.simulator_process import SimulatorFactory
from rllib_vlm.env.slots import SlotPool
from rllib_vlm.env.tasks import GroupQueue, Task
from rllib_vlm.errors import LostTurnError
from rllib_vlm.models.qwen2_5_vl import Qwen25VL
from rllib_vlm.types import Completion, Message, ParsedAction, SamplingParams


@pytest.fixture(scope="module")
def family() -> Qwen25VL:
    return Qwen25VL.build(MODEL)


class Batches(ScriptedBackend):
    """A script that notes how many prompts each batch had."""

    def __init__(self, family: Qwen25VL) -> None:
        super().__init__(family, ["idle"])
        self.sizes: list[int] = []

    def poll(self, timeout_s: float | None = None) -> None:
        if self._waiting:
            self.sizes.append(len(self._waiting))
        super().poll(timeout_s)


class Engine:
    """An engine that answers by itself, in threads, each request as it comes."""

    continuous = True

    def __init__(self, family: Qwen25VL, losses: int = 0) -> None:
        self._family = family
        self._threads = ThreadPoolExecutor(2)
        self._lock = threading.Lock()
        self._losses = losses  # of the first requests, so many are never answered

    def submit(self, request: GenerationRequest) -> Future[Completion]:
        return self._threads.submit(self._answer, request)

    def poll(self, timeout_s: float | None = None) -> None:
        raise AssertionError("whoever waits for an engine waits for simulators, too")

    def load_weights(self, state: Mapping[str, object], *, version: int) -> None: ...

    def end_session(self, session: Hashable) -> None: ...

    def counts(self) -> Mapping[str, int]:
        return {}

    def close(self) -> None:
        self._threads.shutdown()

    def _answer(self, request: GenerationRequest) -> Completion:
        with self._lock:
            self._losses, lost = self._losses - 1, self._losses > 0
        if lost:
            raise LostTurnError("an engine died 4 times with this turn under way")
        own = ScriptedBackend(self._family, ["idle"])
        future = own.submit(request)
        own.poll()
        return future.result()


def make_rollout(pool: SlotPool, backend, family: Qwen25VL, *, batch_wait_s: float = 0.02) -> Rollout:
    prompt = family.encode([Message(role="user", text="go")])

    def parse(answers: Sequence[Completion], _) -> list[ParsedAction]:
        return [ParsedAction(valid=False, reason="idle") for _ in answers]

    return Rollout(
        pool=pool,
        backend=backend,
        render=lambda playing: [prompt] * len(playing),
        parse=parse,
        settings=RolloutSettings(
            sampling=SamplingParams(max_new_tokens=4), max_turns=3, max_actions=1, batch_wait_s=batch_wait_s
        ),
        on_event=lambda *_: None,
    )


def make_queue(episodes: int) -> GroupQueue:
    tasks = [Task("train", seed) for seed in range(episodes)]
    return GroupQueue(tasks, 1, replacement=lambda: Task("train", 99))


def play(pool: SlotPool, backend, family: Qwen25VL, *, episodes: int, batch_wait_s: float = 0.02):
    return make_rollout(pool, backend, family, batch_wait_s=batch_wait_s).run(make_queue(episodes))


def make_pool(process: str, slots: int) -> SlotPool:
    factory = SimulatorFactory("frozen_lake", {"observation": "text", "max_steps": 9})
    return SlotPool(factory, slots, process=process)  # type: ignore[arg-type]


def test_a_wait_without_end_is_lockstep(family: Qwen25VL) -> None:
    pool, backend = make_pool("subprocess", 3), Batches(family)
    try:
        episodes = play(pool, backend, family, episodes=6, batch_wait_s=math.inf)
    finally:
        pool.close()
    assert [len(e) for e in episodes] == [3] * 6
    assert backend.sizes == [3] * 6


def test_without_a_wait_whatever_is_ready_is_answered(family: Qwen25VL) -> None:
    pool, backend = make_pool("subprocess", 3), Batches(family)
    try:
        episodes = play(pool, backend, family, episodes=6, batch_wait_s=0.0)
    finally:
        pool.close()
    assert [len(e) for e in episodes] == [3] * 6
    assert sum(backend.sizes) == 18 and len(backend.sizes) >= 6


@pytest.mark.parametrize("process", ["inline", "subprocess"])
def test_an_engine_that_answers_by_itself_plays_the_same(family: Qwen25VL, process: str) -> None:
    pool, backend = make_pool(process, 2), Engine(family)
    try:
        episodes = play(pool, backend, family, episodes=5)  # type: ignore[arg-type]
    finally:
        pool.close()
        backend.close()
    assert [len(e) for e in episodes] == [3] * 5
    assert [e.custom_data["task_seed"] for e in episodes] == list(range(5))


def test_a_turn_that_engines_lose_costs_its_episode_and_not_the_run(family: Qwen25VL) -> None:
    pool, backend = make_pool("subprocess", 2), Engine(family, losses=3)
    rollout, queue = make_rollout(pool, backend, family), make_queue(5)
    try:
        episodes = rollout.run(queue)
    finally:
        pool.close()
        backend.close()
    assert [len(e) for e in episodes] == [3] * 5
    assert (rollout.counts.lost_turns, rollout.counts.crashes) == (3, 0)
    assert "died 4 times" in rollout.counts.failures[0]
