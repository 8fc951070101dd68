"""A house as the planner knows it: where the robot gets to, and from where things can be taken or seen."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rllib_vlm.sims.household.grasp import STRETCH, Body, Target, standing_points
from rllib_vlm.sims.household.planner import NavigationMap
from rllib_vlm.sims.household.world import House, Item

VIEWING_M = (0.6, 1.4)  # ObjectNav is finished from between these distances


class Place:
    """A house with what the planner knows of it; masks are computed once per item and kept."""

    def __init__(self, house: House, body: Body = STRETCH) -> None:
        self.house, self.body = house, body
        self.nav = NavigationMap(house, body.radius)
        self._masks: dict[str, NDArray[np.bool_]] = {}

    @cached_property
    def reachable(self) -> NDArray[np.bool_]:
        """The largest connected part of the free floor."""
        labels, count = self._parts
        if count == 0:
            return np.zeros_like(self.nav.free)
        return np.asarray(labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:])))

    @cached_property
    def _parts(self) -> tuple[NDArray[np.int32], int]:
        """[nx, ny] number of each grid point's connected part of the free floor, 0 off it; and how many."""
        labels, count = ndimage.label(self.nav.free, structure=np.ones((3, 3)))
        return np.asarray(labels, np.int32), int(count)

    def as_target(self, item: Item, position: tuple[float, float, float] | None = None) -> Target:
        """An item as the planner sees it, at its first place or at another one."""
        x, y, z = position or (item.x, item.y, item.z)
        width, depth, height = item.size
        return Target(
            id=item.id,
            x=x,
            y=y,
            z=z,
            top=z + height / 2,
            radius=max(width, depth) / 2,
            depth=(width + depth) / 4,
        )

    def standing(self, item: Item) -> NDArray[np.bool_]:
        """Grid points from which this item can be taken at its first place."""
        if item.id not in self._masks:
            self._masks[item.id] = self._standing_anywhere(item) & self.reachable
        return self._masks[item.id]

    def cut_off(self) -> list[Item]:
        """What could be taken, but only from parts of the floor to which the robot finds no way."""
        if self._parts[1] < 2:
            return []
        return [
            item
            for item in self.house.items
            if item.pickupable and not self.standing(item).any() and self._standing_anywhere(item).any()
        ]

    def _standing_anywhere(self, item: Item) -> NDArray[np.bool_]:
        others = [self.as_target(i) for i in self.house.items if i.receptacle == item.receptacle]
        return standing_points(self.nav, self.body, self.as_target(item), others)

    def viewing(self, item: Item) -> NDArray[np.bool_]:
        """Grid points from which this item can be looked at from near."""
        key = f"view {item.id}"
        if key not in self._masks:
            mask = self.reachable & self.nav.within(item.x, item.y, *VIEWING_M)
            i, j = np.nonzero(mask)
            if len(i):
                points = list(zip(self.nav.xs[i].tolist(), self.nav.ys[j].tolist(), strict=True))
                mask[i, j] = self.nav.all_in_sight(points, (item.x, item.y), 0.08)
            self._masks[key] = mask
        return self._masks[key]
