"""The street environment: V-IRL's navigation along a rail, as a Gymnasium environment."""

from __future__ import annotations

import json
import operator
import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rllib_vlm.errors import DataError, SimulatorError, did_you_mean
from rllib_vlm.sims.base import Info, Observation, Simulator
from rllib_vlm.sims.streetview import settings as options_
from rllib_vlm.sims.streetview.dataset import SPLITS
from rllib_vlm.sims.streetview.expert import StreetExpert
from rllib_vlm.sims.streetview.geo import Geocode
from rllib_vlm.sims.streetview.grading import (
    CORRECT,
    Answer,
    Grade,
    RewardWeights,
    Verdict,
    exceeded_original,
    grade,
    grade_original,
)
from rllib_vlm.sims.streetview.history import original_sequence, present, sequence
from rllib_vlm.sims.streetview.panorama import ORIGINAL_VIEWS, TRUE_VIEWS, GridRenderer
from rllib_vlm.sims.streetview.rail import STOP, Node, Rail, build_rail, snap
from rllib_vlm.sims.streetview.settings import Settings, check_settings
from rllib_vlm.sims.streetview.words import action_names, characters, description
from rllib_vlm.types import ActionSet, Image, Said

_TEXT_LENGTH = 1 << 17
_FAILED = "You failed this trial because {}"


