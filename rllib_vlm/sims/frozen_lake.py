"""Frozen lake: reach the gift across the ice without falling into a hole."""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rllib_vlm.errors import ConfigErrors, SimulatorError
from rllib_vlm.sims.base import Info, Observation, Simulator
from rllib_vlm.types import ActionSet, Demonstration

Cell = tuple[int, int]  # row, column; row 0 is at the top

_MOVES: dict[str, Cell] = {"left": (0, -1), "down": (1, 0), "right": (0, 1), "up": (-1, 0)}
_HELDOUT_SHARE = 5  # one map in this many belongs to the held-out split
_MAP_TRIES = 10_000
_LARGEST_IMAGE = 2048  # pixels


@dataclass(frozen=True, slots=True)
class Lake:
    """A map. Every map has a hole-free way from the start to the goal."""

    holes: NDArray[np.bool_]  # [size, size]
    start: Cell
    goal: Cell

    @property
    def heldout(self) -> bool:
        """Which split the map belongs to. The start does not count: it is no new map."""
        return zlib.crc32(self.holes.tobytes() + bytes(self.goal)) % _HELDOUT_SHARE == 0

    def distances(self) -> NDArray[np.int64]:
        """Steps from each cell to the goal around all holes [size, size]; -1 where there is no way."""
        far = np.full(self.holes.shape, -1, np.int64)
        far[self.goal] = 0
        queue = deque([self.goal])
        while queue:
            cell = queue.popleft()
            for _, other in neighbours(cell, len(far)):
                if far[other] < 0 and not self.holes[other]:
                    far[other] = far[cell] + 1
                    queue.append(other)
        return far


def neighbours(cell: Cell, size: int) -> Iterator[tuple[str, Cell]]:
    """The cells one step away that lie on the map, with the action that leads there."""
    for name, (down, right) in _MOVES.items():
        row, column = cell[0] + down, cell[1] + right
        if 0 <= row < size and 0 <= column < size:
            yield name, (row, column)


def generate_lake(
    rng: np.random.Generator, size: int, hole_probability: float, *, heldout: bool, level: float
) -> Lake:
    """A random solvable map of the asked split.

    Args:
        rng: source of everything random.
        size: rows and columns.
        hole_probability: of each cell other than the goal, before unsolvable maps are thrown away.
        heldout: which split.
        level: 0 puts the start beside the goal, 1 anywhere the goal can be reached from.

    Raises:
        SimulatorError: no such map in 10,000 tries.
    """
    for _ in range(_MAP_TRIES):
        holes = rng.random((size, size)) < hole_probability
        goal = (int(rng.integers(size)), int(rng.integers(size)))
        holes[goal] = False
        lake = Lake(holes, goal, goal)
        if lake.heldout != heldout:
            continue
        far = lake.distances()
        farthest = round(1 + level * (int(far.max()) - 1))
        starts = np.argwhere((far >= 1) & (far <= farthest))
        if len(starts):
            row, column = starts[rng.integers(len(starts))]
            return Lake(holes, (int(row), int(column)), goal)
    raise SimulatorError(
        f"no solvable {size}x{size} map in {_MAP_TRIES} tries: hole_probability={hole_probability} "
        "leaves too little ice, lower it"
    )


