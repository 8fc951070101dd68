"""The figures of a run's updates, one array per metric, and the few statistics that findings are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RUNNERS = "env_runners/"
LEARNER = "learners/default_policy/"

SUCCESS = f"{RUNNERS}success_rate"
RETURN = f"{RUNNERS}episode_return_mean"
TURNS = f"{RUNNERS}episode_len_mean"
TURNS_MAX = f"{RUNNERS}episode_len_max"
EPISODES = f"{RUNNERS}num_episodes"
ANSWER_TOKENS = f"{RUNNERS}response_length"
PARSE_FAILURES = f"{RUNNERS}parse_failure_rate"
CUT_ANSWERS = f"{RUNNERS}truncated_response_rate"
POLICY_LAG = f"{RUNNERS}policy_lag"
CRASHES = f"{RUNNERS}num_simulator_crashes"
TIMEOUTS = f"{RUNNERS}num_simulator_timeouts"
REPLACED_GROUPS = f"{RUNNERS}num_replaced_groups"
GROUP_SPREAD = f"{RUNNERS}group_return_std"
GROUPS = f"{RUNNERS}num_groups"
GROUPS_OF_ONE = f"{RUNNERS}num_groups_of_one"
GROUPS_ALIKE = f"{RUNNERS}num_groups_without_spread"
GROUPS_DROPPED = f"{RUNNERS}num_groups_dropped"

POLICY_LOSS = f"{LEARNER}policy_loss"
VALUE_LOSS = f"{LEARNER}value_loss"
VALUE_MEAN = f"{LEARNER}value_mean"
TOTAL_LOSS = f"{LEARNER}total_loss"
IMITATION_LOSS = f"{LEARNER}imitation_loss"
GROUNDING_LOSS = f"{LEARNER}grounding_loss"
ENTROPY = f"{LEARNER}entropy"
KL = f"{LEARNER}approx_kl"
REFERENCE_KL = f"{LEARNER}kl_to_reference"
CLIP_FRACTION = f"{LEARNER}clip_fraction"
RATIO_MAX = f"{LEARNER}ratio_max"
FIRST_LOG_RATIO = f"{LEARNER}log_ratio_max"
SAMPLER_GAP = f"{LEARNER}sampler_gap"
MISMATCH_KL = f"{LEARNER}mismatch_kl"
MISMATCH_LOG_RATIO = f"{LEARNER}mismatch_log_ratio_max"
EXPLAINED = f"{LEARNER}explained_variance"
GRAD_NORM = f"{LEARNER}grad_norm"
GRAD_NORM_MAX = f"{LEARNER}grad_norm_max"
LEARNING_RATE = f"{LEARNER}lr"
TOKENS = f"{LEARNER}tokens"
STEPS = f"{LEARNER}num_optimizer_steps"
SKIPPED_STEPS = f"{LEARNER}num_skipped_steps"

LEVEL = "curriculum_level"
NUMBER = "num_updates"
IMITATION_NUMBER = "num_warm_start_updates"

WINDOW = 5  # updates whose median is a level: one odd batch makes none
MIN_UPDATES = 4  # fewer have no beginning and no end to compare

Values = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Curves:
    """The updates of one kind in the order they were made.

    Numbers repeat where a run went back and went on from there, by a rollback or by a resume.
    """

    numbers: NDArray[np.int64]
    figures: Sequence[Mapping[str, float]]

    def __len__(self) -> int:
        return len(self.figures)

    def __getitem__(self, metric: str) -> Values:
        """[updates]; NaN where an update has no such figure, or has it as NaN."""
        return np.array([f.get(metric, np.nan) for f in self.figures], np.float64)

    @property
    def kept(self) -> Mask:
        """The updates that led to the run's last state: those it did not go back behind."""
        later = np.minimum.accumulate(self.numbers[::-1])[::-1]
        kept = np.ones(len(self), bool)
        kept[:-1] = self.numbers[:-1] < later[1:]
        return kept


def levels(values: Values) -> tuple[float, float]:
    """The levels a figure begins and ends at; NaN where it was recorded too seldom to have two."""
    finite = values[np.isfinite(values)]
    if len(finite) < MIN_UPDATES:
        return np.nan, np.nan
    window = min(WINDOW, len(finite) // 2)
    return float(np.median(finite[:window])), float(np.median(finite[-window:]))


def running(values: Values) -> Values:
    """[updates] the median of each update and those before it, `WINDOW` in all; NaN where there are too few yet."""
    window = min(WINDOW, max(1, len(values) // 2))
    out = np.full(len(values), np.nan)
    for i in range(window - 1, len(values)):
        recent = values[i + 1 - window : i + 1]
        recent = recent[np.isfinite(recent)]
        if 2 * len(recent) >= window:
            out[i] = np.median(recent)
    return out


def median(values: Values) -> float:
    """Of what is finite; NaN where nothing is."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else np.nan


def largest(values: Values) -> float:
    """The largest there is, which may be infinite; NaN where there is none."""
    known = values[~np.isnan(values)]
    return float(known.max()) if len(known) else np.nan


def total(values: Values) -> float:
    """The sum of what was recorded."""
    return float(values[np.isfinite(values)].sum())


def stretches(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """`[1, 2, 3, 7]` -> `[(1, 3), (7, 7)]`."""
    found: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def in_words(numbers: Sequence[int], most: int = 4) -> str:
    """`[1, 2, 3, 7]` -> "updates 1 to 3, 7"; of many stretches, the first few and the last."""
    parts = [str(a) if a == b else f"{a} to {b}" for a, b in stretches(numbers)]
    if len(parts) > most:
        parts = [*parts[: most - 1], "...", parts[-1]]
    return f"{'update' if len(set(numbers)) == 1 else 'updates'} {', '.join(parts)}"
