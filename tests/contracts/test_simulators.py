"""Every simulator in the registry keeps the contract of a simulator."""

from functools import partial
from typing import Any

import pytest

from rllib_vlm.errors import MissingExtraError
from rllib_vlm.registry import names, resolve
from rllib_vlm.sims.base import Simulator
from rllib_vlm.sims.check import check_simulator

# A few simulators are checked in more than one configuration.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "household": [
        {"tasks": ("Fetch", "ObjectNav"), "camera_size": (56, 56), "max_steps": 40},
        {
            "tasks": ("PickUp", "RoomVisit", "RoomNav"),
            "observation": "text",
            "reward": "vagen",
            "max_steps": 40,
        },
    ],
    "cards": [{}, {"observation": "text", "mode": "parity", "face_cards": "rank", "suits": "mixed"}],
    "spoc": [{"observation": "both", "curriculum": "short_to_full_fetch", "reward": "spoc_sparse"}],
}
CASES = [(name, kwargs) for name in names("simulators") for kwargs in VARIANTS.get(name, [{}])]


def make(name: str, kwargs: dict[str, Any]) -> Simulator:
    simulator: Simulator = resolve("simulators", name)(**kwargs)
    return simulator


@pytest.mark.parametrize(("name", "kwargs"), CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)])
def test_keeps_the_contract(name: str, kwargs: dict[str, Any]) -> None:
    try:
        resolve("simulators", name)
    except MissingExtraError as error:
        pytest.skip(str(error))
    check_simulator(partial(make, name, kwargs))