class FrozenLake(Simulator):
    """An ice-covered lake, a gift on it, and holes one must not fall into.

    The map, the start and the gift's place are drawn anew in each episode and follow the seed. The
    tiles are this module's own drawing, so pictures do not change with Gymnasium's version.

    ## Actions
    `left`, `down`, `right`, `up` (0 to 3). A move off the map leaves the agent where it is. On
    `slippery` ice a move goes where it was meant to with probability 1/3, and to either side of
    that with 1/3 each.

    ## Observation
    `images`: one RGB picture of the whole lake, `[1, image_size, image_size, 3]` (not with
    `observation="text"`). `text`: the lake as rows of symbols, empty with `observation="vision"`:

    | `P` | `_` | `O` | `G` | `X` | `V` |
    |-|-|-|-|-|-|
    | agent on ice | ice | hole | gift | agent in a hole | agent at the gift |

    ## Reward
    `success_reward` on reaching the gift, `hole_reward` on falling, `step_reward` for every step.

    ## End of an episode
    Terminated at the gift or in a hole, truncated after `max_steps` steps. A turn without a valid
    action counts as one step. Then `info` holds `success`; it always holds `metrics`: `steps`, `fell` and `spl`
    (success weighted by shortest path over steps taken; Anderson et al., arXiv 1807.06757). `state`, for baselines:
    `distance` (steps to go) and `steps` (share of `max_steps`).

    ## Options of `reset`
    `split`: "train" or "heldout", which share no map. `level`: 0.0 starts beside the gift, 1.0
    (default) anywhere.

    ## Expert
    The first steps of a shortest path around all holes (breadth-first search), planned anew each
    turn; one step a turn where the ice is slippery. It does not weigh the risk of slipping.

    Args:
        size: rows and columns, 3 to 16.
        hole_probability: of each cell.
        slippery: whether moves may go astray.
        observation: "vision", "text" or "both".
        image_size: pixels; at least 6 a cell.
        max_steps: steps until the episode is cut.
        success_reward: see above.
        hole_reward: see above.
        step_reward: see above.
        render_mode: None or "rgb_array".

    Raises:
        ConfigErrors: an argument is out of range.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 4}
    actions: ClassVar[ActionSet] = ActionSet(
        names=tuple(_MOVES), aliases={"l": "left", "d": "down", "r": "right", "u": "up"}
    )
    reset_options: ClassVar[tuple[str, ...]] = ("split", "level")
    description: ClassVar[str] = (
        "You walk on a frozen lake, seen from above. Reach the gift and keep out of the holes. "
        "Each action moves you by one cell: left, down, right or up. "
        "The ice may be slippery, and then you may slide sideways. "
        "Symbols in text: P you, _ ice, O hole, G gift, X you in a hole, V you at the gift."
    )

    def __init__(
        self,
        *,
        size: int = 4,
        hole_probability: float = 0.2,
        slippery: bool = False,
        observation: Literal["vision", "text", "both"] = "vision",
        image_size: int = 84,
        max_steps: int = 30,
        success_reward: float = 1.0,
        hole_reward: float = 0.0,
        step_reward: float = 0.0,
        render_mode: str | None = None,
    ) -> None:
        errors = []
        if not (_is_whole(size) and 3 <= size <= 16):
            errors.append(f"size is {size!r}, not a whole number between 3 and 16")
            size = 3  # the other arguments are looked at all the same
        if not (_is_number(hole_probability) and 0 <= hole_probability <= 0.8):
            errors.append(f"hole_probability is {hole_probability!r}, not a number between 0 and 0.8")
        if not isinstance(slippery, bool):
            errors.append(f"slippery is {slippery!r}, not true or false")
        if observation not in ("vision", "text", "both"):
            errors.append(f"observation is {observation!r}, not one of vision, text, both")
        if not (_is_whole(image_size) and 6 * size <= image_size <= _LARGEST_IMAGE):
            errors.append(
                f"image_size is {image_size!r}, not a whole number up to {_LARGEST_IMAGE}; "
                f"{size} cells of 6 pixels need at least {6 * size}"
            )
        if not (_is_whole(max_steps) and max_steps >= 1):
            errors.append(f"max_steps is {max_steps!r}, not a whole number of at least 1")
        rewards = {"success_reward": success_reward, "hole_reward": hole_reward, "step_reward": step_reward}
        errors += [
            f"{name} is {value!r}, not a number" for name, value in rewards.items() if not _is_number(value)
        ]
        if render_mode not in (None, "rgb_array"):
            errors.append(f"render_mode is {render_mode!r}, not 'rgb_array' or nothing")
        if errors:
            raise ConfigErrors("FrozenLake", errors)
        self.size = size
        self.hole_probability = hole_probability
        self.slippery = slippery
        self.image_size = image_size
        self.max_steps = max_steps
        self.success_reward = success_reward
        self.hole_reward = hole_reward
        self.step_reward = step_reward
        self.render_mode = render_mode
        self._show_text = observation != "vision"
        self._show_image = observation != "text"
        spaces: dict[str, gym.Space[Any]] = {
            "text": gym.spaces.Text(min_length=0, max_length=2 * size * size, charset="P_OGXV \n")
        }
        if self._show_image:
            spaces["images"] = gym.spaces.Box(0, 255, (1, image_size, image_size, 3), np.uint8)
        self.observation_space = gym.spaces.Dict(spaces)  # type: ignore[assignment]
        self.action_space = gym.spaces.Discrete(len(self.actions))
        self.lake: Lake | None = None
        self._over = True

    @classmethod
    def check_config(cls, config: Mapping[str, Any]) -> None:
        """Nothing more than the constructor does.

        Raises:
            ConfigErrors: with everything that is wrong with the arguments.
        """
        cls(**config)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """See the class.

        Raises:
            SimulatorError: an option has a value it cannot have.
            UnknownNameError: there is no such option.
        """
        super().reset(seed=seed)
        options = self.known_options(options)
        split = options.get("split", "train")
        level = float(options.get("level", 1.0))
        if split not in ("train", "heldout"):
            raise SimulatorError(f"the option split is {split!r}, not 'train' or 'heldout'")
        if not 0.0 <= level <= 1.0:
            raise SimulatorError(f"the option level is {level}, not between 0.0 and 1.0")
        self.lake = generate_lake(
            self.np_random, self.size, self.hole_probability, heldout=split == "heldout", level=level
        )
        self._far = self.lake.distances()
        self.position = self.lake.start
        self.steps = 0
        self._over = False
        return self._observe(), {
            "instruction": "Reach the gift without falling into a hole.",
            "state": self._state(),
        }

    def step(self, action: int) -> tuple[Observation, float, bool, bool, Info]:
        """One move.

        Raises:
            SimulatorError: the episode is over or has not begun, or there is no such action.
        """
        if not 0 <= int(action) < len(self.actions):
            raise SimulatorError(f"no action {action!r}: 0 to {len(self.actions) - 1}")
        turn = int(self.np_random.integers(-1, 2)) if self.slippery and not self._over else 0
        # The order of the actions goes around the compass, so the sides are the neighbours in it.
        name = self.actions.names[(int(action) + turn) % len(self.actions)]
        return self._advance(dict(neighbours(self.position, self.size)).get(name) if self.lake else None)

    def idle(self) -> tuple[Observation, float, bool, bool, Info]:
        """One step passes, nothing moves."""
        return self._advance(None)

    def expert(self, *, max_actions: int = 1) -> LakeExpert:
        """An expert for this episode; see the class."""
        return LakeExpert(self, 1 if self.slippery else max_actions)

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """The picture `[image_size, image_size, 3]`, or None without a render mode."""
        return self._picture() if self.render_mode == "rgb_array" and self.lake else None

    def shortest_path(self) -> list[str]:
        """Actions from where the agent stands to the gift; empty once the episode is over."""
        path, cell = [], self.position
        while not self._over and self._far[cell] > 0:
            name, cell = next(
                (name, other)
                for name, other in neighbours(cell, self.size)
                if self._far[other] == self._far[cell] - 1
            )
            path.append(name)
        return path

    def _advance(self, to: Cell | None) -> tuple[Observation, float, bool, bool, Info]:
        if self.lake is None or self._over:
            raise SimulatorError("the episode is over or has not begun: call reset() first")
        if to is not None:
            self.position = to
        self.steps += 1
        success = self.position == self.lake.goal
        fell = bool(self.lake.holes[self.position])
        truncated = self.steps >= self.max_steps and not (success or fell)
        self._over = success or fell or truncated
        reward = self.step_reward + success * self.success_reward + fell * self.hole_reward
        shortest = int(self._far[self.lake.start])
        info: Info = {
            "metrics": {
                "steps": float(self.steps),
                "fell": float(fell),
                "spl": success * shortest / max(shortest, self.steps),
            },
            "state": self._state(),
        }
        if self._over:
            info["success"] = success
        return self._observe(), float(reward), success or fell, truncated, info

    def _state(self) -> dict[str, float]:
        """For baselines: steps to go (-1 in a hole that has no way out), and steps made, as a share of the most."""
        return {"distance": float(self._far[self.position]), "steps": self.steps / self.max_steps}

    def _observe(self) -> Observation:
        observation: Observation = {"text": self._rows() if self._show_text else ""}
        if self._show_image:
            observation["images"] = self._picture()[None]
        return observation

    def _symbols(self) -> list[list[str]]:
        assert self.lake is not None
        symbols = [["O" if hole else "_" for hole in row] for row in self.lake.holes]
        symbols[self.lake.goal[0]][self.lake.goal[1]] = "G"
        row, column = self.position
        symbols[row][column] = {"_": "P", "O": "X", "G": "V"}[symbols[row][column]]
        return symbols

    def _rows(self) -> str:
        return "\n".join(" ".join(row) for row in self._symbols())

    def _picture(self) -> NDArray[np.uint8]:
        tiles = draw_tiles(self.image_size // self.size)
        board = np.concatenate([np.concatenate([tiles[s] for s in row], axis=1) for row in self._symbols()])
        picture = np.full((self.image_size, self.image_size, 3), _SHORE, np.uint8)
        margin = (self.image_size - len(board)) // 2
        picture[margin : margin + len(board), margin : margin + len(board)] = board
        return picture


class LakeExpert:
    """Walks the shortest path; see `FrozenLake`."""

    def __init__(self, lake: FrozenLake, max_actions: int) -> None:
        self._sim = lake
        self._max_actions = max_actions

    def __call__(self) -> Demonstration:
        sim, path = self._sim, self._sim.shortest_path()
        if sim.lake is None or not path:
            return Demonstration(actions=())
        actions = tuple(path[: self._max_actions])
        cell = sim.position
        for name in actions:
            cell = dict(neighbours(cell, sim.size))[name]
        holes = ", ".join(_place((int(r), int(c))) for r, c in np.argwhere(sim.lake.holes))
        return Demonstration(
            actions=actions,
            observation=f"I am at {_place(sim.position)}, the gift is at {_place(sim.lake.goal)}, "
            + (f"holes are at {holes}." if holes else "there are no holes."),
            reasoning=f"The shortest safe way is {', '.join(path)}.",
            prediction=f"I will be at {_place(cell)}.",
        )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _place(cell: Cell) -> str:
    return f"row {cell[0] + 1} column {cell[1] + 1}"


_SHORE = (96, 108, 118)
_ICE, _CRACK = (205, 232, 244), (170, 208, 228)
_RIM, _WATER = (120, 170, 205), (18, 48, 96)
_BOX, _RIBBON = (214, 46, 58), (250, 214, 70)
_COAT, _FACE = (40, 140, 70), (245, 200, 160)


@cache
def draw_tiles(pixels: int) -> dict[str, NDArray[np.uint8]]:
    """A `[pixels, pixels, 3]` tile for each symbol of the text observation; do not write into them."""
    # Coordinates of pixel centres, 0 to 1, x to the right and y down.
    y, x = (np.mgrid[0:pixels, 0:pixels] + 0.5) / pixels
    ice = np.full((pixels, pixels, 3), _ICE, np.uint8)
    ice[(x < 1 / pixels) | (y < 1 / pixels)] = _CRACK

    hole = ice.copy()
    radius = np.hypot(x - 0.5, y - 0.5)
    hole[radius < 0.44] = _RIM
    hole[radius < 0.36] = _WATER

    gift = ice.copy()
    gift[(abs(x - 0.5) < 0.32) & (y > 0.3) & (y < 0.88)] = _BOX
    gift[(abs(x - 0.5) < 0.07) & (y > 0.3) & (y < 0.88)] = _RIBBON
    gift[(abs(y - 0.55) < 0.07) & (abs(x - 0.5) < 0.32)] = _RIBBON
    gift[np.hypot(abs(x - 0.5) - 0.12, y - 0.22) < 0.1] = _RIBBON  # the bow

    body = (abs(x - 0.5) < 0.1 + 0.25 * (y - 0.4)) & (y > 0.4) & (y < 0.9)
    head = np.hypot(x - 0.5, y - 0.28) < 0.17

    def with_agent(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
        tile = tile.copy()
        tile[body] = _COAT
        tile[head] = _FACE
        return tile

    tiles = {"_": ice, "O": hole, "G": gift}
    tiles |= {"P": with_agent(ice), "X": with_agent(hole), "V": with_agent(gift)}
    for tile in tiles.values():
        tile.setflags(write=False)
    return tiles
