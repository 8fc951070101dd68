"""How fast the embedded household simulator is, in CPU time (the wall clock depends on the neighbours)."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from rllib_vlm.sims.household.embedded import EmbeddedWorld
from rllib_vlm.sims.household.floorplan import Clearance
from rllib_vlm.sims.household.houses import generate_house

_MOVES = ("move_ahead", "move_ahead", "rotate_left", "rotate_right", "rotate_left_small", "arm_up_small",
          "arm_down_small", "arm_out", "arm_in", "move_back")  # fmt: skip
_STEPS, _REPEATS, _HOUSES = 150, 5, 20


def _walk(world: EmbeddedWorld, seed: int, *, render: bool) -> float:
    """Random actions per CPU-second in one house."""
    rng = np.random.default_rng(seed)
    house = generate_house(seed, "train")
    free = Clearance.of(house)
    cells = np.argwhere(free.values >= 0.35)
    i, j = cells[int(rng.integers(len(cells)))]
    world.load(house, x=free.x0 + free.step * i, y=free.y0 + free.step * j, yaw=0.0, seed=seed)
    if render:
        world.render()
    start = time.process_time()
    for _ in range(_STEPS):
        world.execute(_MOVES[int(rng.integers(len(_MOVES)))])
        if render:
            world.render()
    return _STEPS / (time.process_time() - start)


def _median(world: EmbeddedWorld, *, render: bool) -> float:
    return statistics.median(_walk(world, seed, render=render) for seed in range(_REPEATS))


def _build_times(world: EmbeddedWorld) -> list[float]:
    """CPU-seconds to draw, compile and load a house never seen before."""
    times = []
    for seed in range(1000, 1000 + _HOUSES):
        start = time.process_time()
        world.load(generate_house(seed, "train"), x=1.0, y=1.0, yaw=0.0, seed=seed)
        times.append(time.process_time() - start)
    return times


def _placed_pictures(world: EmbeddedWorld) -> float:
    """Teleports, each with two pictures, per CPU-second."""
    start = time.process_time()
    for k in range(_STEPS):
        world.place(1.0, 1.0, 7.0 * k)
        world.render()
    return _STEPS / (time.process_time() - start)


def run() -> dict[str, Any]:
    """The headline figure is steps per CPU-second with two 224x224 pictures per step."""
    large, small = EmbeddedWorld(camera_size=(224, 224)), EmbeddedWorld(camera_size=(196, 112))
    value = _median(large, render=True)
    builds = _build_times(small)
    return {
        "name": "simulator",
        "value": round(value, 1),
        "unit": "steps per CPU-second, two 224x224 cameras",
        "details": {
            "steps per CPU-second, no pictures": round(_median(small, render=False), 1),
            "steps per CPU-second, two 196x112 cameras": round(_median(small, render=True), 1),
            "teleports per CPU-second, two 196x112 cameras": round(_placed_pictures(small), 1),
            "new house, CPU-seconds, median": round(statistics.median(builds), 4),
            "new house, CPU-seconds, slowest": round(max(builds), 4),
            "repeats": _REPEATS,
            "houses": _HOUSES,
        },
    }
