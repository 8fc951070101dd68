"""What is reported of an episode, under SPOC's names.

Sources: SPL: Anderson et al. 2018, https://arxiv.org/abs/1807.06757, eq. 1. SEL (success weighted
by episode length): Eftekhar et al. 2023, https://arxiv.org/abs/2311.04193; SPOC uses it with the
expert's number of actions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


def weighted_success(success: bool, shortest: float, taken: float) -> float:
    """Success * shortest / max(shortest, taken); 1 where both are 0 and the episode succeeded."""
    longest = max(shortest, taken)
    return float(success) * (shortest / longest if longest > 0.0 else 1.0)


@dataclass(slots=True)
class EpisodeRecord:
    """What has happened in the episode so far."""

    expert_length: int  # actions the shortest-path expert needs
    shortest_path_m: float  # geodesic distance from the start to where the task can be finished
    steps: int = 0
    path_m: float = 0.0  # driven so far
    failed_actions: int = 0
    collisions: int = 0  # drives and turns that did not move the robot as they should have
    grasp_tries: int = 0
    failed_grasps: int = 0
    picked_up: bool = False  # the target was held at least once
    target_seen: bool = False  # in either camera, at the end of some turn
    rooms: set[str] = field(default_factory=set)  # rooms the robot has been in
    marked: set[str] = field(default_factory=set)  # rooms marked by a correct sub_done

    def metrics(self, *, success: bool, distance_to_target_m: float, rooms_in_house: int) -> dict[str, float]:
        """The episode's figures; `sel` compares actions, `spl` metres."""
        return {
            "success": float(success),
            "sel": weighted_success(success, self.expert_length, self.steps),
            "spl": weighted_success(success, self.shortest_path_m, self.path_m),
            "episode_length": float(self.steps),
            "expert_length": float(self.expert_length),
            "path_m": self.path_m,
            "rooms_visited": float(len(self.rooms)),
            "rooms_visited_share": len(self.rooms) / max(rooms_in_house, 1),
            "rooms_marked": float(len(self.marked)),
            "picked_up": float(self.picked_up),
            "target_seen": float(self.target_seen),
            "grasp_tries": float(self.grasp_tries),
            "failed_grasps": float(self.failed_grasps),
            "failed_actions": float(self.failed_actions),
            "collisions": float(self.collisions),
            "distance_to_target": distance_to_target_m if math.isfinite(distance_to_target_m) else 0.0,
        }
