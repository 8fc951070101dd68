from __future__ import annotations

import math

import numpy as np
import pytest
from tiny import tiny_config

from rllib_vlm.algorithms.ranges import RANGES, Range, check_values


@pytest.mark.parametrize("value", ["1", True, math.nan, math.inf, -math.inf, 10**400, [1], {}, None])
def test_what_is_no_number_is_in_no_range(value: object):
    for bounds in (Range(), Range(0), Range(1, whole=True)):
        assert value not in bounds


def test_bounds():
    assert 0 in Range(0) and 0 not in Range(0, open_low=True) and 1e-9 in Range(0, open_low=True)
    assert 1 in Range(0, 1) and 1.01 not in Range(0, 1) and -0.1 not in Range(0, 1)
    assert (
        2 in Range(1, whole=True) and 2.0 not in Range(1, whole=True) and np.int64(2) in Range(1, whole=True)
    )
    assert None in Range(0, optional=True)
    assert str(Range(0, 1, open_low=True)) == "a number above 0 and at most 1"
    assert str(Range(1, whole=True, optional=True)) == "a whole number of at least 1, or nothing"


@pytest.mark.parametrize("name", sorted(RANGES))
def test_every_setting_of_the_table_is_checked(name: str):
    config = tiny_config("ppo")
    assert not list(check_values(config))
    setattr(config, name, "abc")
    (error,) = check_values(config)
    assert error.startswith(f"{name} is 'abc'; it must be a")


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("packing", 1, "true or false"),
        ("credit_options", [1], "a mapping"),
        ("adam_betas", (0.9, 1.0), "two numbers"),
        ("adam_betas", 0.9, "two numbers"),
        ("stop", ("",), "a list of texts"),
        ("image_placeholder", 5, "a text"),
        ("evaluation_duration", 0, "a whole number"),
        ("lr", True, "at least 0"),
        ("lr", math.nan, "at least 0"),
    ],
)
def test_other_kinds(name: str, value: object, meant: str):
    config = tiny_config("ppo")
    setattr(config, name, value)
    (error,) = check_values(config)
    assert error.startswith(f"{name} is ") and meant in error
