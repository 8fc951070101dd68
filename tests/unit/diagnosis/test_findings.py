"""Every finding is seen where it is, and nowhere else."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rllib_vlm.diagnosis import curves as c
from rllib_vlm.diagnosis.finding import UNKNOWN, Finding, present_value
from rllib_vlm.diagnosis.findings import FINDINGS, diagnose
from rllib_vlm.diagnosis.records import read_trial

Figures = Callable[[int], dict[str, Any]]


def late(update: int, figures: dict[str, Any], start: int = 21) -> dict[str, Any]:
    return figures if update >= start else {}


EMPTY = {c.TOKENS: 0.0, c.GRAD_NORM: 0.0, c.POLICY_LOSS: ..., c.KL: ..., c.ENTROPY: ...}
# Finding -> the figures that show it, what its message says, and the updates it names.
CASES: dict[str, tuple[Figures, str, tuple[int, int]]] = {
    "success_fell": (lambda u: late(u, {c.SUCCESS: 0.2}), "to 20%", (23, 30)),
    "never_ending": (
        lambda u: late(u, {c.TURNS: 29.5, c.SUCCESS: 0.02, c.VALUE_MEAN: 20.0}),
        "to 29.5 of at most 30, and success fell from 6.% to 2%.*values its states at 20 on average",
        (21, 30),
    ),
    "entropy_blow_up": (
        lambda u: late(u, {c.ENTROPY: 2.3, c.PARSE_FAILURES: 0.89}), "to 2.3 nats a token, and up to 89%", (21, 30)
    ),
    "entropy_collapse": (lambda u: late(u, {c.ENTROPY: 0.03}), "to 0.03 nats a token while success is 78%", (21, 30)),
    "echo_trap": (
        lambda u: late(u, {c.ENTROPY: 0.2, c.GROUP_SPREAD: 0.3, c.RETURN: 4.0}),
        "spread of returns within groups from 1.9 to 0.3", (21, 30),
    ),
    "long_answers": (
        lambda u: late(u, {c.ANSWER_TOKENS: 80.0, c.CUT_ANSWERS: 0.4}),
        "25 to 80 tokens, and up to 40% of the answers were cut", (21, 30),
    ),
    "rate_restart": (
        lambda u: {c.LEARNING_RATE: 1e-4 if u == 21 else 1e-4 / u}, "rose from 5e-06 to 0.0001", (21, 21)
    ),
    "ratio_explosion": (
        lambda u: {c.RATIO_MAX: 400.0, c.KL: 0.2, c.CLIP_FRACTION: 0.5} if u == 9 else {},
        "1 of 30 updates.*approx_kl 0.2, clip_fraction 0.5, ratio_max 400", (9, 9),
    ),
    "skipped_steps": (lambda u: {c.SKIPPED_STEPS: 3.0} if u == 7 else {}, "3 of 240 optimizer steps", (7, 7)),
    "dead_critic": (lambda u: {c.EXPLAINED: 0.02 * (-1) ** u}, r"-0.02 to 0.02 \(median 0\)", (1, 30)),
    "sampler_gap": (
        lambda u: {c.SAMPLER_GAP: 0.2, c.FIRST_LOG_RATIO: 4.0, c.POLICY_LAG: 2.0},
        "0.2 nats a token and 4 nats on one token.*up to 2 updates old", (1, 30),
    ),
    "masked_batch": (lambda u: late(u, EMPTY), "10 of 30 .* 10 read no tokens", (21, 30)),
    "groups_of_one": (lambda u: {c.GROUPS_OF_ONE: 8, c.GROUPS_ALIKE: 0}, "240 of 240 groups", (1, 30)),
    "groups_alike": (lambda u: {c.GROUPS_ALIKE: 6}, r"180 of 240 groups \(75%\)", (1, 30)),
    "failing_simulators": (
        lambda u: {c.CRASHES: 5, c.TIMEOUTS: 4, c.REPLACED_GROUPS: 1} if u in (3, 4) else {},
        "10 simulators raised or died and 8 missed a deadline in 1920 episodes; 2 groups", (3, 4),
    ),
    "nothing_learnt": (lambda u: {c.SUCCESS: 0.3, c.KL: 1e-5}, "30%, then 30%.* 1e-05 nats a token", (1, 30)),
}  # fmt: skip
# What cannot happen alone.
WITH = {"never_ending": {"success_fell"}}


@pytest.fixture
def found(write_trial) -> Callable[..., dict[str, Finding]]:
    def find(figures: Figures = lambda update: {}, **options: Any) -> dict[str, Finding]:
        return {finding.name: finding for finding in diagnose(read_trial(write_trial(figures, **options)))}

    return find


def test_a_healthy_run_has_no_findings(found):
    assert found() == {}


def test_every_finding_has_a_case():
    assert CASES.keys() == {check.name for check in FINDINGS}


@pytest.mark.parametrize("name", CASES)
def test_a_finding_is_seen_where_it_is_and_no_other(name: str, found):
    figures, message, (first, last) = CASES[name]
    seen = found(figures)
    assert seen.keys() == {name} | WITH.get(name, set())
    assert re.search(message, seen[name].message), seen[name].message
    assert (min(seen[name].numbers), max(seen[name].numbers)) == (first, last)
    assert seen[name].changes


# What looks like a finding and is none.
HARMLESS: dict[str, Figures] = {
    "harder tasks succeed less": lambda u: {
        c.SUCCESS: 0.9 if u < 15 else 0.4,
        c.LEVEL: 0.5 if u < 15 else 1.0,
    },
    "one bad batch": lambda u: {c.SUCCESS: 0.1, c.ENTROPY: 2.0, c.PARSE_FAILURES: 0.6} if u == 15 else {},
    "a success that slipped": lambda u: late(u, {c.SUCCESS: 0.58}),
    "small steps that teach all the same": lambda u: {c.KL: 1e-5},
    "a single turn is all there is": lambda u: {c.TURNS: 1.0, c.TURNS_MAX: 1},
    "a task that is solved needs no entropy": lambda u: late(u, {c.ENTROPY: 0.01, c.SUCCESS: 0.98}),
    "siblings that all succeed are alike": lambda u: late(u, {c.ENTROPY: 0.2, c.GROUP_SPREAD: 0.1}),
    "a warm-up rises and a schedule falls": lambda u: {c.LEARNING_RATE: 1e-4 * min(u / 5, (31 - u) / 26)},
    "a critic that comes to life": lambda u: {c.EXPLAINED: -0.3 + 0.04 * u},
    "no critic": lambda u: {c.EXPLAINED: ..., c.VALUE_LOSS: ...},
    "equal answers of opposite advantages": lambda u: {c.POLICY_LOSS: 0.0},
    "steps that were skipped have no gradient to tell": lambda u: {c.GRAD_NORM: 0.0, c.SKIPPED_STEPS: 8.0},
    "one group without spread in three": lambda u: {c.GROUPS_ALIKE: 2.7},
    "one step an update tells no KL": lambda u: {c.SUCCESS: 0.5, c.KL: 1e-9, c.STEPS: 1.0},
    "a plateau that is not for want of steps": lambda u: {c.SUCCESS: 0.5},
    "a policy that can no more": lambda u: {c.SUCCESS: 0.97, c.KL: 1e-5},
    "rounding in bfloat16": lambda u: {c.SAMPLER_GAP: 0.01, c.FIRST_LOG_RATIO: 0.4},
    "one crash in many episodes": lambda u: {c.CRASHES: int(u == 4)},
}
STILL = {"steps that were skipped have no gradient to tell": {"skipped_steps"}}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_only_looks_like_a_finding_is_none(name: str, found):
    assert found(HARMLESS[name]).keys() == STILL.get(name, set())


@pytest.mark.parametrize(
    "figures",
    [
        {c.POLICY_LOSS: math.inf},
        {c.TOTAL_LOSS: math.nan, c.POLICY_LOSS: math.nan},
        {c.POLICY_LOSS: None},
        {c.POLICY_LOSS: ...},  # results are recorded without their NaNs
    ],
)
def test_a_loss_that_is_not_finite_is_seen_however_it_was_written(figures: dict[str, Any], found):
    seen = found(lambda u: figures if u == 12 else {})
    assert seen.keys() == {"skipped_steps"}
    assert seen["skipped_steps"].numbers == (12,) and "loss was not finite" in seen["skipped_steps"].message


def test_the_echo_trap_without_groups_is_seen_by_the_return(found):
    seen = found(lambda u: {c.GROUP_SPREAD: ..., **late(u, {c.ENTROPY: 0.2, c.RETURN: 2.0})})
    assert seen.keys() == {"echo_trap"}
    assert "the return from" in seen["echo_trap"].message


def test_groups_that_dynamic_sampling_drops_count_as_alike(found):
    seen = found(lambda u: {c.GROUPS_ALIKE: 0, c.GROUPS_DROPPED: 24})
    assert "720 of 960 groups (75%)" in seen["groups_alike"].message


def test_the_reference_tells_of_single_steps_that_teach_nothing(found):
    assert "nothing_learnt" in found(
        lambda u: {c.SUCCESS: 0.5, c.KL: 1e-9, c.STEPS: 1.0, c.REFERENCE_KL: 1e-4}
    )


def test_a_schedule_that_goes_on_after_a_rollback_is_no_restart(found):
    numbers = [*range(1, 21), *range(11, 21)]
    assert found(lambda u: {c.LEARNING_RATE: 1e-4 / u}, numbers=numbers) == {}


def test_a_run_too_short_for_trends_has_none(found):
    assert found(lambda u: {c.SUCCESS: 0.6 - 0.2 * u}, numbers=range(1, 4)) == {}


def test_advice_that_is_followed_already_is_left_out(found):
    figures = CASES["never_ending"][0]
    before = found(figures, name="a", settings={"bootstrap_truncated": True, "max_turns": 30})["never_ending"]
    now = {change.setting: value for change, value in before.changes}
    assert now["training.bootstrap_truncated"] is True and now["simulation.max_turns"] == 30
    assert now["training.credit_options"] is UNKNOWN
    after = found(figures, name="b", settings={"bootstrap_truncated": False})["never_ending"]
    assert "training.bootstrap_truncated" not in {change.setting for change, _ in after.changes}


@pytest.mark.parametrize("value", [None, "much", [], {}, True, math.nan, 10**400])
def test_no_setting_of_a_strange_type_stops_a_diagnosis(value: object):
    settings = {key: value for check in FINDINGS for key in (c.setting.split(".")[-1] for c in check.changes)}
    for check in FINDINGS:
        for change in check.changes:
            assert change.done(present_value(settings, change.setting)) in (True, False)


def test_present_values_are_found_under_the_names_that_a_trial_records():
    settings = {"lr": 1e-4, "simulator_process": "inline", "_model_config": {"value_head": {"detach": True}}}
    assert present_value(settings, "training.lr") == 1e-4
    assert present_value(settings, "simulation.process") == "inline"
    assert present_value(settings, "rl_module.model_config.value_head") == {"detach": True}
    assert present_value(settings, "callbacks") is UNKNOWN
    assert present_value({"_model_config": None}, "rl_module.model_config.value_head") is UNKNOWN


def test_every_setting_that_is_advised_exists():
    from rllib_vlm.algorithms.ppo import VLMPPOConfig
    from rllib_vlm.config.sections import sections

    known = sections(VLMPPOConfig)
    names = {f"{section}.{key}" for section, keys in known.items() for key in keys} | {"callbacks"}
    names.add("rl_module.model_config.value_head")  # what the models' own table of settings knows
    for check in FINDINGS:
        for change in check.changes:
            assert change.setting in names, f"{check.name}: {change.setting}"
            for mentioned in re.findall(r"\b(?:training|generation|simulation|prompting)\.\w+", change.to):
                assert mentioned in names, f"{check.name}: {mentioned}"


def test_the_updates_of_a_finding_are_those_of_reinforcement_learning(write_trial):
    trial = read_trial(write_trial())
    assert list(trial.updates.numbers) == list(range(1, 31)) and len(trial.imitation) == 3
    assert trial.updates[c.LEARNING_RATE].max() == pytest.approx(1e-4)


def test_a_run_of_imitation_alone_is_not_looked_at(write_trial):
    folder: Path = write_trial(numbers=range(0))
    assert diagnose(read_trial(folder)) == []
