"""The embedded household simulator: a Stretch-like robot in a MuJoCo house."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import mujoco
import numpy as np

from rllib_vlm.errors import UnknownNameError
from rllib_vlm.sims.household.mjcf import CAMERA_FOV_DEG, GRIPPER_MIN_M, house_xml
from rllib_vlm.sims.household.rendering import OffscreenRenderer
from rllib_vlm.sims.household.world import ACTIONS, Camera, House, RobotState, View
from rllib_vlm.types import Image

# SPOC's step sizes: thor_spoc, agent_step.
MOVE_M, ROTATE_DEG, ROTATE_SMALL_DEG = 0.2, 30.0, 6.0
ARM_M, ARM_SMALL_M, WRIST_DEG = 0.1, 0.02, 10.0
LIFT_RANGE, ARM_RANGE, WRIST_RANGE = (0.2, 1.1), (0.0, 0.5), (-75.0, 75.0)
STOWED_LIFT = 0.6

DROP_S = 2.0
SETTLE_S = 0.6
RAMP_STEPS, MAX_SETTLE_STEPS = 18, 40

_DELTAS = {
    "move_ahead": ("base", MOVE_M), "move_back": ("base", -MOVE_M),
    "rotate_left": ("yaw", ROTATE_DEG), "rotate_right": ("yaw", -ROTATE_DEG),
    "rotate_left_small": ("yaw", ROTATE_SMALL_DEG), "rotate_right_small": ("yaw", -ROTATE_SMALL_DEG),
    "arm_up": ("lift", ARM_M), "arm_down": ("lift", -ARM_M),
    "arm_up_small": ("lift", ARM_SMALL_M), "arm_down_small": ("lift", -ARM_SMALL_M),
    "arm_out": ("arm", ARM_M), "arm_in": ("arm", -ARM_M),
    "arm_out_small": ("arm", ARM_SMALL_M), "arm_in_small": ("arm", -ARM_SMALL_M),
    "wrist_open": ("wrist", -WRIST_DEG), "wrist_close": ("wrist", WRIST_DEG),
}  # fmt: skip


class EmbeddedWorld:
    def __init__(self, camera_size: tuple[int, int] = (196, 112), *, grasp_radius: float = 0.1,
                 max_payload_kg: float = 2.0) -> None:
        self.camera_size = camera_size
        self.grasp_radius = grasp_radius
        self.max_payload_kg = max_payload_kg
        self._renderer: OffscreenRenderer | None = None
        self._house: House | None = None

    def load(self, house: House, *, x: float, y: float, yaw: float, seed: int) -> None:
        if house is not self._house:
            self._model = mujoco.MjModel.from_xml_string(house_xml(house))
            self._data = mujoco.MjData(self._model)
            self._house = house
            self._index()
        m, d = self._model, self._data
        mujoco.mj_resetData(m, d)
        self._held: str | None = None
        self._set_collides(None)
        self.place(x, y, yaw, lift=STOWED_LIFT, arm=0.0, wrist=0.0)
        for _ in range(round(SETTLE_S / m.opt.timestep)):
            mujoco.mj_step(m, d)
        mujoco.mj_forward(m, d)

    def _index(self) -> None:
        m = self._model
        ident = lambda kind, name: mujoco.mj_name2id(m, kind, name)  # noqa: E731
        J, B = mujoco.mjtObj.mjOBJ_JOINT, mujoco.mjtObj.mjOBJ_BODY
        self._q = {n: int(m.jnt_qposadr[ident(J, n)]) for n in ("x", "y", "yaw", "lift", "arm", "wrist")}
        self._v = [int(m.jnt_dofadr[ident(J, n)]) for n in ("x", "y", "yaw", "lift", "arm", "wrist")]
        self._u = {n: ident(mujoco.mjtObj.mjOBJ_ACTUATOR, n) for n in self._q}
        self._grasp = ident(mujoco.mjtObj.mjOBJ_SITE, "grasp")
        self._gripper = ident(B, "gripper")
        self._cams = {c: ident(mujoco.mjtObj.mjOBJ_CAMERA, c) for c in ("navigation", "manipulation")}
        assert self._house is not None
        self._items = {i.id: i for i in self._house.items}
        self._body = {i.id: ident(B, i.id) for i in self._house.items} | {f.id: ident(B, f.id) for f in self._house.furniture}
        self._furniture = {f.id: f for f in self._house.furniture}
        self._weld = {i.id: ident(mujoco.mjtObj.mjOBJ_EQUALITY, f"hold_{i.id}") for i in self._house.items}
        self._geom = {i.id: ident(mujoco.mjtObj.mjOBJ_GEOM, f"{i.id}_solid") for i in self._house.items}
        self._pose_q = {i.id: int(m.jnt_qposadr[ident(J, f"{i.id}_free")]) for i in self._house.items}

    def place(self, x: float, y: float, yaw: float, *, lift: float | None = None, arm: float | None = None,
              wrist: float | None = None, held: str | None = None) -> None:
        """Puts the robot there without physics. With `held`, that item is put into the gripper."""
        d, m = self._data, self._model
        values = {"x": x, "y": y, "yaw": math.radians(yaw)}
        if lift is not None: values["lift"] = lift
        if arm is not None: values["arm"] = arm
        if wrist is not None: values["wrist"] = math.radians(wrist)
        for name, value in values.items():
            d.qpos[self._q[name]] = value
            d.ctrl[self._u[name]] = value
        d.qvel[:] = 0.0
        mujoco.mj_forward(m, d)
        if held is not None:
            q = self._pose_q[held]
            d.qpos[q:q + 3] = d.site_xpos[self._grasp]
            mujoco.mj_forward(m, d)
            self._attach(held)

    def execute(self, action: str) -> bool:
        name = ACTIONS.resolve(action)
        if name is None:
            raise UnknownNameError("household actions", action, ACTIONS.names)
        if name in ("done", "sub_done"):
            return True
        if name == "pickup":
            return self._pickup()
        if name == "dropoff":
            return self._dropoff()
        return self._move(*_DELTAS[name])

    def _move(self, axis: str, delta: float) -> bool:
        d = self._data
        before = self.robot
        targets = {n: float(d.qpos[self._q[n]]) for n in self._q}
        if axis == "base":
            targets["x"] += delta * math.cos(math.radians(before.yaw))
            targets["y"] += delta * math.sin(math.radians(before.yaw))
        elif axis == "yaw":
            targets["yaw"] += math.radians(delta)
        elif axis == "wrist":
            low, high = (math.radians(w) for w in WRIST_RANGE)
            targets["wrist"] = min(max(targets["wrist"] + math.radians(delta), low), high)
        else:
            low, high = LIFT_RANGE if axis == "lift" else ARM_RANGE
            targets[axis] = min(max(targets[axis] + delta, low), high)
        self._drive(targets)
        after = self.robot
        if axis == "base":
            return math.hypot(after.x - before.x, after.y - before.y) > 0.01
        if axis == "yaw":
            return abs((after.yaw - before.yaw + 180) % 360 - 180) > 2.0
        return abs(getattr(after, axis) - getattr(before, axis)) > 1e-3

    def _drive(self, targets: Mapping[str, float]) -> None:
        m, d = self._model, self._data
        start = {n: float(d.ctrl[self._u[n]]) for n in targets}
        for k in range(1, RAMP_STEPS + 1):
            for n, goal in targets.items():
                d.ctrl[self._u[n]] = start[n] + (goal - start[n]) * k / RAMP_STEPS
            mujoco.mj_step(m, d)
        for _ in range(MAX_SETTLE_STEPS):
            mujoco.mj_step(m, d)
            if np.abs(d.qvel[self._v]).max() < 0.02:
                break
        for n in targets:  # what was blocked stays where it is instead of pushing on
            d.ctrl[self._u[n]] = d.qpos[self._q[n]]
        mujoco.mj_forward(m, d)

    def _pickup(self) -> bool:
        if self._held is not None:
            return False
        for id in self.graspable():
            item = self._items[id]
            if item.pickupable and self._model.body_mass[self._body[id]] <= self.max_payload_kg:
                self._attach(id)
                for _ in range(4):
                    mujoco.mj_step(self._model, self._data)
                return True
        return False

    def _attach(self, id: str) -> None:
        m, d = self._model, self._data
        e, g, b = self._weld[id], self._gripper, self._body[id]
        inv = np.zeros(4); mujoco.mju_negQuat(inv, d.xquat[g])
        rel = np.zeros(3); mujoco.mju_rotVecQuat(rel, d.xpos[b] - d.xpos[g], inv)
        quat = np.zeros(4); mujoco.mju_mulQuat(quat, inv, d.xquat[b])
        m.eq_data[e, 0:3] = 0.0
        m.eq_data[e, 3:6] = rel
        m.eq_data[e, 6:10] = quat
        d.eq_active[e] = 1
        self._held = id
        self._set_collides(id)

    def _set_collides(self, held: str | None) -> None:
        for id, g in self._geom.items():
            self._model.geom_conaffinity[g] = 3 if id == held else 7

    def _dropoff(self) -> bool:
        if self._held is None:
            return False
        m, d = self._model, self._data
        id = self._held
        d.eq_active[self._weld[id]] = 0
        self._held = None
        self._set_collides(None)
        dof = int(m.body_dofadr[self._body[id]])
        for k in range(round(DROP_S / m.opt.timestep)):
            mujoco.mj_step(m, d)
            if k > 20 and np.abs(d.qvel[dof:dof + 6]).max() < 0.01:
                break
        mujoco.mj_forward(m, d)
        return True

    def render(self) -> Mapping[Camera, Image]:
        if self._renderer is None:
            self._renderer = OffscreenRenderer(self.camera_size)
        return {c: self._renderer(self._model, self._data, i) for c, i in self._cams.items()}

    @property
    def robot(self) -> RobotState:
        q = self._data.qpos
        gx, gy, gz = (float(v) for v in self._data.site_xpos[self._grasp])
        yaw = (math.degrees(q[self._q["yaw"]]) + 180.0) % 360.0 - 180.0
        return RobotState(
            x=float(q[self._q["x"]]), y=float(q[self._q["y"]]), yaw=yaw, lift=float(q[self._q["lift"]]),
            arm=float(q[self._q["arm"]]), wrist=math.degrees(q[self._q["wrist"]]), gripper=(gx, gy, gz), held=self._held,
        )

    def position(self, id: str) -> tuple[float, float, float]:
        if id in self._furniture:
            f = self._furniture[id]
            return f.x, f.y, f.height / 2
        x, y, z = (float(v) for v in self._data.xpos[self._body[id]])
        return x, y, z

    def graspable(self) -> tuple[str, ...]:
        grip = self._data.site_xpos[self._grasp]
        found = []
        for id, item in self._items.items():
            b = self._body[id]
            local = self._data.xmat[b].reshape(3, 3).T @ (grip - self._data.xpos[b])
            outside = np.maximum(np.abs(local) - np.array(item.size) / 2, 0.0)
            gap = float(np.linalg.norm(outside))
            if gap <= self.grasp_radius:
                found.append((gap, float(np.linalg.norm(local)), id))
        return tuple(id for *_, id in sorted(found))

    def views(self, camera: Camera, ids: Iterable[str]) -> dict[str, View]:
        m, d = self._model, self._data
        c = self._cams[camera]
        eye, rot = d.cam_xpos[c].copy(), d.cam_xmat[c].reshape(3, 3)
        width, height = self.camera_size
        focal = height / 2 / math.tan(math.radians(CAMERA_FOV_DEG / 2))
        out = {}
        group = np.array([0, 0, 0, 1, 0, 0], np.uint8)
        for id in ids:
            points = self._points(id)
            local = (points - eye) @ rot  # camera looks along -z, y up, x right
            depth = np.maximum(-local[:, 2], 1e-6)
            u, v = focal * local[:, 0] / depth, focal * local[:, 1] / depth
            inside = (local[:, 2] < -0.05) & (np.abs(u) <= width / 2) & (np.abs(v) <= height / 2)
            n = len(points)
            seen = 0
            if inside.any():
                rays = points[inside] - eye
                dist = np.linalg.norm(rays, axis=1)
                k = len(rays)
                geomid = np.full(k, -1, np.int32); hit = np.full(k, -1.0)
                mujoco.mj_multiRay(m, d, eye, np.ascontiguousarray((rays / dist[:, None]).ravel()), group, 1, self._body[id], geomid, hit, None, k, 20.0)
                seen = int(((hit < 0) | (hit > dist - 0.01)).sum())
            centre = local[0]
            distance = float(np.linalg.norm(centre))
            size = self._extent(id)
            out[id] = View(
                visible=seen / n, bearing=-math.degrees(math.atan2(centre[0], -centre[2])),
                elevation=math.degrees(math.atan2(centre[1], math.hypot(centre[0], centre[2]))), distance=distance,
                pixels=seen / n * (focal / max(distance, 0.1)) ** 2 * size if seen else 0.0,
            )
        return out

    def _extent(self, id: str) -> float:
        if id in self._items:
            w, dd, h = self._items[id].size
        else:
            f = self._furniture[id]; w, dd, h = f.width, f.depth, f.height
        return (w + dd) / 2 * h

    def _points(self, id: str) -> np.ndarray:
        corners = np.array([(0, 0, 0), (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)], float) * 0.9
        if id in self._items:
            b = self._body[id]
            half = np.array(self._items[id].size) / 2
            return self._data.xpos[b] + (corners * half) @ self._data.xmat[b].reshape(3, 3).T
        f = self._furniture[id]
        yaw = math.radians(f.yaw)
        rot = np.array([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
        half = np.array([f.width, f.depth, f.height]) / 2
        return np.array([f.x, f.y, f.height / 2]) + (corners * half) @ rot.T

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
