"""From a house to MJCF: walls, furniture, objects and the robot, all of coloured primitives."""

from __future__ import annotations

import math
from rllib_vlm.sims.household.catalogue import FURNITURE_COLORS, ITEM_COLORS, ITEMS, PART_COLORS, ROOMS
from rllib_vlm.sims.household.floorplan import room_walls
from rllib_vlm.sims.household.world import Furniture, House, Item

CAMERA_FOV_DEG = 59.0
CAMERA_HEIGHT_M = 1.35
NAV_PITCH_DEG, MANIP_PITCH_DEG = -27.0, -33.0
GRIPPER_MIN_M = 0.3
WALL_HEIGHT_M = 2.2
TIMESTEP_S = 0.008


def _rgba(c): return "%.3f %.3f %.3f 1" % tuple(c)
def _f(*v): return " ".join("%.4f" % x for x in v)


def house_xml(house: House) -> str:
    body = []
    for r in house.rooms:
        k = ROOMS[r.type]
        body.append(f'<geom type="box" size="{_f((r.x1-r.x0)/2,(r.y1-r.y0)/2,0.05)}" pos="{_f((r.x0+r.x1)/2,(r.y0+r.y1)/2,-0.05)}" rgba="{_rgba(k.floor)}" class="solid" group="3"/>')
        for x0, y0, x1, y1 in room_walls(r, house.doors):
            body.append(f'<geom type="box" size="{_f((x1-x0)/2,(y1-y0)/2,WALL_HEIGHT_M/2)}" pos="{_f((x0+x1)/2,(y0+y1)/2,WALL_HEIGHT_M/2)}" rgba="{_rgba(k.wall)}" class="solid" group="3"/>')
    for f in house.furniture: body.append(_furniture(f))
    for i in house.items: body.append(_item(i))
    welds = "".join(f'<weld name="hold_{i.id}" body1="gripper" body2="{i.id}" active="false" solref="0.02 1"/>' for i in house.items)
    return f"""<mujoco><compiler angle="degree" autolimits="true"/>
<option timestep="{TIMESTEP_S}" integrator="implicitfast" cone="pyramidal" iterations="20" ls_iterations="10"><flag sleep="enable"/></option>
<visual><quality shadowsize="0" offsamples="0"/><global offwidth="1024" offheight="768" fovy="59"/><map znear="0.005" zfar="30"/><headlight ambient="0.55 0.55 0.55" diffuse="0.4 0.4 0.4" specular="0 0 0"/></visual>
<default><default class="solid"><geom contype="1" conaffinity="0" friction="0.8"/></default>
<default class="item"><geom contype="2" conaffinity="7" group="3" friction="1.0 0.02 0.002" solref="0.02 1"/></default>
<default class="looks"><geom contype="0" conaffinity="0" group="1" mass="0"/></default>
<default class="robot"><geom contype="4" conaffinity="1" group="2" rgba="0.25 0.25 0.28 1"/></default></default>
<worldbody>{''.join(body)}{_ROBOT}</worldbody>
<equality>{welds}</equality>
<actuator>
<position name="x" joint="x" kp="20000" kv="1300" forcerange="-500 500"/><position name="y" joint="y" kp="20000" kv="1300" forcerange="-500 500"/>
<position name="yaw" joint="yaw" kp="1500" kv="80" forcerange="-200 200"/>
<position name="lift" joint="lift" kp="6000" kv="260" forcerange="-300 300"/><position name="arm" joint="arm" kp="3000" kv="120" forcerange="-60 60"/>
<position name="wrist" joint="wrist" kp="60" kv="3"/></actuator></mujoco>"""


