"""The embedded household simulator: procedural houses and a Stretch-like robot on MuJoCo.

Everything the robot does is physics: it drives and reaches by position servos of limited force,
is stopped by walls and furniture, and knocks over what it hits. Only two things are short cuts: a
grasp welds the item to the gripper, and at the end of an action that met no resistance the joints
are set to exactly where they were going, so that steps do not drift.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from rllib_vlm.errors import SimulatorError, UnknownNameError
from rllib_vlm.sims.household import robot as rb
from rllib_vlm.sims.household.mjcf import TIMESTEP, house_xml
from rllib_vlm.sims.household.rendering import canvas
from rllib_vlm.sims.household.sight import Sight
from rllib_vlm.sims.household.world import ACTIONS, Camera, House, RobotState, View
from rllib_vlm.types import Image

_CAMERAS: tuple[Camera, ...] = ("navigation", "manipulation")
_RAMP_STEPS = {"drive": 22, "yaw": 18, "lift": 12, "arm": 12, "wrist": 6}  # for a large step
_SETTLE_STEPS = 12  # at most, after the ramp
_DROP_S = 2.0  # SPOC lets physics run this long after a drop
_KEPT_MODELS = 4
_NEAR = 2e-3  # m or rad: closer to the target than this counts as there


class EmbeddedWorld:
    """A `World` on MuJoCo. Bit for bit reproducible: the same house and actions give the same states.

    Args:
        camera_size: (width, height) of both cameras in pixels.
        grasp_radius: m; what comes closer than this to the grasp centre can be picked up. Distance
            is to the item's bounding box, so the centre of an item need not come this close.
        payload: kg the gripper can lift.
        navigation_pitch: deg below the horizon, SPOC: 27.
        manipulation_pitch: deg below the horizon, SPOC: 33.
        fov: vertical field of view of both cameras, deg.
    """

    def __init__(
        self,
        *,
        camera_size: tuple[int, int] = (196, 112),
        grasp_radius: float = 0.1,
        payload: float = 1.5,
        navigation_pitch: float = 27.0,
        manipulation_pitch: float = 33.0,
        fov: float = 59.0,
    ) -> None:
        self.camera_size = camera_size
        self.grasp_radius = grasp_radius
        self.payload = payload
        self._optics = {
            "navigation_pitch": navigation_pitch,
            "manipulation_pitch": manipulation_pitch,
            "fov": fov,
        }
        self._models: OrderedDict[House, _Compiled] = OrderedDict()
        self._now: _Compiled | None = None
        self._held: str | None = None
        self._state: RobotState | None = None  # as last asked for; None since something may have moved

    def load(self, house: House, *, x: float, y: float, yaw: float, seed: int = 0) -> None:
        """Builds the house and puts the robot there, arm stowed. `seed` changes nothing: physics draws no lots."""
        if house in self._models:
            self._models.move_to_end(house)
        else:
            self._models[house] = _Compiled(house, house_xml(house, **self._optics), self._optics["fov"])
            while len(self._models) > _KEPT_MODELS:
                self._models.popitem(last=False)
        self._now = self._models[house]
        self._now.reset()
        self._held = self._state = None
        self.place(x, y, yaw, *rb.STOWED)
        for _ in range(3):
            mujoco.mj_step(self._now.model, self._now.data)
        self._state = None
        self.place(x, y, yaw)

    def place(
        self,
        x: float,
        y: float,
        yaw: float,
        lift: float | None = None,
        arm: float | None = None,
        wrist: float | None = None,
        held: str | None = None,
    ) -> None:
        """Puts the robot somewhere without physics; joints left out stay as they are.

        Whatever was held before stays behind where it hangs; `held` puts an item into the gripper.
        """
        c = self._compiled
        now = self.robot
        lift, arm, wrist = (
            new if new is not None else old
            for new, old in zip((lift, arm, wrist), (now.lift, now.arm, now.wrist), strict=True)
        )
        targets = rb.joint_targets(x, y, yaw, lift, arm, wrist)
        c.data.qpos[c.qpos] = targets
        c.data.qvel[c.dofs] = 0.0
        c.data.ctrl[:] = targets
        if self._held is not None:
            self._release()
        if held is not None:
            c.require_item(held)
            mujoco.mj_kinematics(c.model, c.data)
            c.put_into_gripper(held)
            self._weld(held)
        self._refresh()

    def execute(self, action: str) -> bool:
        """See `World.execute`.

        Raises:
            UnknownNameError: no such action.
            SimulatorError: no house is loaded.
        """
        name = ACTIONS.resolve(action)
        if name is None:
            raise UnknownNameError("the household robot's action set", action, ACTIONS.names)
        c = self._compiled
        if name in ("done", "sub_done"):
            return True
        if name == "pickup":
            return self._pickup()
        if name == "dropoff":
            return self._dropoff()
        motion = rb.MOTIONS[name]
        before = self.robot
        self._drive(c, motion)
        after = self.robot
        self._refresh()
        return _change(before, after, motion.joint) > motion.threshold

    def render(self) -> Mapping[Camera, Image]:
        c = self._compiled
        pictures = canvas(*self.camera_size).draw(c.model, c.data, [c.camera_ids[n] for n in _CAMERAS])
        return dict(zip(_CAMERAS, pictures, strict=True))

    @property
    def robot(self) -> RobotState:
        c = self._compiled
        if self._state is None:
            q = c.data.qpos[c.qpos]
            x, y, angle, lift, *_, wrist = q.tolist()
            gx, gy, gz = c.data.site_xpos[c.grasp].tolist()
            yaw = (math.degrees(angle) + 180.0) % 360.0 - 180.0
            self._state = RobotState(
                x, y, yaw, lift, float(q[4:-1].sum()), math.degrees(wrist), (gx, gy, gz), self._held
            )
        return self._state

    @property
    def house(self) -> House:
        """The house that is loaded."""
        return self._compiled.house

    def position(self, id: str) -> tuple[float, float, float]:
        c = self._compiled
        x, y, z = c.data.xpos[c.body(id)]
        return float(x), float(y), float(z) + c.centre_height.get(id, 0.0)

    def views(self, camera: Camera, ids: Iterable[str]) -> dict[str, View]:
        if camera not in _CAMERAS:
            raise UnknownNameError("the robot", camera, _CAMERAS, hint="These are its cameras.")
        c = self._compiled
        return c.sight.views(c.camera_ids[camera], list(ids), self.camera_size)

    def graspable(self) -> tuple[str, ...]:
        """Items the gripper's sphere touches, nearest centre first; also those too heavy to lift."""
        c = self._compiled
        centres = c.data.xpos[c.item_bodies]
        offset = c.data.site_xpos[c.grasp] - centres
        local = np.einsum("nji,nj->ni", c.data.xmat[c.item_bodies].reshape(-1, 3, 3), offset)
        outside = np.maximum(np.abs(local) - c.item_halves, 0.0)
        near = np.linalg.norm(outside, axis=1) <= self.grasp_radius
        distance = np.linalg.norm(offset, axis=1)
        found = sorted((float(distance[i]), c.items[i]) for i in np.flatnonzero(near))
        return tuple(name for _, name in found if name != self._held)

    def close(self) -> None:
        self._models.clear()
        self._now = self._held = self._state = None

    @property
    def _compiled(self) -> _Compiled:
        if self._now is None:
            raise SimulatorError("no house is loaded: call load(house, x=.., y=.., yaw=.., seed=..) first.")
        return self._now

    def _refresh(self) -> None:
        """Brings positions of bodies, cameras and lights up to date with the joints."""
        c = self._compiled
        self._state = None
        mujoco.mj_kinematics(c.model, c.data)
        mujoco.mj_comPos(c.model, c.data)
        mujoco.mj_camlight(c.model, c.data)

    def _drive(self, c: _Compiled, motion: rb.Motion) -> None:
        """Moves one joint group along a smooth ramp and waits until it stands still."""
        data = c.data
        moved = rb.JOINT_GROUPS[motion.joint]
        start = data.ctrl.copy()  # joints that are not asked to move are held where they should be
        start[moved] = data.qpos[c.qpos[moved]]
        goal = c.goal(start, motion)
        ramp = max(4, round(_RAMP_STEPS[motion.joint] * abs(motion.amount) / rb.LARGE_STEP[motion.joint]))
        arrived = False
        shares = [s * s * (3.0 - 2.0 * s) for s in (k / ramp for k in range(1, ramp + 1))]
        targets = start + (goal - start) * np.array(shares)[:, None]
        for k in range(1, ramp + _SETTLE_STEPS + 1):
            if k <= ramp:
                data.ctrl[:] = targets[k - 1]
            mujoco.mj_step(c.model, data)
            if k >= ramp:
                arrived = float(np.abs(data.qpos[c.qpos] - goal).max()) < _NEAR
                if arrived:
                    break
        if arrived:
            data.qpos[c.qpos] = goal
        else:
            data.ctrl[moved] = data.qpos[c.qpos[moved]]
        data.qvel[c.dofs] = 0.0
        self._state = None

    def _pickup(self) -> bool:
        c = self._compiled
        near = self.graspable()
        if self._held is not None or not near:
            return False
        item = near[0]
        if not c.pickupable[item] or float(c.model.body_mass[c.body(item)]) > self.payload:
            return False
        self._weld(item)
        self._run(3)
        self._refresh()
        return True

    def _dropoff(self) -> bool:
        if self._held is None:
            return False
        c = self._compiled
        dofs = c.item_dofs[self._held]
        self._release()
        calm = 0
        for _ in range(round(_DROP_S / TIMESTEP)):
            mujoco.mj_step(c.model, c.data)
            calm = calm + 1 if float(np.abs(c.data.qvel[dofs]).max()) < 0.02 else 0
            if calm >= 10:
                break
        c.data.qvel[c.dofs] = 0.0
        self._refresh()
        return True

    def _run(self, steps: int) -> None:
        c = self._compiled
        for _ in range(steps):
            mujoco.mj_step(c.model, c.data)
        c.data.qvel[c.dofs] = 0.0

    def _weld(self, item: str) -> None:
        self._compiled.weld(item)
        self._held, self._state = item, None

    def _release(self) -> None:
        if self._held is not None:
            self._compiled.release(self._held)
        self._held = self._state = None


