"""The embedded world: steps, contacts, grasps and drops, cameras, and that it is reproducible."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterator

import numpy as np
import pytest

from rllib_vlm.errors import SimulatorError, UnknownNameError
from rllib_vlm.sims.household.catalogue import ITEM_COLORS, ITEMS
from rllib_vlm.sims.household.embedded import EmbeddedWorld
from rllib_vlm.sims.household.houses import generate_house
from rllib_vlm.sims.household.rendering import choose_backend
from rllib_vlm.sims.household.world import ACTIONS, Furniture, House, Item, Room

TABLE = Furniture("table", "table", "room", 2.0, 1.0, 0.0, 1.2, 0.6, 0.7, "oak", True)


def item(type_: str, color: str, x: float, y: float) -> Item:
    kind = ITEMS[type_]
    z = 0.7 + kind.size[2] / 2
    return Item(
        f"{color}_{type_.replace(' ', '_')}", type_, color, "table", x, y, z, 0.0, kind.size, kind.pickupable
    )


def room(*items: Item) -> House:
    """One room, 4 x 4 m, with a table whose far side is at y = 1.3."""
    return House(0, "train", (Room("room", "kitchen", 0, 0, 4, 4),), (), (TABLE,), items)


@pytest.fixture(scope="module")
def world() -> Iterator[EmbeddedWorld]:
    w = EmbeddedWorld()
    yield w
    w.close()


def beside_the_table(world: EmbeddedWorld, *items: Item, x: float = 2.0) -> EmbeddedWorld:
    """The robot stands beyond the table, heading +x: its arm points at the table."""
    world.load(room(*items), x=x, y=1.65, yaw=0.0, seed=0)
    return world


def reach(world: EmbeddedWorld, target: str) -> None:
    """Lifts and extends the arm until the target is within the sphere."""
    while world.position(target)[2] - world.robot.lift > 0.02:
        assert world.execute("arm_up_small")
    while target not in world.graspable():
        assert world.execute("arm_out_small")


STEPS = {
    "move_ahead": (0.2, 0, 0, 0, 0, 0), "move_back": (-0.2, 0, 0, 0, 0, 0),
    "rotate_left": (0, 0, 30, 0, 0, 0), "rotate_right": (0, 0, -30, 0, 0, 0),
    "rotate_left_small": (0, 0, 6, 0, 0, 0), "rotate_right_small": (0, 0, -6, 0, 0, 0),
    "arm_up": (0, 0, 0, 0.1, 0, 0), "arm_down": (0, 0, 0, -0.1, 0, 0),
    "arm_up_small": (0, 0, 0, 0.02, 0, 0), "arm_down_small": (0, 0, 0, -0.02, 0, 0),
    "arm_out": (0, 0, 0, 0, 0.1, 0), "arm_in": (0, 0, 0, 0, -0.1, 0),
    "arm_out_small": (0, 0, 0, 0, 0.02, 0), "arm_in_small": (0, 0, 0, 0, -0.02, 0),
    "wrist_open": (0, 0, 0, 0, 0, 10), "wrist_close": (0, 0, 0, 0, 0, -10),
}  # fmt: skip


@pytest.mark.parametrize("action", STEPS)
def test_spoc_step_sizes(world, action):
    world.load(room(), x=2.0, y=2.8, yaw=0.0, seed=0)
    world.place(2.0, 2.8, 0.0, lift=0.8, arm=0.2)
    assert world.execute(action)
    r = world.robot
    assert (r.x - 2.0, r.y - 2.8, r.yaw, r.lift - 0.8, r.arm - 0.2, r.wrist) == pytest.approx(
        STEPS[action], abs=1e-6
    )


def test_the_robot_drives_along_its_yaw_and_reaches_to_its_right(world):
    world.load(room(), x=2.0, y=2.8, yaw=90.0, seed=0)
    world.execute("move_ahead")
    world.execute("arm_out")
    r = world.robot
    assert (r.x, r.y) == pytest.approx((2.0, 3.0), abs=1e-6)
    assert r.gripper == pytest.approx((2.0 + 0.25 + 0.1, 3.0, r.lift), abs=1e-6)


def test_aliases_work_and_done_moves_nothing(world):
    world.load(room(), x=2.0, y=2.8, yaw=0.0, seed=0)
    before = world.robot
    assert world.execute("done") and world.execute("sub_done") and world.robot == before
    assert world.execute("m") and world.robot.x == pytest.approx(2.2)


def test_joints_stop_at_their_bounds(world):
    world.load(room(), x=2.0, y=2.8, yaw=0.0, seed=0)
    assert not world.execute("arm_in")
    assert [world.execute("arm_out") for _ in range(6)] == [True] * 5 + [False]
    assert [world.execute("arm_up") for _ in range(5)] == [True] * 4 + [False]
    assert [world.execute("wrist_open") for _ in range(9)] == [True] * 8 + [False]
    assert world.robot.arm == pytest.approx(0.5) and world.robot.wrist == pytest.approx(75.0)


def test_walls_stop_the_robot(world):
    world.load(room(), x=3.6, y=2.8, yaw=0.0, seed=0)
    assert world.execute("move_ahead")  # 14 cm of the 20: moved by more than a centimetre
    assert world.robot.x == pytest.approx(4.0 - 0.06 - 0.2, abs=0.02)
    stopped = world.robot.x
    assert not any(world.execute("move_ahead") for _ in range(3))
    assert world.robot.x == pytest.approx(stopped, abs=0.01)


def test_furniture_stops_the_robot(world):
    world.load(room(), x=2.0, y=1.9, yaw=-90.0, seed=0)
    for _ in range(4):
        world.execute("move_ahead")
    assert world.robot.y == pytest.approx(1.3 + 0.2, abs=0.02)


def test_nothing_moves_by_itself(world):
    beside_the_table(world, item("mug", "red", 2.0, 1.15), item("apple", "green", 1.6, 1.15))
    for _ in range(5):
        world.execute("arm_up_small")
    for i in world.house.items:
        assert world.position(i.id) == pytest.approx((i.x, i.y, i.z), abs=1e-3)


def test_pickup_lifts_and_carries(world):
    beside_the_table(world, item("mug", "red", 2.0, 1.15))
    reach(world, "red_mug")
    assert world.execute("pickup") and world.robot.held == "red_mug"
    assert not world.execute("pickup")  # one at most
    assert world.execute("arm_up")
    offset = np.subtract(world.position("red_mug"), world.robot.gripper)
    assert world.position("red_mug")[2] > 0.77 + 0.08
    for action in ("arm_in", "rotate_left", "move_ahead", "rotate_right"):
        assert world.execute(action)
    carried = np.subtract(world.position("red_mug"), world.robot.gripper)
    assert np.abs(carried - offset).max() < 0.015


def test_a_grasp_into_the_air_and_of_something_heavy_fails(world):
    beside_the_table(world, item("potted plant", "red", 2.0, 1.1))
    assert world.graspable() == () and not world.execute("pickup")
    reach(world, "red_potted_plant")
    assert not world.execute("pickup") and world.robot.held is None


def test_payload_is_a_limit():
    light = EmbeddedWorld(payload=0.1)
    beside_the_table(light, item("mug", "red", 2.0, 1.15))
    reach(light, "red_mug")
    assert not light.execute("pickup")


def test_the_nearest_item_is_grasped(world):
    beside_the_table(world, item("mug", "red", 2.0, 1.15), item("mug", "blue", 2.19, 1.15))
    reach(world, "red_mug")
    world.execute("arm_out_small")
    assert world.graspable()[0] == "red_mug"


def test_dropoff_on_the_table_and_on_the_floor(world):
    beside_the_table(world, item("box", "red", 2.0, 1.12))
    assert not world.execute("dropoff")
    reach(world, "red_box")
    world.execute("pickup")
    world.execute("arm_up")
    assert world.execute("dropoff") and world.robot.held is None
    assert world.position("red_box")[2] == pytest.approx(0.77, abs=0.02)
    assert world.execute("arm_down") and world.execute("pickup")
    for action in ("arm_up", "arm_in", "rotate_left", "rotate_left", "rotate_left"):
        world.execute(action)
    assert world.execute("dropoff")
    assert world.position("red_box")[2] < 0.15


def test_what_the_arm_hits_falls(world):
    beside_the_table(world, item("bottle", "red", 2.2, 1.15), x=1.8)
    for action in ("arm_up", "arm_out", "arm_out", "arm_out", *["move_ahead"] * 5):
        world.execute(action)
    x, _, z = world.position("red_bottle")
    assert x > 2.3 or z < 0.75


def test_place_teleports_with_an_item_in_the_gripper(world):
    beside_the_table(world, item("mug", "red", 2.0, 1.15))
    world.place(1.0, 3.0, 45.0, lift=0.9, arm=0.3, wrist=10.0, held="red_mug")
    r = world.robot
    assert (r.x, r.y, r.yaw, r.lift, r.arm, r.wrist) == pytest.approx((1.0, 3.0, 45.0, 0.9, 0.3, 10.0))
    assert r.held == "red_mug" and math.dist(world.position("red_mug"), r.gripper) < 0.1
    world.execute("rotate_left")
    assert math.dist(world.position("red_mug"), world.robot.gripper) < 0.1
    assert world.execute("dropoff") and world.position("red_mug")[2] < 0.2
    with pytest.raises(UnknownNameError, match="red_mug"):
        world.place(1.0, 3.0, 0.0, held="red_mig")


def test_views_follow_geometry(world):
    world.load(room(item("box", "red", 2.0, 1.1)), x=2.0, y=2.6, yaw=-90.0, seed=0)
    view = world.views("navigation", ["red_box"])["red_box"]
    assert view.visible == 1.0 and abs(view.bearing) < 1.0 and view.pixels > 20
    assert view.distance == pytest.approx(math.dist((2.0, 2.55, 1.38), (2.0, 1.1, 0.77)), abs=0.02)
    world.execute("rotate_left")
    turned = world.views("navigation", ["red_box"])["red_box"]
    assert turned.bearing == pytest.approx(-33.0, abs=5.0)  # to the right; the axis is tilted downwards
    world.place(2.0, 2.6, 90.0)
    assert world.views("navigation", ["red_box"])["red_box"].visible == 0.0
    world.place(2.0, 2.6, 0.0)
    assert world.views("manipulation", ["red_box", "table"])["red_box"].visible > 0.8


def test_views_know_what_is_hidden(world):
    fridge = Furniture("fridge", "fridge", "room", 2.0, 1.9, 180.0, 0.7, 0.6, 1.7, "grey", False)
    house = House(0, "train", room().rooms, (), (TABLE, fridge), (item("box", "red", 2.0, 1.1),))
    world.load(house, x=2.0, y=3.2, yaw=-90.0, seed=0)
    seen = world.views("navigation", ["red_box", "fridge"])
    assert seen["red_box"].visible == 0.0 and seen["fridge"].visible > 0.3


def test_views_agree_with_the_picture(world):
    world.load(room(item("box", "red", 2.0, 1.1)), x=2.0, y=2.4, yaw=-90.0, seed=0)
    picture = world.render()["navigation"].astype(int)
    red = (picture[..., 0] > 80) & (picture[..., 1] < 40) & (picture[..., 2] < 40)
    estimate = world.views("navigation", ["red_box"])["red_box"].pixels
    assert 0.4 * red.sum() < estimate < 3.0 * red.sum()


@pytest.mark.parametrize("color", sorted(ITEM_COLORS))
def test_colours_are_told_apart_in_pictures(world, color):
    world.load(room(item("ball", color, 2.0, 1.1)), x=2.0, y=2.2, yaw=-90.0, seed=0)
    with_ball = world.render()["navigation"].astype(float) / 255
    world.load(room(), x=2.0, y=2.2, yaw=-90.0, seed=0)
    without = world.render()["navigation"].astype(float) / 255
    changed = with_ball[np.abs(with_ball - without).sum(-1) > 0.05]
    assert len(changed) > 60
    lit = changed[changed.sum(-1) >= np.quantile(changed.sum(-1), 0.3)]
    shades = {name: np.array(rgb) for name, rgb in ITEM_COLORS.items()}

    def nearest(pixel):  # the light changes the brightness, not the hue
        return min(
            shades, key=lambda n: min(np.abs(pixel - f * shades[n]).sum() for f in (0.5, 0.7, 0.9, 1.0))
        )

    names = [nearest(p) for p in lit]
    assert max(set(names), key=names.count) in {color, "white"}  # the ball has a pale stripe
    assert color in names


@pytest.mark.parametrize("size", [(196, 112), (384, 224), (64, 64)])
def test_picture_sizes(size):
    w = EmbeddedWorld(camera_size=size)
    beside_the_table(w, item("mug", "red", 2.0, 1.15))
    pictures = w.render()
    assert set(pictures) == {"navigation", "manipulation"}
    for picture in pictures.values():
        assert picture.shape == (size[1], size[0], 3) and picture.dtype == np.uint8
        assert picture.std() > 10
    assert not np.array_equal(pictures["navigation"], pictures["manipulation"])


def test_pictures_are_not_overwritten(world):
    beside_the_table(world, item("mug", "red", 2.0, 1.15))
    first = world.render()["navigation"]
    kept = first.copy()
    world.execute("rotate_left")
    assert not np.array_equal(world.render()["navigation"], kept) and np.array_equal(first, kept)


def trace(world: EmbeddedWorld, seed: int) -> list[object]:
    house = generate_house(seed, "train")
    world.load(house, x=house.doors[0].x, y=house.doors[0].y, yaw=15.0, seed=0)
    rng = np.random.default_rng(seed)
    states: list[object] = []
    for _ in range(60):
        done = world.execute(ACTIONS.names[int(rng.integers(len(ACTIONS)))])
        states.append((done, world.robot, [world.position(i.id) for i in house.items]))
    return [*states, world.render()["navigation"].tobytes(), world.render()["manipulation"].tobytes()]


def test_the_same_actions_give_the_same_states_bit_for_bit(world):
    first = trace(world, 5)
    assert trace(world, 6) != first
    assert trace(world, 5) == first
    assert trace(EmbeddedWorld(), 5) == first


def test_two_worlds_do_not_disturb_each_other(world):
    other = EmbeddedWorld()
    beside_the_table(world, item("mug", "red", 2.0, 1.15))
    before = world.render()["navigation"].copy()
    other.load(generate_house(1, "heldout"), x=1.0, y=1.0, yaw=0.0, seed=0)
    other.render()
    other.execute("rotate_left")
    assert np.array_equal(world.render()["navigation"], before)


def _render_elsewhere(queue) -> None:
    w = EmbeddedWorld()
    w.load(room(item("mug", "red", 2.0, 1.15)), x=2.0, y=1.65, yaw=0.0, seed=0)
    queue.put(w.render()["manipulation"])


def test_a_spawned_process_draws_the_same_picture(world):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_render_elsewhere, args=(queue,))
    process.start()
    theirs = queue.get(timeout=60)
    process.join(timeout=30)
    beside_the_table(world, item("mug", "red", 2.0, 1.15))
    assert process.exitcode == 0 and np.array_equal(theirs, world.render()["manipulation"])


def test_errors_name_the_remedy(world):
    with pytest.raises(SimulatorError, match="call load"):
        EmbeddedWorld().execute("done")
    world.load(room(), x=2.0, y=2.8, yaw=0.0, seed=0)
    with pytest.raises(UnknownNameError, match="'move_ahead'"):
        world.execute("move_ahaed")
    with pytest.raises(UnknownNameError, match="'table'"):
        world.position("tabel")
    with pytest.raises(UnknownNameError, match="cameras"):
        world.views("wrist", ["table"])  # type: ignore[arg-type]


def test_the_users_choice_of_backend_is_kept(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "OSMesa")
    assert choose_backend() == "osmesa"


def test_no_backend_is_one_error_with_the_install_line(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setenv("PYOPENGL_PLATFORM", "egl")
    monkeypatch.setattr("rllib_vlm.sims.household.rendering._egl_devices", lambda: 0)
    with pytest.raises(SimulatorError, match="apt-get install"):
        choose_backend()


def _render_without_display(queue) -> None:
    import os

    os.environ.update(MUJOCO_GL="glfw", DISPLAY="", WAYLAND_DISPLAY="")
    try:
        _render_elsewhere(queue)
    except SimulatorError as error:
        queue.put(str(error))


def test_a_backend_that_does_not_start_says_which(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_render_without_display, args=(queue,))
    process.start()
    answer = queue.get(timeout=60)
    process.join(timeout=30)
    assert isinstance(answer, str) and "'glfw'" in answer and "unset MUJOCO_GL" in answer
