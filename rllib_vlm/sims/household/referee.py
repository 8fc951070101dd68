"""Says how things stand in an episode: whether the task is done, how far off it is, and the figures that tell of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rllib_vlm.sims.household.episode import Episode
from rllib_vlm.sims.household.metrics import EpisodeRecord
from rllib_vlm.sims.household.remaining import Remaining
from rllib_vlm.sims.household.rewards import Situation
from rllib_vlm.sims.household.scene import SEEN_SHARE, Scene
from rllib_vlm.sims.household.tasks import GRASPING, OBJECT_NAV_M, OBJECT_NAV_PIXELS
from rllib_vlm.sims.household.world import World

_FAR_M = 20.0  # metres told of at most
_CELL_M = 0.5  # floor cells of the RoomVisit shaping


@dataclass(frozen=True, slots=True)
class Referee:
    """Of one episode. Success rules are SPOC's; see `tasks` for their sources."""

    world: World
    episode: Episode
    scene: Scene
    record: EpisodeRecord
    remaining: Remaining | None  # None: nobody is going anywhere

    def holds_target(self) -> bool:
        """Whether an object that fits the instruction is held."""
        return self.world.robot.held in self.episode.task.targets

    def succeeded(self) -> bool:
        """Whether `done` would be right now."""
        task = self.episode.task
        if task.name in GRASPING:
            return self.holds_target()
        if task.name == "RoomVisit":
            return len(self.record.marked) == len(self.episode.house.rooms)
        if task.name == "RoomNav":
            room = self.scene.room
            return room is not None and room.type == task.room
        return any(self.in_view(target) for target in task.targets)

    def in_view(self, target: str) -> bool:
        """ObjectNav's rule: enough of it in the navigation camera, within 2 m."""
        view = self.world.views("navigation", [target])[target]
        near = self._floor_distance(target) <= OBJECT_NAV_M
        return near and view.pixels >= OBJECT_NAV_PIXELS and view.visible >= SEEN_SHARE

    def reached(self, near_m: float) -> bool:
        """VAGEN's rule: held, or the robot within `near_m` of it on the floor."""
        near = min(self._floor_distance(t) for t in self.episode.task.targets)
        return self.holds_target() or near <= near_m

    def situation(self) -> Situation:
        """What a reward looks at."""
        robot, task, episode = self.world.robot, self.episode.task, self.episode
        grasping = task.name in GRASPING
        distance = episode.distance(robot.x, robot.y)
        return Situation(
            distance=distance if math.isfinite(distance) else None,
            gripper_distance=(
                min(math.dist(robot.gripper, self.world.position(t)) for t in task.targets)
                if grasping
                else None
            ),
            graspable=grasping and not set(task.targets).isdisjoint(self.world.graspable()),
            held=grasping and self.holds_target(),
            cell=(math.floor(robot.x / _CELL_M), math.floor(robot.y / _CELL_M)),
            room=room.id if (room := self.scene.room) is not None else None,
        )

    def to_go(self) -> float:
        """About how many actions a planner that knows the house would still need, `done` included."""
        if self.remaining is None:
            return 0.0
        return self.remaining(self.world.robot, held=self.holds_target(), marked=self.record.marked)

    def state(self, *, limit: int, to_go: float) -> dict[str, float]:
        """How well things stand, seen or unseen, for baselines: metres, shares of 1, and 1 or 0.

        Args:
            limit: steps the episode may take.
            to_go: what `to_go()` says; it takes a while.
        """
        robot, targets, rooms = self.world.robot, self.episode.task.targets, self.episode.house.rooms
        now = self.situation()
        positions = [self.world.position(t) for t in targets]
        here = {room.id for x, y, _ in positions if (room := self.episode.house.room_at(x, y)) is not None}
        pose = self.scene.pose
        return {
            "actions_to_go": to_go,
            "distance_m": min(now.distance, _FAR_M) if now.distance is not None else _FAR_M,
            "gripper_m": min(now.gripper_distance, _FAR_M) if now.gripper_distance is not None else 0.0,
            "turned_away": min((abs(pose.bearing(x, y)) / 180.0 for x, y, _ in positions), default=0.0),
            "same_room": float(now.room in here),
            "visible": float(bool(self.scene.things(targets))),
            "seen": float(self.record.target_seen),
            "graspable": float(now.graspable),
            "held": float(self.holds_target()),
            "holds_other": float(robot.held is not None and not self.holds_target()),
            "marked": len(self.record.marked) / max(1, len(rooms)),
            "steps": self.record.steps / limit,
        }

    def metrics(self, *, success: bool) -> dict[str, float]:
        """The episode's figures so far."""
        targets, robot = self.episode.task.targets, self.world.robot
        if targets:
            distance = min(self._floor_distance(t) for t in targets)
        else:
            distance = self.episode.distance(robot.x, robot.y)
        return self.record.metrics(
            success=success, distance_to_target_m=distance, rooms_in_house=len(self.episode.house.rooms)
        )

    def _floor_distance(self, target: str) -> float:
        robot, position = self.world.robot, self.world.position(target)
        return math.dist((robot.x, robot.y), position[:2])
