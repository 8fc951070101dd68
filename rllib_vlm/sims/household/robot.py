"""The Stretch-like robot of the embedded simulator: its shape, joints, cameras and step sizes.

The body's x axis points ahead, y to the left; the arm reaches out along -y. Stowed, everything
lies within a circle of `STOWED_RADIUS` around the base's centre, so that the robot turns on the
spot wherever its base fits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MOVE_M, TURN_DEG, SMALL_TURN_DEG = 0.2, 30.0, 6.0  # SPOC, environment/stretch_controller.py
ARM_M, SMALL_ARM_M, WRIST_DEG = 0.1, 0.02, 10.0

BASE_RADIUS = 0.2
STOWED_RADIUS = 0.29  # the fingertips, above most furniture
LIFT_RANGE = (0.2, 1.1)  # m, height of the grasp centre
ARM_RANGE = (0.0, 0.5)  # m of extension
WRIST_RANGE = (-100.0, 75.0)  # deg; Stretch's bounds
STOWED = (0.7, 0.0, 0.0)  # lift, arm, wrist
ARM_REACH = 0.25  # from the base's centre to the grasp centre, arm retracted
PALM_REACH = 0.06  # the palm ends this far before the grasp centre
_STAGES = 3  # telescoping parts

HEAD_HEIGHT = 1.38
_MAST_Y = 0.15  # the mast stands on the side away from the arm
_WRIST_Y = -0.11  # of the retracted wrist
_ARM_Z = 0.032  # the arm's axis above the grasp centre, so that it clears the table when taking flat things

# Collision bits: (contype, conaffinity). Two geoms collide where one's type meets the other's affinity.
STATIC_BITS, ROBOT_BITS, FINGER_BITS = (2, 0), (1, 6), (0, 2)
ITEM_BITS, HELD_BITS = (4, 7), (16, 6)  # a held item no longer touches the robot


@dataclass(frozen=True, slots=True)
class Motion:
    """What an action does: how far which joint goes, and what counts as having moved."""

    joint: str  # "drive", "yaw", "lift", "arm", "wrist"
    amount: float  # m or deg
    threshold: float  # SPOC's least change of pose of a successful action


MOTIONS: dict[str, Motion] = {
    "move_ahead": Motion("drive", MOVE_M, 0.01),
    "move_back": Motion("drive", -MOVE_M, 0.01),
    "rotate_left": Motion("yaw", TURN_DEG, 2.0),
    "rotate_right": Motion("yaw", -TURN_DEG, 2.0),
    "rotate_left_small": Motion("yaw", SMALL_TURN_DEG, 2.0),
    "rotate_right_small": Motion("yaw", -SMALL_TURN_DEG, 2.0),
    "arm_up": Motion("lift", ARM_M, 1e-3),
    "arm_down": Motion("lift", -ARM_M, 1e-3),
    "arm_up_small": Motion("lift", SMALL_ARM_M, 1e-3),
    "arm_down_small": Motion("lift", -SMALL_ARM_M, 1e-3),
    "arm_out": Motion("arm", ARM_M, 1e-3),
    "arm_in": Motion("arm", -ARM_M, 1e-3),
    "arm_out_small": Motion("arm", SMALL_ARM_M, 1e-3),
    "arm_in_small": Motion("arm", -SMALL_ARM_M, 1e-3),
    "wrist_open": Motion("wrist", WRIST_DEG, 1e-3),
    "wrist_close": Motion("wrist", -WRIST_DEG, 1e-3),
}

JOINTS = ("base_x", "base_y", "base_yaw", "lift", *(f"arm_{k}" for k in range(_STAGES)), "wrist")

LARGE_STEP = {"drive": MOVE_M, "yaw": TURN_DEG, "lift": ARM_M, "arm": ARM_M, "wrist": WRIST_DEG}
# Which of `JOINTS` a motion moves.
JOINT_GROUPS = {"drive": [0, 1], "yaw": [2], "lift": [3], "arm": list(range(4, 4 + _STAGES)), "wrist": [-1]}


def joint_targets(
    x: float, y: float, yaw_deg: float, lift: float, arm: float, wrist_deg: float
) -> list[float]:
    """Joint positions (m, rad) in the order of `JOINTS`."""
    stages = [arm / _STAGES] * _STAGES
    return [x, y, math.radians(yaw_deg), lift, *stages, math.radians(wrist_deg)]


def robot_body(navigation_pitch: float, manipulation_pitch: float, fov: float) -> str:
    """The robot's `<body>`; pitches are degrees below the horizon."""
    solid = f'contype="{ROBOT_BITS[0]}" conaffinity="{ROBOT_BITS[1]}" group="2"'
    finger = f'contype="{FINGER_BITS[0]}" conaffinity="{FINGER_BITS[1]}" group="1"'
    seen = 'contype="0" conaffinity="0" group="1"'
    grey, dark = 'rgba=".6 .6 .63 1"', 'rgba=".2 .2 .22 1"'
    wrist = f"""
      <body name="wrist" pos="0 {_WRIST_Y} 0" gravcomp="1">
        <joint name="wrist" type="hinge" axis="0 0 1" damping=".1"/>
        <geom name="palm" type="box" size=".035 .04 .016" pos="0 -.04 .018" mass=".2" {solid} {dark}/>
        <geom type="box" size=".006 .04 .01" pos=".042 -.115 .008" mass=".02" {finger} {dark}/>
        <geom type="box" size=".006 .04 .01" pos="-.042 -.115 .008" mass=".02" {finger} {dark}/>
        <site name="grasp" pos="0 {-(ARM_REACH + _WRIST_Y)} 0" size=".01" group="5"/>
      </body>"""
    arm = wrist
    for k in reversed(range(_STAGES)):
        half = 0.026 - 0.004 * k
        arm = f"""
      <body name="arm_{k}" gravcomp="1">
        <joint name="arm_{k}" type="slide" axis="0 -1 0" damping="1" limited="true"
               range="-.004 {ARM_RANGE[1] / _STAGES + 0.004}"/>
        <geom type="box" size="{half} .1 {half}" pos="0 -.01 {_ARM_Z}" mass=".3" {solid} {grey}/>{arm}
      </body>"""
    return f"""
    <body name="base" gravcomp="1">
      <joint name="base_x" type="slide" axis="1 0 0"/>
      <joint name="base_y" type="slide" axis="0 1 0"/>
      <joint name="base_yaw" type="hinge" axis="0 0 1"/>
      <geom name="base" type="cylinder" size="{BASE_RADIUS} .07" pos="0 0 .09" mass="18" {solid} {dark}/>
      <geom type="box" size=".025 .025 .58" pos="0 {_MAST_Y} .74" mass="1" {seen} {grey}/>
      <camera name="navigation" pos=".05 0 {HEAD_HEIGHT}" xyaxes="{_axes(0.0, navigation_pitch)}" fovy="{fov}"/>
      <camera name="manipulation" pos="0 {_MAST_Y - 0.04} {HEAD_HEIGHT}" xyaxes="{_axes(-90.0, manipulation_pitch)}"
              fovy="{fov}"/>
      <body name="carriage" gravcomp="1">
        <joint name="lift" type="slide" axis="0 0 1"/>
        <geom type="box" size=".03 .1 .03" pos="0 .02 {_ARM_Z}" mass=".8" {solid} {dark}/>{arm}
      </body>
    </body>"""


def _axes(yaw_deg: float, pitch_deg: float) -> str:
    """MuJoCo's `xyaxes` (image right, image up) of a camera looking along yaw, `pitch` below the horizon."""
    yaw, pitch = math.radians(yaw_deg), math.radians(pitch_deg)
    right = (math.sin(yaw), -math.cos(yaw), 0.0)
    up = (math.sin(pitch) * math.cos(yaw), math.sin(pitch) * math.sin(yaw), math.cos(pitch))
    return " ".join(f"{v:.9f}" for v in (*right, *up))


def robot_actuators() -> str:
    """Position servos: critically damped, with limited force, in the order of `JOINTS`."""
    gains = {"base_x": (150000, 450), "base_y": (150000, 450), "base_yaw": (4000, 80), "lift": (20000, 150),
             "wrist": (20, 3)}  # fmt: skip
    lines = []
    for joint in JOINTS:
        kp, limit = gains.get(joint, (12000, 80))
        lines.append(
            f'<position joint="{joint}" kp="{kp}" dampratio="1" forcelimited="true" forcerange="-{limit} {limit}"/>'
        )
    return "\n      ".join(lines)
