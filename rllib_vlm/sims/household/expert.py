"""Experts: one that knows the whole house, and one that knows only what the robot has seen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

from rllib_vlm.errors import UnknownNameError
from rllib_vlm.sims.household.episode import ROOM_MARGIN_M, Episode
from rllib_vlm.sims.household.manoeuvres import Manoeuvre, Manoeuvres
from rllib_vlm.sims.household.memory import Memory
from rllib_vlm.sims.household.phrases import observed, predicted, reasoned
from rllib_vlm.sims.household.place import VIEWING_M
from rllib_vlm.sims.household.planner import Point, Pose
from rllib_vlm.sims.household.tasks import GRASPING, named_receptacles
from rllib_vlm.sims.household.world import Room
from rllib_vlm.types import Demonstration

if TYPE_CHECKING:
    from rllib_vlm.sims.household.env import Household

ExpertKind = Literal["search", "planner"]
_FACING_DEG = 20.0


def make_expert(env: Household, *, max_actions: int, kind: ExpertKind) -> HouseholdExpert:
    """An expert for the environment's present episode.

    Raises:
        UnknownNameError: no expert of this kind.
    """
    from rllib_vlm.sims.household.search import SearchExpert

    kinds = {"planner": PlannerExpert, "search": SearchExpert}
    if kind not in kinds:
        raise UnknownNameError("household experts", kind, get_args(ExpertKind))
    return kinds[kind](env, max_actions)


class HouseholdExpert:
    """Reads the simulator's state at each call, so it can label any state, whoever led there.

    A new episode of the same environment starts it afresh.
    """

    def __init__(self, env: Household, max_actions: int) -> None:
        self.env, self.max_actions = env, max(1, max_actions)
        self._start()

    def _start(self) -> None:
        env = self.env
        self.episode: Episode = env.episode
        self.task = env.task
        self.place = self.episode.place
        self.nav = self.place.nav
        self.moves = Manoeuvres(env.world, self.place, self.max_actions)
        self.receptacles = frozenset(named_receptacles(self.episode.house, self.task))
        self._looked_from: list[Point] = []  # ObjectNav: where the target did not show from
        self.memory = Memory(self.episode.house, frozenset(self.task.targets), self.receptacles)

    def __call__(self) -> Demonstration:
        if self.episode is not self.env.episode:
            self._start()
        self.memory.update(self.env.scene)
        move = self.decide() or Manoeuvre((), "give up")
        return self._demonstrate(move)

    def decide(self) -> Manoeuvre | None:
        """The next turn, or None to give up."""
        raise NotImplementedError

    def _demonstrate(self, move: Manoeuvre) -> Demonstration:
        memory, world, room = self.memory, self.env.world, self.env.scene.room
        target = memory.visible("item", memory.targets)
        text = observed(
            self.task, self.env.where, holding=self.env.referee.holds_target(),
            at_gripper=target is not None and target.id in world.graspable(),
            target=target, place=memory.visible("furniture"), door=memory.visible("door"),
            room=room.type if room is not None else None,
        )  # fmt: skip
        return Demonstration(
            actions=move.actions, observation=text, reasoning=reasoned(move.subgoal, self.task),
            prediction=predicted(move.subgoal, self.task), questions=self.env.ask(),
            detections=self.env.shown(), mentions=self.env.mentions(memory.targets | memory.receptacles),
        )  # fmt: skip

    # ----- what both kinds do once they know enough

    def enter(self, room: Room, subgoal: str) -> Manoeuvre | None:
        """Drives into a room."""
        mask = self.nav.mask(room, ROOM_MARGIN_M) & self.place.reachable

        def inside(at: Pose) -> bool:
            x, y, m = at.x, at.y, ROOM_MARGIN_M
            return room.x0 + m <= x <= room.x1 - m and room.y0 + m <= y <= room.y1 - m

        return self.moves.stow() or self.moves.go(f"room {room.id}", mask, subgoal, inside)

    def look_at(self, item_id: str, position: tuple[float, float, float]) -> Manoeuvre | None:
        """ObjectNav: goes near a target believed at `position`, turns to it and stops."""
        if self.env.referee.in_view(item_id):
            return Manoeuvre(("done",), "stop")
        x, y, _ = position
        pose = self.moves.pose
        if math.dist(pose.point, (x, y)) <= VIEWING_M[1] + self.nav.STEP and abs(pose.bearing(x, y)) <= 4.0:
            self._looked_from.append(pose.point)  # and it does not show from here
        near = self.place.reachable & self.nav.within(x, y, *VIEWING_M)
        for choice in (self.place.viewing(self.episode.items[item_id]), near):
            mask = choice.copy()
            for tried in self._looked_from:
                mask &= ~self.nav.within(*tried, 0.0, 0.4)
            if mask.any():
                break
        else:
            self._looked_from.clear()
            return Manoeuvre(("move_back",), "look")

        def arrived(at: Pose) -> bool:
            return bool(mask[self.nav.cell(at.x, at.y)])

        return (
            self.moves.go(f"view {item_id}", mask, "go to target", arrived)
            or self.moves.face(x, y, "look", tolerance=_FACING_DEG)
            or self.moves.face(x, y, "look", tolerance=4.0)
        )

    def mark_or_finish(self) -> Manoeuvre | None:
        """RoomVisit: marks the room the robot is in, stops when all are marked, else None."""
        marked = self.env.record.marked
        if len(marked) == self.task.rooms_in_house:
            return Manoeuvre(("done",), "stop")
        room = self.env.scene.room
        if room is not None and room.id not in marked:
            return Manoeuvre(("sub_done",), "mark")
        return None


class PlannerExpert(HouseholdExpert):
    """Knows the whole house and where everything is; takes the shortest way."""

    def decide(self) -> Manoeuvre | None:
        task, pose = self.task, self.moves.pose
        if task.name in GRASPING:
            world = self.env.world
            targets = sorted(task.targets, key=lambda t: math.dist(pose.point, world.position(t)[:2]))
            held = [t for t in targets if world.robot.held == t]
            chosen = (held or targets)[0]
            return self.moves.take(chosen, world.position(chosen))
        if task.name == "ObjectNav":
            for target in task.targets:
                if self.env.referee.in_view(target):
                    return Manoeuvre(("done",), "stop")
            nearest = min(task.targets, key=lambda t: math.dist(pose.point, self.env.world.position(t)[:2]))
            return self.look_at(nearest, self.env.world.position(nearest))
        if task.name == "RoomNav":
            if self.env.referee.succeeded():
                return Manoeuvre(("done",), "stop")
            room = next(r for r in self.episode.house.rooms if r.type == task.room)
            return self.enter(room, "go to room")
        return self.mark_or_finish() or self._next_room()

    def _next_room(self) -> Manoeuvre | None:
        """RoomVisit: drives towards the nearest room that is not marked."""
        left = [r for r in self.episode.house.rooms if r.id not in self.env.record.marked]
        pose = self.moves.pose

        def cost(room: Room) -> float:
            mask = self.nav.mask(room, ROOM_MARGIN_M) & self.place.reachable
            return self.nav.value(self.moves.field(f"room {room.id}", mask), pose.x, pose.y)

        return self.enter(min(left, key=cost), "go to room")
