from __future__ import annotations

import os
import select
import signal
import time
from typing import Any

import numpy as np
import pytest

from rllib_vlm.env.simulator_process import SimulatorFactory, SlotStep
from rllib_vlm.env.slots import Deadlines, SlotFailure, SlotPool
from rllib_vlm.errors import SimulatorError

LAKE = {"observation": "text", "max_steps": 5}
BOTH = pytest.mark.parametrize("process", ["inline", "subprocess"])


@pytest.fixture
def make_pool(request):
    pools = []

    def make(
        process: str, slots: int = 2, env: str = "frozen_lake", deadlines=None, **config: Any
    ) -> SlotPool:
        pool = SlotPool(
            SimulatorFactory(env, {**LAKE, **config}), slots, process=process, deadlines=deadlines
        )
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close()


def collect(pool: SlotPool) -> dict[int, SlotStep | SlotFailure]:
    """Outcomes of everything under way."""
    found: dict[int, SlotStep | SlotFailure] = {}
    end = time.monotonic() + 30
    while pool.num_busy:
        found.update(pool.poll(1.0))
        assert time.monotonic() < end, "slots never finished"
    return found


@BOTH
def test_resets_and_turns_come_back_as_the_simulator_gave_them(make_pool, process):
    pool = make_pool(process)
    alone = SimulatorFactory("frozen_lake", LAKE)()
    for slot in range(2):
        pool.reset(slot, seed=slot)
    first = collect(pool)
    for slot in range(2):
        observation, info = alone.reset(seed=slot, options={})
        assert first[slot].observation["text"] == observation["text"]
        assert first[slot].info == info
        pool.turn(slot, ["left", "left"])
        expected = alone.turn(["left", "left"])
        step = collect(pool)[slot]
        assert step.observation["text"] == expected[0]["text"]
        assert (step.reward, step.terminated, step.truncated) == expected[1:4]


@BOTH
def test_images_survive_the_way_between_processes(make_pool, process):
    pool = make_pool(process, slots=1, observation="vision")
    pool.reset(0, seed=3)
    images = collect(pool)[0].observation["images"]
    expected = SimulatorFactory("frozen_lake", {**LAKE, "observation": "vision"})().reset(seed=3)[0]["images"]
    np.testing.assert_array_equal(images, expected)


@BOTH
def test_the_expert_answers_every_state_until_the_end(make_pool, process):
    pool = make_pool(process, slots=1)
    pool.reset(0, seed=5, expert_max_actions=1)
    step = collect(pool)[0]
    while not (step.terminated or step.truncated):
        assert step.demonstration is not None and len(step.demonstration.actions) == 1
        pool.turn(0, step.demonstration.actions)
        step = collect(pool)[0]
    assert step.demonstration is None
    assert step.info["success"]


@BOTH
def test_without_asking_there_is_no_expert(make_pool, process):
    pool = make_pool(process, slots=1)
    pool.reset(0, seed=5)
    assert collect(pool)[0].demonstration is None


@BOTH
@pytest.mark.parametrize("when", ["reset", "turn"])
def test_a_simulator_that_raises_fails_its_slot_and_serves_again(make_pool, process, when):
    pool = make_pool(process, env="broken_lake:BrokenLake", how="raise", when=when, every=2)
    for slot, seed in ((0, 2), (1, 3)):
        pool.reset(slot, seed=seed)
    found = collect(pool)
    if when == "turn":
        for slot in range(2):
            pool.turn(slot, ["left"])
        found = collect(pool)
    assert isinstance(found[0], SlotFailure) and found[0].kind == "crash"
    assert "the ice broke" in found[0].message
    assert isinstance(found[1], SlotStep)
    pool.reset(0, seed=1)
    assert isinstance(collect(pool)[0], SlotStep)


@pytest.mark.parametrize("noticed", [True, False])
def test_a_killed_process_is_replaced_while_others_go_on(make_pool, noticed):
    pool = make_pool("subprocess")
    for slot in range(2):
        pool.reset(slot, seed=slot)
    collect(pool)
    victim = pool.pids[0]
    os.kill(victim, signal.SIGKILL)
    if noticed:  # dead before the turn is sent, or while it is under way
        select.select([os.pidfd_open(victim)], [], [], 10.0)
    for slot in range(2):
        pool.turn(slot, ["left"])
    found = collect(pool)
    assert isinstance(found[1], SlotStep)
    assert isinstance(found[0], SlotFailure) and found[0].kind == "crash"
    assert "exit status -9" in found[0].message
    pool.reset(0, seed=9)
    assert isinstance(collect(pool)[0], SlotStep)
    assert pool.pids[0] != victim


@pytest.mark.parametrize("when", ["reset", "turn"])
def test_a_hanging_simulator_misses_its_deadline_and_is_replaced(make_pool, when):
    deadlines = Deadlines(reset_s=1.5, turn_s=1.5)
    pool = make_pool(
        "subprocess", env="broken_lake:BrokenLake", how="hang", when=when, every=2, deadlines=deadlines
    )
    for slot, seed in ((0, 2), (1, 3)):
        pool.reset(slot, seed=seed)
    found = collect(pool)
    if when == "turn":
        for slot in range(2):
            pool.turn(slot, ["left"])
        found = collect(pool)
    assert isinstance(found[0], SlotFailure) and found[0].kind == "timeout"
    assert isinstance(found[1], SlotStep)
    pool.reset(0, seed=1)
    assert isinstance(collect(pool)[0], SlotStep)


def test_an_inline_simulator_that_comes_back_too_late_counts_as_timed_out(make_pool):
    pool = make_pool("inline", slots=1, deadlines=Deadlines(reset_s=1e-9, turn_s=60))
    pool.reset(0, seed=1)
    outcome = collect(pool)[0]
    assert isinstance(outcome, SlotFailure) and outcome.kind == "timeout"


@BOTH
def test_a_simulator_that_cannot_start_is_an_error_that_says_why(process):
    with pytest.raises((SimulatorError, RuntimeError), match="no ice this year"):
        SlotPool(SimulatorFactory("broken_lake:Stillborn", {}), 2, process=process)


def test_a_cancelled_request_never_answers_the_next_one(make_pool):
    pool = make_pool("subprocess", slots=1)
    pool.reset(0, seed=1)
    pool.cancel(0)
    pool.reset(0, seed=2)
    expected = SimulatorFactory("frozen_lake", LAKE)().reset(seed=2)[0]["text"]
    assert collect(pool)[0].observation["text"] == expected
    assert pool.poll(0.0) == []


def test_closing_leaves_no_process_behind(make_pool):
    pool = make_pool("subprocess")
    pids = pool.pids
    pool.close()
    pool.close()  # twice does no harm
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_it_stands_where_rllib_expects_an_environment(make_pool):
    pool = make_pool("inline", slots=3)
    assert pool.num_envs == len(pool) == 3
    assert pool.unwrapped is pool
    assert pool.single_action_space.n == 4
    assert pool.spec.actions.names == ("left", "down", "right", "up")