_A = math.radians
def _cam(name, yaw, pitch):
    # camera axes: looks along -z. x right, y up.
    c, s = math.cos(_A(yaw)), math.sin(_A(yaw)); p = _A(pitch)
    fwd = (c*math.cos(p), s*math.cos(p), math.sin(p)); right = (s, -c, 0)
    up = (right[1]*fwd[2]-right[2]*fwd[1], right[2]*fwd[0]-right[0]*fwd[2], right[0]*fwd[1]-right[1]*fwd[0])
    return f'<camera name="{name}" pos="0 0 {CAMERA_HEIGHT_M}" xyaxes="{_f(*right,*up)}" fovy="{CAMERA_FOV_DEG}"/>'

_ROBOT = f"""<body name="robot" pos="0 0 0" gravcomp="1"><joint name="x" type="slide" axis="1 0 0"/><joint name="y" type="slide" axis="0 1 0"/><joint name="yaw" type="hinge" axis="0 0 1"/>
<geom class="robot" type="cylinder" size="0.17 0.07" pos="0 0 0.09" mass="16"/><geom class="robot" type="cylinder" size="0.03 0.58" pos="0 0 0.72" mass="2"/>
{_cam("navigation",0,NAV_PITCH_DEG)}{_cam("manipulation",-90,MANIP_PITCH_DEG)}
<body name="lift" gravcomp="1"><joint name="lift" type="slide" axis="0 0 1" range="0.2 1.1"/>
<geom class="robot" type="box" size="0.03 0.09 0.025" pos="0 -0.06 0.03" mass="1"/>
<body name="arm" gravcomp="1"><joint name="arm" type="slide" axis="0 -1 0" range="0 0.5"/>
<geom class="robot" type="box" size="0.018 0.1 0.015" pos="0 -0.12 0.03" rgba="0.75 0.75 0.78 1" mass="0.6"/><geom class="looks" type="box" size="0.014 0.25 0.012" pos="0 0.1 0.03" rgba="0.75 0.75 0.78 1"/>
<body name="gripper" pos="0 -0.2 0" gravcomp="1"><joint name="wrist" type="hinge" axis="0 0 1" range="-75 75"/>
<geom class="robot" type="box" size="0.025 0.015 0.012" pos="0 -0.015 0.02" mass="0.2" rgba="0.2 0.2 0.2 1"/>
<geom class="looks" type="box" size="0.006 0.04 0.01" pos="0.03 -0.06 0" rgba="0.9 0.3 0.1 1"/><geom class="looks" type="box" size="0.006 0.04 0.01" pos="-0.03 -0.06 0" rgba="0.9 0.3 0.1 1"/>
<site name="grasp" pos="0 -0.1 0" size="0.005" rgba="0 0 0 0"/></body></body></body></body>"""


