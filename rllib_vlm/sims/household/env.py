"""The household environment: SPOC's tasks in simulated houses, as a Gymnasium environment."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rllib_vlm.errors import SimulatorError
from rllib_vlm.sims.base import Expert, Info, Observation, Simulator
from rllib_vlm.sims.household import settings as options_
from rllib_vlm.sims.household.episode import Episode, EpisodeSource
from rllib_vlm.sims.household.lengths import expert_length, tour_length
from rllib_vlm.sims.household.metrics import EpisodeRecord
from rllib_vlm.sims.household.questions import detections, locate
from rllib_vlm.sims.household.referee import Referee
from rllib_vlm.sims.household.remaining import Remaining
from rllib_vlm.sims.household.rewards import RewardMode, RewardWeights, Shaping
from rllib_vlm.sims.household.scene import CAMERAS, Scene, Sighting
from rllib_vlm.sims.household.settings import ObservationMode, Settings, Told, check_settings
from rllib_vlm.sims.household.tasks import Task, TaskName, item_words
from rllib_vlm.sims.household.text_view import (
    coarse_place,
    describe,
    describe_relevant,
    exact_place,
    listed,
    proprioception,
    rounded_place,
)
from rllib_vlm.sims.household.tour import TOUR_ITEMS, TOUR_TURNS, Guide, viewpoint
from rllib_vlm.sims.household.world import ACTIONS, Split, World
from rllib_vlm.sims.tasks import Start, curriculum, draw_start
from rllib_vlm.types import ActionSet, Detection, Mention

if TYPE_CHECKING:
    from rllib_vlm.sims.household.expert import ExpertKind

TEXT_LENGTH = 2048
TEXT_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789 .,:;_-\n")
_DRIVES = frozenset({
    "move_ahead", "move_back", "rotate_left", "rotate_right", "rotate_left_small", "rotate_right_small",
})  # fmt: skip


class Household(Simulator):
    """A robot with one arm in a house of several rooms: find, fetch, pick up, go to, visit.

    ## Description
    A Stretch-like robot stands somewhere in a procedural house and gets an instruction such as
    "fetch the red mug from the kitchen table". It sees two pictures: its navigation camera looks
    ahead and down, its manipulation camera looks to its right, where its arm reaches out. Tasks and
    success rules are those of SPOC (https://github.com/allenai/spoc-robot-training):

    | task | instruction, for example | success |
    |---|---|---|
    | ObjectNav | "find the red mug" | `done`, and a fitting object is visible in the navigation camera within 2 m |
    | PickUp | "pick up the red mug on the kitchen table" (starts near it) | `done`, and a fitting object is held |
    | Fetch | "fetch the red mug from the kitchen table" | `done`, and a fitting object is held |
    | RoomNav | "go to the kitchen" | `done` inside a room of that type |
    | RoomVisit | "visit all 3 rooms and mark each one" | `done`, and every room marked by a correct `sub_done` |

    ## Action Space
    `Discrete(20)`, SPOC's actions in SPOC's order:

    | number | action | effect |
    |---|---|---|
    | 0, 3 | move_ahead, move_back | 0.2 m |
    | 1, 2 | rotate_right, rotate_left | 30 degrees |
    | 6, 7 | rotate_left_small, rotate_right_small | 6 degrees |
    | 4 | done | ends the episode |
    | 5 | sub_done | marks the present room (RoomVisit only) |
    | 8, 19 | pickup, dropoff | closes or opens the gripper; pickup needs an object in its sphere |
    | 9, 10 | arm_in, arm_out | 0.1 m |
    | 11, 12 | arm_up, arm_down | 0.1 m |
    | 13, 14 | wrist_open, wrist_close | 10 degrees |
    | 15 - 18 | arm_down_small, arm_in_small, arm_out_small, arm_up_small | 0.02 m |

    `turn` carries out several of them, by name, before the next observation.

    ## Observation Space
    `Dict(text=Text, images=Box(0, 255, (2, height, width, 3), uint8))`. The first picture is the
    navigation camera's, the second the manipulation camera's. With `observation="vision"` the text
    holds only what pictures show badly: `lift 70 arm 20 holding nothing ok` (cm) (or `failed` and the
    last turn's actions that did not have their effect). With `"text"` there are no images; the text
    lists the visible things with bearing and distance, nearest first, then that same line. `"both"`
    has the long text and the images.

    ## Rewards
    `reward="spoc"`: +10 for success; for each metre closer to the goal than ever before +1; in
    grasping tasks +5 when the target first is in the gripper's sphere, +5 when it first is held, and
    5 for each metre (below 1 m) the gripper comes closer than ever before; in RoomVisit +0.005 for a
    new floor cell, +2 for a new room, +2 or -0.2 for a right or wrong `sub_done`.
    `reward="spoc_sparse"`: +10 for success. `reward="vagen"`: +10 once the target is held or the robot is
    within 0.35 m of it, which also ends the episode. Every weight is a field of `RewardWeights`.

    ## Starting State
    A random house, task and free pose, all from the seed. `start="same_room"` starts in the target's
    room, `"near"` in front of the target (always so for PickUp). A `curriculum` draws the kind of start
    from the `level` given in the options of `reset`.

    ## Episode End
    Terminated by `done` (and by reaching the target in `vagen` mode); truncated after 600 steps
    (RoomVisit: 1000). A turn without a valid action counts as one step.

    ## Arguments
    - `split`: `"train"` or `"heldout"`; no house is in both.
    - `tasks`: which tasks to draw from.
    - `rooms`, `furniture`, `items`: (least, most) of each house; None: the generator's own choice.
    - `observation`, `camera_size` (width, height): see above.
    - `reward`, `reward_weights`: see above; weights as a mapping or a `RewardWeights`.
    - `max_steps`: one limit for all tasks or one per task; None: SPOC's.
    - `house_seeds`: (first, one after the last) seed of the houses.
    - `start`, `curriculum`: see above; a curriculum overrides `start`.
    - `world`: the simulator underneath; `"embedded"` is MuJoCo.
    - `told`: of what an observation's text tells: `"all"` that is visible, or what is `"task_relevant"`: where the
      nearest target and the named receptacle are, or that they are not seen, doors, and how far the way is free.
      What SPOC's sensors `nav_task_relevant_object_bbox` and `manip_task_relevant_object_bbox` give, and a range
      finder, in words.
    - `questions`: things asked about beside every turn of an expert ("locate the red mug , the blue cup"),
      for imitation to learn seeing from, with what the pictures show where; 0 asks and tells nothing.
    - `seen_pixels`: of one picture, from which on experts, text observations and labels tell of a thing: what a
      policy's eyes cannot tell apart teaches it to guess. ObjectNav's expert needs the default.
    - `blank_images`: all pictures are grey, to measure what a policy does without its eyes.

    Options of `reset`: `split`, `level` (0 to 1), `task`, `start`, `house` (a house seed from 0 up, of
    `house_seeds` or not: the episode is in that house or not at all), `tour` (true: whatever is done, each
    turn ends at another viewpoint of a crowded house, for learning to see; nothing is rewarded).

    ## Metrics
    `info["metrics"]` of every step, about the episode so far: success, sel, spl, episode_length, expert_length, path_m,
    rooms_visited, rooms_visited_share, rooms_marked, picked_up, target_seen, grasp_tries,
    failed_grasps, failed_actions, collisions, distance_to_target. `info["state"]` tells baselines how well things
    stand (`Referee.state`, `Shaping.state`).

    Raises:
        ConfigErrors: with everything that is wrong with the arguments.
    """

    actions: ClassVar[ActionSet] = ACTIONS
    reset_options: ClassVar[tuple[str, ...]] = options_.RESET_OPTIONS
    description: ClassVar[str] = (
        "You are a robot with an arm in a house. The first picture looks ahead; the second looks to your "
        "right, where your arm reaches out. Actions: move_ahead and move_back drive 0.2 m; rotate_left and "
        "rotate_right turn 30 degrees, rotate_left_small and rotate_right_small 6 degrees; arm_up and "
        "arm_down lift the arm by 0.1 m, arm_out and arm_in stretch it by 0.1 m, and with _small (as in "
        "arm_up_small) by 0.02 m; wrist_open and wrist_close turn the wrist; pickup grasps the object at the "
        "gripper, dropoff lets it go; sub_done marks a new room when rooms are to be visited; done ends the "
        "task."
    )
    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}

    def __init__(
        self,
        *,
        split: Split = "train",
        tasks: Sequence[TaskName] | TaskName = ("Fetch",),
        rooms: tuple[int, int] = (2, 3),
        furniture: tuple[int, int] | None = None,
        items: tuple[int, int] | None = None,
        observation: ObservationMode = "vision",
        camera_size: tuple[int, int] = (196, 112),
        reward: RewardMode = "spoc",
        reward_weights: RewardWeights | Mapping[str, Any] | None = None,
        max_steps: int | Mapping[TaskName, int] | None = None,
        house_seeds: tuple[int, int] = (0, 10_000),
        start: Start = "anywhere",
        curriculum: str | None = None,
        world: Literal["embedded"] = "embedded",
        told: Told = "all",
        questions: int = 0,
        seen_pixels: float = 16.0,
        blank_images: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.settings: Settings = check_settings(
            split=split, tasks=tasks, rooms=rooms, furniture=furniture, items=items, house_seeds=house_seeds,
            observation=observation, camera_size=camera_size, reward=reward, weights=reward_weights,
            max_steps=max_steps, start=start, curriculum=curriculum, world=world,
            told=told, questions=questions, seen_pixels=seen_pixels, blank_images=blank_images,
        )  # fmt: skip
        self.render_mode = render_mode
        self.action_space = gym.spaces.Discrete(len(ACTIONS))
        width, height = self.settings.camera_size
        spaces: dict[str, gym.Space[Any]] = {
            "text": gym.spaces.Text(TEXT_LENGTH, min_length=0, charset=TEXT_CHARACTERS)
        }
        if observation != "text":
            spaces["images"] = gym.spaces.Box(0, 255, (len(CAMERAS), height, width, 3), np.uint8)
        self.observation_space = gym.spaces.Dict(spaces)  # type: ignore[assignment]
        houses, seeds = self.settings.house, self.settings.house_seeds
        self._source = EpisodeSource(house_seeds=seeds, house=houses)
        self._crowded = EpisodeSource(house_seeds=seeds, house={**houses, "items": TOUR_ITEMS})
        self._tour: np.random.Generator | None = None
        self._world: World | None = None
        self._episode: Episode | None = None
        self._over = True

    @classmethod
    def check_config(cls, config: Mapping[str, Any]) -> None:
        """Nothing more than the constructor does, which starts no world.

        Raises:
            ConfigErrors: with everything that is wrong with the arguments.
        """
        cls(**config)

    # ----- what experts and tests look at

    @property
    def world(self) -> World:
        """The simulator underneath, started when it is first needed."""
        if self._world is None:
            module, _, name = options_.WORLDS[self.settings.world].partition(":")
            self._world = getattr(import_module(module), name)(camera_size=self.settings.camera_size)
        return self._world

    @property
    def episode(self) -> Episode:
        """The present episode's givens."""
        if self._episode is None:
            raise SimulatorError("the household has no episode yet: call reset() first")
        return self._episode

    @property
    def task(self) -> Task:
        """The present task."""
        return self.episode.task

    @property
    def record(self) -> EpisodeRecord:
        """What has happened in the present episode."""
        return self._record

    @property
    def referee(self) -> Referee:
        """How the present episode stands."""
        return self._referee

    @property
    def scene(self) -> Scene:
        """What can be seen now."""
        return self._scene

    # ----- gymnasium

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """Starts an episode; the same seed and options always give the same one."""
        super().reset(seed=seed)
        options = self.known_options(options)
        number = int(self.np_random.integers(2**31)) if seed is None else int(seed)
        split: Split = options.get("split") or self.settings.split
        rng = np.random.default_rng([number, options_.SPLITS.index(split)])
        name: TaskName = self.settings.tasks[int(rng.integers(len(self.settings.tasks)))]
        name = options.get("task") or name
        source = self._crowded if options.get("tour") else self._source
        self._episode = episode = source.draw(
            number,
            split,
            name=name,
            start=self._start(name, options, rng),
            rng=rng,
            house=options_.house_seed(options.get("house")),
        )
        start = episode.start
        self.world.load(episode.house, x=start.x, y=start.y, yaw=start.yaw, seed=int(rng.integers(2**31)))
        self._scene = Scene(self.world, episode.house, episode.place.nav, self.settings.seen_pixels)
        self._tour = rng if options.get("tour") else None
        self._begin(episode)
        self._look_elsewhere()
        info: Info = {
            "instruction": episode.task.instruction, "task": name, "house": episode.house.seed, "split": split,
            "start": episode.start_kind, "seed": number, "expert_length": self._record.expert_length,
            "state": self._state(),
        }  # fmt: skip
        return self._observe(), info

    def _start(self, name: TaskName, options: Mapping[str, Any], rng: np.random.Generator) -> Start:
        """Which kind of start this episode has. Always draws once, so that the rest stays the same."""
        level = float(options.get("level") or 0.0)
        odds = {self.settings.start: 1.0}
        if self.settings.curriculum is not None:
            odds = dict(curriculum(self.settings.curriculum)(level if "level" in options else 1.0))
        drawn = draw_start(odds, rng)
        if options.get("start"):
            return options["start"]
        return "near" if name == "PickUp" else drawn

    def _begin(self, episode: Episode) -> None:
        start = episode.start
        tours = self._tour is not None  # goes nowhere, so nothing is to be planned
        self._record = EpisodeRecord(
            expert_length=0 if tours else expert_length(episode, self.world.robot),
            shortest_path_m=0.0 if tours else self._shortest_path(episode),
        )
        self._referee = Referee(
            self.world, episode, self._scene, self._record, None if tours else Remaining(episode)
        )
        self._to_go = self._referee.to_go()
        self._limit = self.settings.max_steps[episode.task.name]
        self._asking = np.random.default_rng([episode.seed, len(episode.house.items)])
        self._over = False
        self._failed: list[str] = []
        self._at = (start.x, start.y)
        self._visit()
        self._shaping = Shaping(
            self.settings.weights,
            start=self._referee.situation(),
            visits_rooms=episode.task.name == "RoomVisit",
        )

    @staticmethod
    def _shortest_path(episode: Episode) -> float:
        if episode.task.name == "RoomVisit":
            return tour_length(episode)
        return episode.distance(episode.start.x, episode.start.y)

    def step(self, action: int) -> tuple[Observation, float, bool, bool, Info]:
        """One action."""
        self._failed = []
        return self._told(*self._execute(ACTIONS.names[int(action)]))

    def turn(self, actions: Sequence[str]) -> tuple[Observation, float, bool, bool, Info]:
        """Several actions, and one observation at their end."""
        if self._tour is not None:
            return self._tour_on()
        if not actions:
            return self.idle()
        self._failed = []
        total = 0.0
        for name in actions:
            reward, terminated, truncated, info = self._execute(name)
            total += reward
            if terminated or truncated:
                break
        return self._told(total, terminated, truncated, info)

    def idle(self) -> tuple[Observation, float, bool, bool, Info]:
        """A turn without a valid action: one step passes."""
        self._failed = []
        return self._told(*self._execute(None))

    def _tour_on(self) -> tuple[Observation, float, bool, bool, Info]:
        """A turn of a tour."""
        self._record.steps += 1
        self._look_elsewhere()
        self._over = over = self._record.steps >= TOUR_TURNS
        info: Info = (
            {"success": False, "instruction": self.task.instruction, "task": self.task.name} if over else {}
        )
        return self._told(0.0, False, over, info)

    def _look_elsewhere(self) -> None:
        """On a tour: on to a viewpoint drawn anew, or none where none was found."""
        found = viewpoint(self.episode.place, self._tour) if self._tour is not None else None
        if found is not None:
            pose, lift, arm = found
            self.world.place(pose.x, pose.y, pose.yaw, lift, arm)

    def _told(
        self, reward: float, terminated: bool, truncated: bool, info: Info
    ) -> tuple[Observation, float, bool, bool, Info]:
        """What a turn brings, with the planner's part of its reward and the figures so far.

        The figures are told each time, for they count if nobody plays the episode on.
        """
        if not self._record.target_seen:
            self._record.target_seen = any(
                s.id in self.task.targets for s in self._scene.things(self.task.targets)
            )
        success = bool(info.get("success", False))
        before, self._to_go = self._to_go, 0.0 if success else self._referee.to_go()
        if self.settings.reward == "spoc":
            reward += self.settings.weights.planned * (before - self._to_go)
        info = {**info, "metrics": self._referee.metrics(success=success), "state": self._state()}
        return self._observe(), reward, terminated, truncated, info

    def _state(self) -> dict[str, float]:
        return {**self._referee.state(limit=self._limit, to_go=self._to_go), **self._shaping.state()}

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """Both pictures side by side, [height, 2 * width, 3]."""
        pictures = self.world.render()
        return np.concatenate([pictures[c] for c in CAMERAS], axis=1)

    def close(self) -> None:
        """Stops the simulator underneath. May be called more than once."""
        if self._world is not None:
            self._world.close()
            self._world = None

    def expert(self, *, max_actions: int = 1, kind: ExpertKind = "search") -> Expert:
        """An expert for the present episode, from whatever state it is in.

        Args:
            max_actions: the most actions it answers a turn with.
            kind: "search" knows only what the cameras have shown since it was made; "planner" knows
                the whole house and takes the shortest way.
        """
        from rllib_vlm.sims.household.expert import make_expert

        if self._tour is not None:
            return Guide(self.shown)
        return make_expert(self, max_actions=max_actions, kind=kind)

    # ----- one action

    def _execute(self, name: str | None) -> tuple[float, bool, bool, Info]:
        """One action (None: nothing) and what it brings: reward, terminated, truncated, info."""
        if self._over:
            raise SimulatorError("the household episode is over: call reset() before acting again")
        weights, record, task = self.settings.weights, self._record, self.task
        record.steps += 1
        reward = weights.step
        worked = name is None or self._act(name)
        if not worked and name is not None:
            self._failed.append(name)
            record.failed_actions += 1
            record.collisions += name in _DRIVES
            reward += weights.failed_action
        self._visit()
        if self.settings.reward == "spoc":
            reward += self._shaping(self._referee.situation())
            if name == "sub_done" and task.name == "RoomVisit":
                reward += weights.sub_done if worked else weights.wrong_sub_done
        success = self._referee.succeeded() if name == "done" else False
        if self.settings.reward == "vagen" and task.targets:
            success = success or self._referee.reached(weights.near_m)
        terminated = success or name == "done"
        truncated = not terminated and record.steps >= self._limit
        if success:
            reward += weights.success
        elif terminated:
            reward += weights.failed_stop
        elif truncated:
            reward += weights.horizon
        info: Info = {"last_action_success": worked}
        if terminated or truncated:
            self._over = True
            info |= {"success": success, "instruction": task.instruction}
            info |= {"task": task.name}
        return reward, terminated, truncated, info

    def _act(self, name: str) -> bool:
        """Carries out an action; whether it had its effect."""
        record = self._record
        if name == "sub_done":
            return self._mark()
        worked = self.world.execute(name)
        if name == "pickup":
            record.grasp_tries += 1
            record.failed_grasps += not worked
            record.picked_up = record.picked_up or self._referee.holds_target()
        return worked

    def _mark(self) -> bool:
        """`sub_done`: marks the present room; False where it is marked already or nothing is to be marked."""
        room = self._scene.room
        if self.task.name != "RoomVisit" or room is None or room.id in self._record.marked:
            return False
        self._record.marked.add(room.id)
        return True

    def _visit(self) -> None:
        robot, record = self.world.robot, self._record
        step = math.dist(self._at, (robot.x, robot.y))
        # Below a millimetre the base only trembles; that is no way driven.
        if step > 1e-3:
            record.path_m += step
            self._at = (robot.x, robot.y)
        room = self._scene.room
        if room is not None:
            record.rooms.add(room.id)

    # ----- observations

    def where(self, seen: Sighting) -> str:
        """Where a visible thing is, in words as exact as the observation lets one know."""
        if self.settings.observation == "vision":
            return coarse_place(seen)
        if self.settings.told == "task_relevant":
            return rounded_place(seen, self.world.robot)
        return exact_place(seen, self.world.robot)

    def shown(self) -> tuple[Detection, ...]:
        """What the pictures show, where there are pictures."""
        if self.settings.observation == "text":
            return ()
        return detections(self._scene, self.where, self.task.targets)

    def mentions(self, named: Collection[str]) -> tuple[Mention, ...]:
        """The things of which the observation's text tells, where it does; `named` are the ids of those asked for."""
        if self.settings.observation == "vision":
            return ()
        if self.settings.told == "task_relevant":  # there is nothing to look up
            return ()
        return tuple(Mention(words=s.words, named=s.id in named) for s in listed(self._scene))

    def ask(self) -> tuple[tuple[str, str], ...]:
        """The questions that go with an expert's present turn, and their answers."""
        count = self.settings.questions
        asked = locate(self._scene, self.where, self._asking, count) if count else None
        return (asked,) if asked is not None else ()

    def held_words(self) -> str:
        """The held object in words; "nothing" if there is none."""
        held = self.world.robot.held
        return item_words(self.episode.items[held]) if held is not None else "nothing"

    def _observe(self) -> Observation:
        mode = self.settings.observation
        if mode == "vision":
            text = proprioception(self.world.robot, self.held_words(), self._failed)
        elif self.settings.told == "all":
            text = describe(self._scene, self.held_words(), self._failed)
        else:
            text = describe_relevant(self._scene, self.task, self.held_words(), self._failed)
        observation: Observation = {"text": text}
        if mode != "text":
            pictures = self.world.render()
            images = np.stack([pictures[c] for c in CAMERAS])
            observation["images"] = np.full_like(images, 127) if self.settings.blank_images else images
        return observation
