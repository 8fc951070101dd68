import pytest
from ray.tune.search.sample import Categorical, Float, Integer

from rllib_vlm.config.document import parse_yaml
from rllib_vlm.config.samplers import contains_sampler, to_tune


def convert(text: str):
    errors: list[str] = []
    return to_tune(parse_yaml(f"v: {text}", "f"), ("v",), errors), errors


@pytest.mark.parametrize(
    ("text", "kind", "low", "high"),
    [
        ("{uniform: [0.0, 2.0]}", Float, 0.0, 2.0),
        ("{loguniform: [1e-6, 1e-4]}", Float, 1e-6, 1e-4),
        ("{loguniform: {lower: 1e-6, upper: 1e-4}}", Float, 1e-6, 1e-4),
        ("{randint: [3, 9]}", Integer, 3, 9),
    ],
)
def test_ranges_become_tunes_domains(text: str, kind: type, low: float, high: float):
    domain, errors = convert(text)
    assert not errors
    assert isinstance(domain, kind)
    assert (domain.lower, domain.upper) == (low, high)


def test_choice_and_grid_search():
    assert convert("{choice: [a, b]}")[0].categories == ["a", "b"]
    assert convert("{grid_search: [1, 2]}")[0] == {"grid_search": [1, 2]}


def test_samplers_are_found_at_any_depth():
    value, errors = convert("{a: [{b: {choice: [1]}}], c: 2}")
    assert not errors
    assert isinstance(value["a"][0]["b"], Categorical)
    assert value["c"] == 2
    assert contains_sampler({"a": [{"b": {"choice": [1]}}]})
    assert not contains_sampler({"a": [{"b": {"choice": [1], "other": 2}}]})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{uniform: [3]}", "upper missing"),
        ("{uniform: [3, 1]}", "lower (3) must be below upper (1)"),
        ("{uniform: [a, b]}", "must be a number"),
        ("{uniform: [1, 2, 3]}", "needs [lower, upper]"),
        ("{choice: []}", "at least one value"),
        ("{grid_search: 3}", "needs a list"),
        ("{loguniform: {low: 1, upper: 2}}", "does not know low"),
        ("{loguniform: [0, 1]}", ""),
    ],
)
def test_mistakes_are_told_with_their_place(text: str, words: str):
    value, errors = convert(text)
    assert value is None
    assert len(errors) == 1
    assert errors[0].startswith("f:1: v: {")
    assert words in errors[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{quniform: [0, 1, 0]}", "q, the step between values, must be above 0"),
        ("{uniform: [.nan, 1]}", "lower must be a finite number"),
        ("{randint: [1.5, 4]}", "lower must be a whole number"),
    ],
)
def test_numbers_tune_would_stumble_over(text: str, words: str):
    errors: list[str] = []
    to_tune(parse_yaml(f"x: {text}", "f"), ("x",), errors)
    assert len(errors) == 1 and words in errors[0]