def _furniture(f: Furniture) -> str:
    w, d, h = f.width/2, f.depth/2, f.height
    col = FURNITURE_COLORS[f.color]
    g = []
    def box(sx, sy, sz, x, y, z, c): g.append(f'<geom class="looks" type="box" size="{_f(sx,sy,sz)}" pos="{_f(x,y,z)}" rgba="{_rgba(c)}"/>')
    dark, linen, steel, water, screen = (PART_COLORS[k] for k in ("dark", "linen", "steel", "water", "screen"))
    t = f.type
    if t in ("table", "coffee table", "desk", "side table"):
        box(w, d, 0.02, 0, 0, h-0.02, col)
        for sx in (-1, 1):
            for sy in (-1, 1): box(0.025, 0.025, h/2-0.02, sx*(w-0.03), sy*(d-0.03), h/2-0.02, col)
        if t == "desk": box(w*0.3, d*0.9, h/2-0.03, w*0.6, 0, h/2-0.03, col)
    elif t in ("sofa", "armchair"):
        box(w, d, 0.2, 0, 0, 0.22, col); box(w, d*0.25, h/2, 0, d*0.75, h/2, col)
        for s in (-1, 1): box(w*0.1, d, 0.3, s*w*0.9, 0, 0.3, col)
    elif t == "chair":
        box(w, d, 0.02, 0, 0, 0.45, col); box(w, 0.02, 0.22, 0, d-0.02, 0.67, col)
        for sx in (-1, 1):
            for sy in (-1, 1): box(0.02, 0.02, 0.22, sx*(w-0.03), sy*(d-0.03), 0.22, col)
    elif t == "bed":
        box(w, d, 0.14, 0, 0, 0.14, col); box(w*0.97, d*0.97, 0.1, 0, -0.01, 0.38, linen); box(w, 0.03, h/2, 0, d-0.03, h/2, col); box(w*0.6, d*0.15, 0.05, 0, d*0.7, 0.52, water)
    elif t == "bathtub":
        box(w, d, h/2, 0, 0, h/2, linen); box(w*0.88, d*0.8, 0.004, 0, 0, h, water)
    elif t == "toilet":
        box(w*0.8, d*0.6, 0.2, 0, -d*0.3, 0.2, linen); box(w, d*0.3, h/2, 0, d*0.7, h/2, linen)
    else:
        box(w, d, h/2, 0, 0, h/2, col)
        if t in ("fridge",): box(w*0.98, 0.006, h*0.3, 0, -d, h*0.33, steel); box(w*0.98, 0.006, h*0.15, 0, -d, h*0.82, steel)
        elif t == "stove":
            for sx in (-1, 1):
                for sy in (-1, 1): g.append(f'<geom class="looks" type="cylinder" size="0.09 0.004" pos="{_f(sx*w*0.45,sy*d*0.45,h)}" rgba="{_rgba(dark)}"/>')
            box(w*0.8, 0.006, h*0.3, 0, -d, h*0.45, dark)
        elif t == "shelf":
            for k in (0.2, 0.55): box(w*0.9, 0.006, h*0.13, 0, -d, h*k+0.08, dark)
        elif t == "tv stand": box(w*0.9, 0.006, h*0.3, 0, -d, h*0.5, dark)
        elif t == "washstand": g.append(f'<geom class="looks" type="cylinder" size="{_f(min(w,d)*0.5,0.004)}" pos="{_f(0,d*0.25,h)}" rgba="{_rgba(water)}"/>')
        elif t == "counter": box(w*1.0, d*1.0, 0.015, 0, 0, h-0.014, steel)
        else:
            n = 3 if t in ("dresser", "cabinet", "nightstand") else 2
            for k in range(n): box(w*0.85, 0.006, h/n*0.38, 0, -d, h*(k+0.5)/n, tuple(c*0.75 for c in col))
    solid = f'<geom class="solid" type="box" size="{_f(w,d,h/2)}" pos="{_f(0,0,h/2)}" group="3" rgba="0 0 0 0"/>'
    return f'<body name="{f.id}" pos="{_f(f.x,f.y,0)}" euler="0 0 {f.yaw:.1f}">{solid}{"".join(g)}</body>'


def _item(i: Item) -> str:
    kind = ITEMS[i.type]; own = ITEM_COLORS[i.color]
    looks = []
    for p in kind.parts:
        c = own if p.color == "own" else PART_COLORS[p.color]
        looks.append(f'<geom class="looks" type="{p.shape}" size="{_f(*p.size)}" pos="{_f(p.pos[0],p.pos[1],p.pos[2]-i.size[2]/2)}" euler="{_f(*p.euler)}" rgba="{_rgba(c)}"/>')
    sx, sy, sz = (s/2 for s in i.size)
    shape = f'type="sphere" size="{sx:.4f}"' if kind.round else f'type="box" size="{_f(sx,sy,sz)}"'
    return f'<body name="{i.id}" pos="{_f(i.x,i.y,i.z+0.002)}" euler="0 0 {i.yaw:.1f}"><freejoint name="{i.id}_free"/><geom name="{i.id}_solid" class="item" {shape} mass="{kind.mass}" rgba="0 0 0 0"/>{"".join(looks)}</body>'
