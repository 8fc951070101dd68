"""A house as a MuJoCo model.

Nothing but primitives: no meshes, no textures. So models compile in milliseconds, and one rendering
context serves them all. Geom groups: 0 walls and solid furniture, 1 decoration, 2 the robot's solid
parts, 3 invisible collision shapes. Furniture that stands on legs is solid down to the floor.
"""

from __future__ import annotations

from rllib_vlm.sims.household.catalogue import (
    FURNITURE_COLORS,
    ITEM_COLORS,
    ITEMS,
    PART_COLORS,
    RGB,
    ROOMS,
    Part,
)
from rllib_vlm.sims.household.floorplan import room_walls
from rllib_vlm.sims.household.robot import ITEM_BITS, STATIC_BITS, robot_actuators, robot_body
from rllib_vlm.sims.household.shapes import furniture_parts
from rllib_vlm.sims.household.world import Furniture, House, Item

TIMESTEP = 0.01  # s
WALL_HEIGHT = 2.4

_SOLID = f'contype="{STATIC_BITS[0]}" conaffinity="{STATIC_BITS[1]}"'
_DECORATION = 'contype="0" conaffinity="0" group="1"'


def house_xml(house: House, *, navigation_pitch: float, manipulation_pitch: float, fov: float) -> str:
    """The MJCF text of a house with the robot in it."""
    welds = "\n      ".join(
        f'<weld name="{i.id}" body1="wrist" body2="{i.id}" active="false" solref=".02 1" torquescale=".05"/>'
        for i in house.items
        if i.pickupable
    )
    return f"""<mujoco>
    <compiler autolimits="false" boundmass="1e-4" boundinertia="1e-7"/>
    <option timestep="{TIMESTEP}" integrator="implicitfast" cone="elliptic" iterations="30">
      <flag sleep="enable"/>
    </option>
    <visual>
      <headlight ambient=".42 .42 .42" diffuse=".38 .38 .38" specular="0 0 0"/>
      <map znear=".01" zfar="50"/>
    </visual>
    <statistic extent="1" center="0 0 1"/>
    <default><geom friction=".9 .01 .002" solref=".02 1" solimp=".95 .99 .001"/></default>
    <worldbody>
      <light directional="true" dir=".35 .2 -1" diffuse=".3 .3 .3" ambient="0 0 0" specular="0 0 0" castshadow="false"/>
      {_rooms(house)}
      {"".join(_furniture(f) for f in house.furniture)}
      {"".join(_item(i) for i in house.items)}
      {robot_body(navigation_pitch, manipulation_pitch, fov)}
    </worldbody>
    <equality>{welds}</equality>
    <actuator>
      {robot_actuators()}
    </actuator>
    </mujoco>"""


def _rooms(house: House) -> str:
    geoms = ['<geom type="plane" size="0 0 1" rgba=".4 .4 .4 1" pos="0 0 0" group="3" ' + _SOLID + "/>"]
    for room in house.rooms:
        kind = ROOMS[room.type]
        cx, cy = (room.x0 + room.x1) / 2, (room.y0 + room.y1) / 2
        hx, hy = (room.x1 - room.x0) / 2, (room.y1 - room.y0) / 2
        geoms.append(
            f'<geom type="box" size="{hx} {hy} .01" pos="{cx} {cy} -.01" contype="0" conaffinity="0" '
            f'group="0" {_rgba(kind.floor)}/>'
        )
        for x0, y0, x1, y1 in room_walls(room, house.doors):
            size = f"{(x1 - x0) / 2:.4f} {(y1 - y0) / 2:.4f} {WALL_HEIGHT / 2}"
            pos = f"{(x0 + x1) / 2:.4f} {(y0 + y1) / 2:.4f} {WALL_HEIGHT / 2}"
            geoms.append(
                f'<geom type="box" size="{size}" pos="{pos}" {_SOLID} group="0" {_rgba(kind.wall)}/>'
            )
    return "\n      ".join(geoms)


def _furniture(piece: Furniture) -> str:
    own = FURNITURE_COLORS[piece.color]
    parts, legged = furniture_parts(piece)
    if legged:
        block = (
            f'<geom type="box" size="{piece.width / 2} {piece.depth / 2} {piece.height / 2}" '
            f'pos="0 0 {piece.height / 2}" {_SOLID} group="3"/>'
        )
        shape = block + "".join(_part(p, own, _DECORATION) for p in parts)
    else:
        shape = "".join(_part(p, own, f'{_SOLID} group="0"') for p in parts)
    return (
        f'<body name="{piece.id}" pos="{piece.x} {piece.y} 0" euler="0 0 {piece.yaw}">{shape}</body>\n      '
    )


def _item(item: Item) -> str:
    kind = ITEMS[item.type]
    scale = item.size[0] / kind.size[0]
    w, d, h = item.size
    bits = f'contype="{ITEM_BITS[0]}" conaffinity="{ITEM_BITS[1]}"'
    if kind.round:  # rolls, but comes to rest
        solid = f'<geom type="sphere" size="{w / 2}" condim="6" friction=".9 .02 .02" {bits}'
    else:
        solid = f'<geom type="box" size="{w / 2} {d / 2} {h / 2}" {bits}'
    solid += f' mass="{kind.mass}" group="3"/>'
    looks = "".join(_part(p, ITEM_COLORS[item.color], _DECORATION, scale, -h / 2) for p in kind.parts)
    return (
        f'<body name="{item.id}" pos="{item.x} {item.y} {item.z}" euler="0 0 {item.yaw}" sleep="init">'
        f"<freejoint/>{solid}{looks}</body>\n      "
    )


def _part(part: Part, own: RGB, attributes: str, scale: float = 1.0, dz: float = 0.0) -> str:
    size = " ".join(f"{s * scale:.5f}" for s in part.size)
    x, y, z = (v * scale for v in part.pos)
    turn = "" if part.euler == (0.0, 0.0, 0.0) else f'euler="{part.euler[0]} {part.euler[1]} {part.euler[2]}"'
    color = own if part.color == "own" else PART_COLORS[part.color]
    mass = 'mass="0"' if attributes == _DECORATION else ""
    return (
        f'<geom type="{part.shape}" size="{size}" pos="{x:.5f} {y:.5f} {z + dz:.5f}" {turn} {mass} '
        f"{attributes} {_rgba(color)}/>"
    )


def _rgba(color: RGB) -> str:
    return f'rgba="{color[0]} {color[1]} {color[2]} 1"'