class StreetView(Simulator):
    """A walker follows written directions through a city of street panoramas, to a destination.

    The task of V-IRL's navigation as posed in "SFT Memorizes, RL Generalizes" (Chu et al., arXiv 2501.17161;
    https://github.com/LeslieTrue/SFTvsRL). docs/streetview.md has the data layout and all that `mode` changes.

    ## Actions
    `forward()`, `stop()`, and `turn_direction(x)`: x is one of eight compass words (`action_set="absolute"`) or
    left, right, slightly left, slightly right (`"relative"`). At every stop of the rail exactly one is right. The
    right one leads to the next stop; a wrong one leads nowhere and costs a try. One action a turn is meant.

    ## Observation
    `images`: one picture `[1, 2 R + 5, 2 R + 5, 3]` of four views, R = `resolution`, in a grid: front, right / back,
    left (not with `observation="text"`). `text`: what the oracle saw and did at the stops before (the walker is
    told, as in V-IRL), the present observation (with `"text"` and `"both"`), and after a wrong answer what was wrong.

    ## Reward
    `reward="step"`: +1 for a right action; for a wrong one -1, or -1.5 where the answer also says there is an
    intersection and there is none, or the other way round (read from the part `observation` of the answer; parsers
    without it leave it ungraded), or with `grade_instruction` -1.75 where the part `reasoning` is not the instruction
    that is due. `reward="outcome"`: the first of these at the destination, 0 before. `reward_weights` sets each.

    ## End of an episode
    Terminated by the right `stop()`, truncated by the `verify_iter`-th wrong answer at one stop. `info` then holds
    `success`. `info["metrics"]` of every turn: steps, step_accuracy, progress, rail_length, and how many answers were
    incorrect_action, incorrect_observation, incorrect_instruction. `info["grades"]`: what became of each answer.
    `info["state"]`, for baselines: the share of the rail to go and of the tries that are left.

    ## Options of `reset`
    `split`: "train", "heldout", "rule_ood", "visual_ood" (those that the data set has; the second is played in order of
    the seeds). `route`: a route's number in the data set.

    ## Expert
    The oracle: it says what is at the stop, names the instruction that is due and takes the right action.

    Args:
        data: folder of a data set.
        city: instead of `data`, a synthetic city: style (nyc, sf), routes, seed, width (of a panorama); the
            default. Its pictures are drawn when they are first seen.
        visual_ood: folder of the data set whose routes are the split "visual_ood", all of them; by default the one
            that the data set names, if it does.
        mode: "fixed", or "parity" for the transitions of V-IRL as they are.
        split: where `reset` is told none.
        observation: "vision", "text" or "both".
        action_set: "absolute" or "relative".
        resolution: pixels of one view's side.
        verify_iter: answers that are graded at one stop.
        account: whether the text tells of the stops before; without, of the present one alone, for prompts that keep
            past turns (`history: full`), whose earlier answers are then the model's own.
        relocation: stops are moved to the nearest panorama.
        drop_rate: share of the way points between intersections that an episode leaves out.
        straight_line_length: such way points between two intersections before any is left out.
        reward: see above.
        reward_weights: see above; a mapping or `RewardWeights`.
        grade_instruction: see above.
        render_mode: None or "rgb_array".

    Raises:
        ConfigErrors: with everything that is wrong with the arguments.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 2}
    reset_options: ClassVar[tuple[str, ...]] = options_.RESET_OPTIONS
    splits: ClassVar[tuple[str, ...]] = SPLITS
    # Of the default arguments; an instance has its own.
    actions: ClassVar[ActionSet] = action_names(absolute=True)
    description: ClassVar[str] = description(absolute=True, vision=True)

    def __init__(
        self,
        *,
        data: str | None = None,
        city: Mapping[str, Any] | None = None,
        visual_ood: str | None = None,
        mode: options_.Mode = "fixed",
        split: str = "train",
        observation: options_.ObservationMode = "vision",
        action_set: options_.ActionSetName = "absolute",
        resolution: int = 224,
        verify_iter: int = 2,
        account: bool = True,
        relocation: bool = True,
        drop_rate: float = 0.5,
        straight_line_length: int = 5,
        reward: options_.RewardMode = "step",
        reward_weights: RewardWeights | Mapping[str, Any] | None = None,
        grade_instruction: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.settings: Settings = check_settings(
            data=data, city=city, visual_ood=visual_ood, mode=mode, split=split, observation=observation,
            action_set=action_set, resolution=resolution, verify_iter=verify_iter, account=account,
            relocation=relocation, drop_rate=drop_rate, straight_line_length=straight_line_length, reward=reward,
            weights=reward_weights, grade_instruction=grade_instruction,
        )  # fmt: skip
        self.render_mode = render_mode
        self.actions = action_names(absolute=self.settings.rail.absolute)  # type: ignore[misc]
        self.description = description(  # type: ignore[misc]
            absolute=self.settings.rail.absolute, vision=observation != "text"
        )
        self._renderer = GridRenderer(resolution, original=self.settings.original)
        spaces: dict[str, gym.Space[Any]] = {
            "text": gym.spaces.Text(_TEXT_LENGTH, min_length=0, charset=characters(self.settings.data))
        }
        if self._vision:
            side = self._renderer.side
            spaces["images"] = gym.spaces.Box(0, 255, (1, side, side, 3), np.uint8)
        self.observation_space = gym.spaces.Dict(spaces)  # type: ignore[assignment]
        self.action_space = gym.spaces.Discrete(len(self.actions))
        self._rail: Rail | None = None
        self._said: Said | None = None
        self._over = True

    @classmethod
    def check_config(cls, config: Mapping[str, Any]) -> None:
        """Nothing more than the constructor does.

        Raises:
            ConfigErrors: with everything that is wrong with the arguments.
        """
        cls(**config)

    # ----- what experts, records and tests look at

    @property
    def rail(self) -> Rail:
        """The present episode's way."""
        if self._rail is None:
            raise SimulatorError("the street simulator has no episode yet: call reset() first")
        return self._rail

    @property
    def node(self) -> Node:
        """The stop whose answer is waited for."""
        return self.rail.nodes[self.position]

    @property
    def over(self) -> bool:
        """Whether the episode is over or has not begun."""
        return self._over

    def oracle(self) -> dict[str, Any]:
        """What V-IRL's `info` holds after each call, the right action included. For records and experts alone."""
        return {
            "global_instruction": self.rail.text,
            "current_instruction": self.node.instruction,
            "instruction_idx": self.node.number if self.steps else 0,
            "gt_action": self.node.action,
            "current_obs": self.node.observation,
            "obs_act_seq": original_sequence(self._seen, self._done, vision=self._vision),
            "Verify Info": self._grade.feedback if self._grade else None,
            "is_success": not self._failed,
        }

    # ----- gymnasium

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """Starts an episode; the same seed and options always give the same one.

        Raises:
            SimulatorError: an option has a value it cannot have, or the route cannot be walked.
            UnknownNameError: there is no such option.
        """
        super().reset(seed=seed)
        options = self.known_options(options)
        number = int(self.np_random.integers(2**31)) if seed is None else int(seed)
        # Python's generator, as in the original: parity is also about the order of its numbers.
        rng = random.Random(number)
        split = options.get("split") or self.settings.split
        if split not in SPLITS:
            raise SimulatorError(
                f"split={split!r}.{did_you_mean(str(split), SPLITS)} Known: {', '.join(SPLITS)}"
            )
        try:
            self._data, numbers = self.settings.data.split(split, whole=self.settings.original)
            self.route_number = self._choose(options.get("route"), split, numbers, number, rng)
            route = self._data.routes[self.route_number]
            heading = route.init_heading or rng.randint(0, 359)
            self._rail = build_rail(route, heading, self._data.index, self.settings.rail, rng)
        except DataError as error:
            raise SimulatorError(f"{self.settings.data.name}, split {split}: {error}") from error
        self.position = self.steps = self.correct = 0
        self.tries = self.settings.verify_iter
        self._place: Geocode = self.rail.nodes[0].place
        self._pano: str | None = self.rail.nodes[0].pano_id
        self._seen: list[str] = [self.node.observation]
        self._done: list[str] = []
        self._grade: Grade | None = None
        self._verdicts: dict[Verdict, int] = {}
        self._over = self._failed = False
        self._said = None
        self._key = f"{split}/{self.route_number}/{number}"
        info: Info = {
            "instruction": self.rail.text.strip(), "route": self.route_number, "split": split,
            "rail_length": len(self.rail.nodes), "state": self._state(), "anchor": self._anchor(),
        }  # fmt: skip
        return self._observe(), info

    def hear(self, said: Said) -> None:
        """The answer whose action the next turn carries out; what it claims to see is graded too."""
        self._said = said

    def turn(self, actions: Sequence[str]) -> tuple[Observation, float, bool, bool, Info]:
        """Grades the actions one after the other, and looks once, at the end."""
        said, self._said = self._said, None
        total, terminated, truncated = 0.0, False, False
        grades: list[dict[str, Any]] = []
        for i, name in enumerate(actions or (None,)):
            attempt = self.settings.verify_iter - self.tries + 1 if self._rail else 0
            reward, terminated, truncated = self._try(name, said if i == 0 else None)
            total += reward
            assert self._grade is not None
            verdict = self._grade.verdict
            grades.append({"attempt": attempt, "correct": verdict == CORRECT, "verdict": verdict})
            if terminated or truncated:
                break
        info: Info = {
            "metrics": self._metrics(terminated), "grades": grades, "state": self._state(), "anchor": self._anchor(),
        }  # fmt: skip
        if terminated or truncated:
            info["success"] = terminated and not self._failed
        return self._observe(), total, terminated, truncated, info

    def step(self, action: int) -> tuple[Observation, float, bool, bool, Info]:
        """One action by its number.

        Raises:
            SimulatorError: the episode is over or has not begun, or there is no such action.
        """
        if not 0 <= int(action) < len(self.actions):
            raise SimulatorError(f"no action {action!r}: 0 to {len(self.actions) - 1}")
        return self.turn((self.actions.names[int(action)],))

    def step_text(self, text: str) -> tuple[Observation, float, bool, bool, Info]:
        """A turn by a model's raw answer, as V-IRL takes it (mode "parity").

        Raises:
            SimulatorError: the mode is another one.
        """
        if not self.settings.original:
            raise SimulatorError("step_text grades as V-IRL does: make the simulator with mode='parity'")
        self.hear(Said(text=text))
        return self.turn(())

    def idle(self) -> tuple[Observation, float, bool, bool, Info]:
        """A wrong answer."""
        return self.turn(())

    def expert(self, *, max_actions: int = 1) -> StreetExpert:
        """The oracle; it gives one action a turn."""
        return StreetExpert(self)

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """The grid of views, or None without a render mode."""
        return self._picture() if self.render_mode == "rgb_array" and self._rail else None

    # ----- transitions

    @property
    def _vision(self) -> bool:
        return self.settings.observation != "text"

    def _choose(self, given: Any, split: str, numbers: Sequence[int], seed: int, rng: random.Random) -> int:
        if given is not None:
            try:
                number = -1 if isinstance(given, bool) else operator.index(given)
            except TypeError:
                number = -1
            if not 0 <= number < len(self._data.routes):
                raise SimulatorError(f"route={given!r} is not a whole number below {len(self._data.routes)}")
            return number
        if self.settings.original or split == "train":
            return rng.choice(numbers)
        return numbers[seed % len(numbers)]  # held-out tasks count up: each route once before any comes again

    def _try(self, name: str | None, said: Said | None) -> tuple[float, bool, bool]:
        """Grades one answer and moves; returns reward, terminated, truncated."""
        if self._rail is None or (self._over and not self.settings.original):
            raise SimulatorError("the episode is over or has not begun: call reset() first")
        self.steps += 1
        self.tries -= 1
        if self.settings.original:
            if said is None:
                said = Said(text="" if name is None else json.dumps({"action": name}))
            if self.tries == -1:
                return self._exceed()
            self._grade = grade_original(said.text, self.node)
        else:
            parts = said.parts if said is not None else {}
            answer = Answer(
                action=name, observation=parts.get("observation"), instruction=parts.get("reasoning")
            )
            self._grade = grade(answer, self.node, grade_instruction=self.settings.grade_instruction)
        verdict = self._grade.verdict
        self._verdicts[verdict] = self._verdicts.get(verdict, 0) + 1
        terminated = truncated = False
        if verdict == CORRECT:
            self.correct += 1
            terminated = self.node.action == STOP
            if not terminated:
                self._move()
        elif not self.settings.original and self.tries == 0:
            self._failed = truncated = True
        self._over = self._over or terminated or truncated
        if self.settings.reward == "outcome":
            return terminated * self.settings.weights.correct_action, terminated, truncated
        return float(getattr(self.settings.weights, verdict)), terminated, truncated

    def _exceed(self) -> tuple[float, bool, bool]:
        """V-IRL's end by too many tries: it looks the next stop's way from the old place."""
        self._grade = exceeded_original()
        self._verdicts["exceeded"] = self._verdicts.get("exceeded", 0) + 1
        self._failed = self._over = True
        at_goal = self.node.action == STOP
        if not at_goal:
            self.position += 1
        return self.settings.weights.incorrect_action, at_goal, True

    def _move(self) -> None:
        self._done.append(self.node.action)
        self.position += 1
        self.tries = self.settings.verify_iter
        self._place, self._pano = self.node.place, self.node.pano_id
        self._seen.append(self.node.observation)

    # ----- what is told

    def _observe(self) -> Observation:
        observation: Observation = {"text": self._text()}
        if self._vision:
            observation["images"] = self._picture()[None]
        return observation

    def _text(self) -> str:
        feedback = self._grade.feedback if self._grade and self._grade.verdict != CORRECT else ""
        if self.settings.original:
            text = original_sequence(self._seen, self._done, vision=self._vision)
            return text + _FAILED.format(feedback) if feedback else text
        told = self.settings.observation != "vision"
        if self.settings.account:
            text = sequence(self.rail.nodes[: self.position], self.node, vision=self._vision, told=told)
        else:
            text = present(self.node, vision=self._vision, told=told)
        return f"{text}\n{feedback}" if feedback else text

    def _picture(self) -> Image:
        pano = self._pano or snap(self._place, self._data.index, "walker")[1]
        views = ORIGINAL_VIEWS if self.settings.original else TRUE_VIEWS
        # Four views are as many columns as a panorama has, at its horizon.
        panorama = self._data.source.load(pano, 4 * self.settings.resolution)
        return self._renderer.render(panorama, [(self.node.heading + view) % 360 for view in views])

    def _anchor(self) -> str:
        return f"{self._key}/{self.position}/{self.tries}"

    def _state(self) -> dict[str, float]:
        length = len(self.rail.nodes)
        return {
            "to_go": (length - self.position) / length,
            "tries": max(self.tries, 0) / max(self.settings.verify_iter, 1),
        }

    def _metrics(self, terminated: bool) -> dict[str, float]:
        length = len(self.rail.nodes)
        success = terminated and not self._failed
        return {
            "steps": float(self.steps),
            "step_accuracy": self.correct / self.steps,
            "progress": 1.0 if success else len(self._done) / length,
            "rail_length": float(length),
            "incorrect_action": float(self._verdicts.get("incorrect_action", 0)),
            "incorrect_observation": float(self._verdicts.get("incorrect_observation", 0)),
            "incorrect_instruction": float(self._verdicts.get("incorrect_instruction", 0)),
        }
