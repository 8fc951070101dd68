"""The oracle as an expert."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rllib_vlm.sims.streetview.history import describe
from rllib_vlm.types import Demonstration

if TYPE_CHECKING:
    from rllib_vlm.sims.streetview.env import StreetView


class StreetExpert:
    """Says what is at the stop and which instruction is due, and takes the right action."""

    def __init__(self, street: StreetView) -> None:
        self._street = street

    def __call__(self) -> Demonstration:
        street = self._street
        if street.over:
            return Demonstration(actions=())
        node = street.node
        seen = node.observation if street.settings.original else describe(node)
        return Demonstration(actions=(node.action,), observation=seen, reasoning=node.instruction)
