import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_vlm.config.document import Document, Mark, parse_yaml


def test_scalars_follow_yaml_1_2():
    text = "{a: 1e-6, b: on, c: 010, d: 1_000, e: .5, f: ~, g: 0x1f, h: 12:30, i: 2024-01-01, j: '1', k: -.inf, l: no}"
    assert parse_yaml(text, "x").data == {
        "a": 1e-6,
        "b": "on",
        "c": 10,
        "d": 1000,
        "e": 0.5,
        "f": None,
        "g": 31,
        "h": "12:30",
        "i": "2024-01-01",
        "j": "1",
        "k": -math.inf,
        "l": "no",
    }


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=60, deadline=None)
def test_every_float_python_writes_is_read_as_that_float(value: float):
    read = parse_yaml(f"a: {value!r}", "x").data["a"]
    assert isinstance(read, float)
    assert read == value


def test_marks_name_the_line_of_the_key():
    document = parse_yaml("a:\n  b:\n    c: 1\n    d: [1,\n        2]\n", "f.yaml")
    assert str(document.mark(("a", "b", "c"))) == "f.yaml:3"
    assert str(document.mark(("a", "b", "d"))) == "f.yaml:4"
    assert str(document.mark(("a", "b", "d", 1))) == "f.yaml:5"
    assert str(document.mark(("a", "b", "nowhere"))) == "f.yaml:2", "the nearest parent stands in"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "written twice (first on line 1)"),
        ("a: [1\nb: 2\n", 2, "not YAML"),
        ("a: !!python/object/apply:os.system [ls]\n", 1, "a: a tag"),
        (
            "a: !!python/name:os.system x\n",
            1,
            "a: a tag (tag:yaml.org,2002:python/name:os.system) means nothing",
        ),
        ("x: 1\na: &a [*a]\n", 2, "refers to itself"),
        ("? [1, 2]\n: 3\n", 1, "plain word"),
    ],
)
def test_mistakes_of_the_text_are_reported_with_their_line(text: str, line: int, words: str):
    errors = parse_yaml(text, "f.yaml").errors
    assert len(errors) == 1
    assert errors[0].startswith(f"f.yaml:{line}: ")
    assert words in errors[0]


def test_merge_keys_stand_below_own_keys():
    document = parse_yaml("base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\n", "f")
    assert document.data["use"] == {"x": 1, "y": 3}
    assert document.mark(("use", "y")).line == 4


def test_overlay_merges_mappings_and_replaces_everything_else():
    below = parse_yaml("a: {x: 1, y: [1, 2]}\nb: 1\n", "below")
    above = parse_yaml("a:\n  y: [3]\n  z: 4\n", "above")
    merged = below.overlay(above)
    assert merged.data == {"a": {"x": 1, "y": [3], "z": 4}, "b": 1}
    assert str(merged.mark(("a", "x"))) == "below:1"
    assert str(merged.mark(("a", "y"))) == "above:2"
    assert below.data["a"] == {"x": 1, "y": [1, 2]}, "the lower document is untouched"


def test_overlay_replaces_a_sampler_whole():
    below = parse_yaml("lr: {grid_search: [1, 2]}", "below")
    assert below.overlay(parse_yaml("lr: {uniform: [0, 1]}", "a")).data == {"lr": {"uniform": [0, 1]}}


def test_child_keeps_the_places_of_its_values():
    child = parse_yaml("a:\n  b:\n    c: 1\n", "f").child("a", "b")
    assert child.data == {"c": 1}
    assert str(child.mark(("c",))) == "f:3"
    assert str(child.mark(())) == "f:2"


def test_mark_without_a_line_is_its_source():
    assert str(Document({}, {(): Mark("--set")}).mark(("a",))) == "--set"


def test_a_few_lines_of_aliases_that_stand_for_billions_of_values_are_refused_at_once():
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{c}: &{c} [{', '.join([f'*{b}'] * 10)}]" for b, c in zip("abcdefgh", "bcdefghi", strict=True)]
    assert parse_yaml("\n".join(lines), "f").errors == ["f: more than 100000 values, aliases counted"]
    merges = ["a: &a {x: 1, y: 2}"]
    merges += [
        f"{c}: &{c} {{<<: [{', '.join([f'*{b}'] * 10)}]}}"
        for b, c in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    assert parse_yaml("\n".join(merges), "f").errors == ["f: more than 100000 values, aliases counted"]


@pytest.mark.parametrize("depth", [65, 5000])
def test_too_deep_a_nesting_is_refused(depth: int):
    assert parse_yaml("a: " + "[" * depth + "]" * depth, "f").errors == ["f: nested more than 64 levels deep"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: !!bool maybe", "f:1: a cannot be read as bool"),
        ("a: !!timestamp 2001-01-01", "f:1: a: a tag (tag:yaml.org,2002:timestamp) means nothing here"),
        ("a:\n  <<: 5", "f:2: `<<` merges mappings, not 5"),
        ("a:\n  <<: [{b: 1}, c]", "f:2: `<<` merges mappings, not 'c'"),
    ],
)
def test_tags_and_merges_that_cannot_be_read(text: str, words: str):
    (error,) = parse_yaml(text, "f").errors
    assert words in error
