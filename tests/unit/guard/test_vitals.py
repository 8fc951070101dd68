"""When an update's figures are a sign, when signs are an alarm, and when alarms are a collapse."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_vlm.guard.vitals import VITALS, Monitor, Vital, bounded

HARM = Vital(name="harm", path="a/harm", worse="low", least=0.05, decides=True, floor=-1.0)
SIGN = Vital(name="sign", path="a/sign", worse="both", least=0.1, relative=True)
OTHER = Vital(name="other", path="other", worse="high", least=0.1, ceiling=9.0)


def monitor(**options):
    return Monitor(vitals=(HARM, SIGN, OTHER), **options)


def result(harm=0.8, sign=10.0, other=1.0):
    return {"a": {"harm": harm, "sign": sign}, "other": other}


def healthy(watch, updates=8):
    for _ in range(updates):
        assert watch.examine(result()) == []
    return watch


def test_harm_for_as_long_as_patience_lasts_is_a_collapse():
    watch = healthy(monitor(patience=2))
    (sign,) = watch.examine(result(harm=0.2))
    assert (sign.vital, sign.value, sign.usual, sign.decides) == ("harm", 0.2, 0.8, True)
    assert sign.z == pytest.approx(0.6 / 0.05)
    assert watch.alarmed and not watch.collapsed and not watch.healthy
    watch.examine(result(harm=0.2))
    assert watch.collapsed


def test_one_good_update_restores_patience():
    watch = healthy(monitor(patience=2))
    watch.examine(result(harm=0.2))
    watch.examine(result())
    watch.examine(result(harm=0.2))
    assert not watch.collapsed


def test_a_sign_alone_is_told_and_two_signs_together_count_as_harm():
    watch = healthy(monitor(patience=2))
    for _ in range(5):
        assert [a.vital for a in watch.examine(result(sign=30.0))] == ["sign"]
        assert watch.healthy and not watch.alarmed
    for _ in range(2):
        assert [a.vital for a in watch.examine(result(sign=30.0, other=5.0))] == ["sign", "other"]
        assert watch.alarmed
    assert watch.collapsed


def test_both_directions_count_only_where_both_are_bad():
    watch = healthy(monitor())
    assert [a.vital for a in watch.examine(result(sign=1.0))] == ["sign"]
    assert watch.examine(result(harm=1.6, other=-5.0)) == []


def test_bounds_hold_from_the_first_update():
    watch = monitor()
    signs = watch.examine(result(harm=-2.0, other=10.0))
    assert [(a.vital, a.z) for a in signs] == [("harm", math.inf), ("other", math.inf)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_that_is_no_number_is_a_sign(value):
    assert [a.vital for a in healthy(monitor()).examine(result(harm=value))] == ["harm"]


def test_a_collapse_does_not_become_what_is_usual():
    watch = healthy(monitor(window=5))
    for _ in range(30):
        assert watch.examine(result(harm=0.1))
    watch.forget_signs()
    assert watch.healthy and watch.examine(result()) == []


def test_a_policy_that_was_never_well_has_nothing_to_fall_from():
    watch = monitor()
    for _ in range(20):
        assert watch.examine(result(harm=-2.0))
        assert not watch.collapsed and not watch.healthy


def test_missing_figures_are_no_sign():
    assert healthy(monitor()).examine({"a": {}}) == []


def test_state_goes_around():
    watch = healthy(monitor(patience=2))
    watch.examine(result(harm=0.2))
    other = monitor(patience=2)
    other.restore(watch.state())
    other.examine(result(harm=0.2))
    assert other.collapsed


@given(st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_a_run_that_only_learns_and_is_noisy_is_left_alone(seed):
    rng = np.random.default_rng(seed)
    watch = Monitor()
    for update in range(60):
        success = min(0.95, 0.3 + 0.01 * update)
        watch.examine(
            {
                "env_runners": {
                    "success_rate": rng.binomial(64, success) / 64,
                    "episode_return_mean": success * 10 + rng.normal() * 0.8,
                    "parse_failure_rate": rng.binomial(500, 0.02) / 500,
                    "response_length": 25.0 + rng.normal(),
                },
                "learners": {
                    "default_policy": {
                        "entropy": 0.3 * math.exp(-0.01 * update) * (1 + 0.1 * rng.normal()),
                        "approx_kl": 0.004 * rng.lognormal(0, 0.3),
                        "grad_norm": 0.5 * rng.lognormal(0, 0.3),
                        "explained_variance": 0.3 + 0.1 * rng.normal(),
                        "sampler_gap": 1e-5,
                    }
                },
            }
        )
        assert not watch.collapsed


def entropy(nats):
    return {"learners": {"default_policy": {"entropy": nats}}}


def test_bounds_of_a_run_s_own_are_harm_where_a_change_is_a_sign():
    without = Monitor(least_history=1, patience=1)
    assert without.examine(entropy(0.1)) == [] and without.examine(entropy(0.001))[0].decides is False
    watch = Monitor(
        least_history=1, patience=1, vitals=bounded({"entropy": (0.01, None), "success": [None, 1]})
    )
    assert watch.examine(entropy(0.1)) == [] and not watch.collapsed
    (sign,) = watch.examine(entropy(0.009))
    assert sign.vital == "entropy" and sign.decides and watch.collapsed
    assert bounded({}) == VITALS


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ({"entropi": (0.1, 1.0)}, "no vital 'entropi'. Did you mean 'entropy'"),
        ({"entropy": (2.0, 1.0)}, "entropy is \\(2.0, 1.0\\), not a floor"),
        ({"entropy": 0.1, "kl": (None, "1")}, "entropy is 0.1.*; bounds: kl is"),
    ],
)
def test_bounds_that_are_none_are_said(bounds, said):
    with pytest.raises(ValueError, match=said):
        bounded(bounds)


def test_vitals_have_names_of_their_own():
    assert len({v.name for v in VITALS}) == len(VITALS)


DRIFTING = Vital(name="harm", path="a/harm", worse="low", least=0.08, decides=True, drifts=True)
CRITIC = Vital(name="other", path="other", worse="high", least=0.1, ceiling=9.0, lasts=True)


def drifting(**options):
    return healthy(Monitor(vitals=(DRIFTING, CRITIC), **options))


def test_small_falls_that_add_up_are_a_collapse_and_no_state_is_trusted_once_they_begin():
    watch = drifting(patience=3)
    trusted = []
    for fall in range(1, 20):  # never more than 4.5 deviations from the window's median
        alarms = watch.examine(result(harm=0.8 - min(0.02 * fall, 0.36)))
        trusted.append(watch.healthy)
        if watch.collapsed:
            break
    (alarm,) = alarms
    assert alarm.vital == "harm" and alarm.decides and alarm.z > 5.0
    assert 6 < fall < 14
    assert trusted[:3] == [True] * 3 and not any(trusted[7:])
    watch.forget_signs()
    assert watch.examine(result()) == [] and watch.healthy


def test_noise_about_a_level_is_no_drift():
    watch = drifting()
    noise = np.random.default_rng(0).normal(0.8, 0.08, size=300)
    assert not any(watch.examine(result(harm=float(x))) and watch.collapsed for x in noise)


def test_a_lower_level_becomes_what_is_usual():
    watch = drifting()
    for _ in range(60):  # a harder task
        watch.examine(result(harm=0.73))
        assert not watch.collapsed
    assert watch.healthy


def test_a_critic_of_no_use_is_harm_where_success_falls_meanwhile():
    watch = drifting(lasting=4)
    for _ in range(10):
        assert [a.decides for a in watch.examine(result(other=99.0))] == [False]
        assert watch.healthy and not watch.collapsed
    watch = drifting(lasting=4)
    for update in range(1, 5):
        (alarm,) = watch.examine(result(harm=0.8 - 0.015 * update - 0.04, other=99.0))
        assert not watch.healthy
        assert (watch.collapsed, alarm.decides) == (update == 4, update == 4)


def test_drifts_are_remembered_and_notes_without_them_are_read():
    watch = drifting()
    for _ in range(3):
        watch.examine(result(harm=0.68))
    again = Monitor(vitals=watch.vitals)
    again.restore(watch.state())
    assert again.state() == watch.state() and not again.healthy
    old = {name: value for name, value in watch.state().items() if name not in ("sums", "rows")}
    again.restore(old)
    assert again.healthy