def _change(before: RobotState, after: RobotState, joint: str) -> float:
    """How far a joint group moved, m or deg."""
    if joint == "drive":
        return math.hypot(after.x - before.x, after.y - before.y)
    if joint == "yaw":
        return abs((after.yaw - before.yaw + 180.0) % 360.0 - 180.0)
    return abs(getattr(after, joint) - getattr(before, joint))


class _Compiled:
    """A house's MuJoCo model, its state, and where in them things are."""

    def __init__(self, house: House, xml: str, fov: float) -> None:
        self.house = house
        self.model: Any = mujoco.MjModel.from_xml_string(xml)
        self.data: Any = mujoco.MjData(self.model)
        m = self.model
        joints = [m.joint(name) for name in rb.JOINTS]
        self.qpos = np.array([int(j.qposadr[0]) for j in joints])
        self.dofs = np.array([int(j.dofadr[0]) for j in joints])
        self.grasp = int(m.site("grasp").id)
        self.wrist = int(m.body("wrist").id)
        self.camera_ids = {name: int(m.camera(name).id) for name in _CAMERAS}
        self.items = [i.id for i in house.items]
        names = [*(f.id for f in house.furniture), *self.items]
        self._bodies = {name: int(m.body(name).id) for name in names}
        self.item_bodies = np.array([self._bodies[i] for i in self.items], dtype=np.int64)
        self.item_halves = np.array([i.size for i in house.items], dtype=np.float64).reshape(-1, 3) / 2
        self.item_dofs: dict[str, NDArray[np.int64]] = {}
        self._item_qpos: dict[str, int] = {}
        self._solid: dict[str, int] = {}  # an item's collision geom: its body's first
        for name in self.items:
            body = m.body(self._bodies[name])
            self.item_dofs[name] = np.arange(int(body.dofadr[0]), int(body.dofadr[0]) + 6)
            self._item_qpos[name] = int(m.jnt_qposadr[int(body.jntadr[0])])
            self._solid[name] = int(body.geomadr[0])
        self.pickupable = {i.id: i.pickupable for i in house.items}
        self.centre_height = {f.id: f.height / 2 for f in house.furniture}
        self.sight = Sight(house, self.model, self.data, self._bodies, fov)

    def reset(self) -> None:
        for name in self.items:
            self._set_bits(name, rb.ITEM_BITS)
        mujoco.mj_resetData(self.model, self.data)
        mujoco.mj_kinematics(self.model, self.data)

    def body(self, id: str) -> int:
        if id not in self._bodies:
            raise UnknownNameError("the house", id, self._bodies)
        return self._bodies[id]

    def require_item(self, id: str) -> None:
        if not self.pickupable.get(id, False):
            raise UnknownNameError(
                "what the gripper can hold", id, [i for i, p in self.pickupable.items() if p]
            )

    def goal(self, start: NDArray[np.float64], motion: rb.Motion) -> NDArray[np.float64]:
        """Joint targets of a motion, within the joints' ranges."""
        goal = start.copy()
        if motion.joint == "drive":
            goal[0] += motion.amount * math.cos(start[2])
            goal[1] += motion.amount * math.sin(start[2])
        elif motion.joint == "yaw":
            goal[2] += math.radians(motion.amount)
        elif motion.joint == "lift":
            goal[3] = np.clip(start[3] + motion.amount, *rb.LIFT_RANGE)
        elif motion.joint == "arm":
            goal[4:-1] = np.clip(start[4:-1].sum() + motion.amount, *rb.ARM_RANGE) / (len(goal) - 5)
        else:
            low, high = (math.radians(v) for v in rb.WRIST_RANGE)
            goal[-1] = np.clip(start[-1] + math.radians(motion.amount), low, high)
        return goal

    def put_into_gripper(self, item: str) -> None:
        """Moves an item to just before the palm, upright, its own y axis along the fingers."""
        a = self._item_qpos[item]
        forward = -self.data.xmat[self.wrist].reshape(3, 3)[:, 1]
        half = float(self.item_halves[self.items.index(item)][1])
        ahead = max(0.0, half + 0.005 - rb.PALM_REACH)
        self.data.qpos[a : a + 3] = self.data.site_xpos[self.grasp] + ahead * forward
        self.data.qpos[a + 3 : a + 7] = self.data.xquat[self.wrist]
        self.data.qvel[self.item_dofs[item]] = 0.0
        mujoco.mj_kinematics(self.model, self.data)

    def weld(self, item: str) -> None:
        """Holds an item in its present place relative to the wrist."""
        d, body = self.data, self._bodies[item]
        inverse = np.empty(4)
        mujoco.mju_negQuat(inverse, d.xquat[self.wrist])
        place, turn = np.empty(3), np.empty(4)
        mujoco.mju_rotVecQuat(place, d.xpos[body] - d.xpos[self.wrist], inverse)
        mujoco.mju_mulQuat(turn, inverse, d.xquat[body])
        weld: Any = self.model.equality(item)
        weld.data[0:3] = 0.0
        weld.data[3:6], weld.data[6:10] = place, turn
        d.eq_active[int(weld.id)] = 1
        self._set_bits(item, rb.HELD_BITS)

    def release(self, item: str) -> None:
        weld: Any = self.model.equality(item)
        self.data.eq_active[int(weld.id)] = 0
        self._set_bits(item, rb.ITEM_BITS)

    def _set_bits(self, item: str, bits: tuple[int, int]) -> None:
        geom = self._solid[item]
        self.model.geom_contype[geom], self.model.geom_conaffinity[geom] = bits
