"""The answer formats: what they read, what they refuse and why, and that they read what they write."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_vlm import registry
from rllib_vlm.errors import ConfigErrors, UnknownNameError
from rllib_vlm.prompts import build_parser
from rllib_vlm.types import ActionSet, Demonstration

ACTIONS = ActionSet(
    names=("move_ahead", "rotate_right", "rotate_left", "done"),
    aliases={"moveahead": "move_ahead", "m": "move_ahead"},
)
NAMES = sorted(registry.PARSERS)
TAGGED = [name for name in NAMES if not name.startswith("json")]

FRAGMENTS = st.sampled_from(
    [
        *("<think>", "</think>", "<answer>", "</answer>", "<observation>", "</observation>"),
        *("<reasoning>", "</reasoning>", "<prediction>", "</prediction>", "<|im_end|>", "<image>"),
        *("move_ahead", "done", "fly", ",", "|", " ", "\n", "<", "</", ">", "\x00", "é", "汉", "\ud800"),
        *('{"actions": [', '"done"', "]}", "{", "}", "[", '"', "\\", '"thoughts":', ":", "1e999", "NaN"),
    ]
)
ANY_TEXT = st.one_of(st.text(), st.lists(FRAGMENTS, max_size=24).map("".join))
TEXT_ACTIONS = ActionSet(fields={"see": ["a", "b"], "current plan": "go on", "go": "north"})
SAID = st.one_of(st.text(max_size=30), st.lists(FRAGMENTS, max_size=6).map("".join))


@pytest.mark.parametrize("name", NAMES)
@given(text=ANY_TEXT, max_actions=st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_no_text_makes_a_parser_raise(name: str, text: str, max_actions: int) -> None:
    parsed = build_parser(name)(text, ACTIONS, max_actions)
    assert parsed.valid == bool(parsed.actions)
    assert parsed.valid or parsed.reason
    assert len(parsed.actions) <= max_actions
    assert all(action in ACTIONS.names for action in parsed.actions)
    assert all(0 <= start <= stop <= len(text) for start, stop in parsed.spans.values())
    parsed.reason.encode()  # a reason goes into logs and tables, so it must be encodable


@pytest.mark.parametrize("name", NAMES)
@given(
    actions=st.lists(st.sampled_from(ACTIONS.names), min_size=1, max_size=4),
    said=st.tuples(SAID, SAID, SAID),
    strict=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_a_formatted_demonstration_parses_back(
    name: str, actions: list[str], said: tuple[str, str, str], strict: bool
) -> None:
    parser = build_parser(name, strict=strict)
    text = parser.format(
        Demonstration(actions=tuple(actions), observation=said[0], reasoning=said[1], prediction=said[2]),
        ACTIONS,
    )
    parsed = parser(text + "<|im_end|>\n", ACTIONS, 4)
    assert parsed.valid, parsed.reason
    assert parsed.actions == tuple(actions)
    assert parsed.dropped_actions == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "text",
    [
        "<think>" * 100_000,
        "<answer>" + "move_ahead," * 100_000,
        "<answer>" + "," * 500_000 + "</answer>",
        "\n " * 200_000,
        "<|im_end|>" * 50_000,
        '{"actions": ' + "[" * 200_000,
        '{"actions": ["' + '\\"' * 200_000,
        '"\\' * 200_000,
        '{"actions": ' + "9" * 10_000 + "}",
        ", " * 200_000 + "}",
    ],
    ids=range(10),
)
def test_huge_and_hostile_texts_are_refused_quickly(name: str, text: str) -> None:
    start = time.process_time()
    assert not build_parser(name)(text, ACTIONS, 4).valid
    assert time.process_time() - start < 3.0  # milliseconds if linear; minutes if quadratic


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("max_actions", [1, 3])
def test_the_form_shown_to_the_model_is_an_answer_the_parser_accepts(name: str, max_actions: int) -> None:
    parser = build_parser(name)
    form = parser.instructions(ACTIONS, max_actions).splitlines()[1]
    parsed = parser(form, ACTIONS, max_actions)
    assert parsed.actions == ACTIONS.names[: min(2, max_actions)]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("no_think", "", "no <answer> block"),
        ("no_think", "move_ahead", "no <answer> block"),
        ("no_think", "<answer>move_ahead", "<answer> is never closed"),
        ("no_think", "<answer> , </answer>", "empty answer"),
        ("no_think", "<answer>fly</answer>", "unknown action 'fly' (nearest: "),
        ("no_think", "<answer>move_ahed</answer>", "unknown action 'move_ahed' (nearest: 'move_ahead')"),
        ("no_think", "<answer>done,fly</answer>", "unknown action 'fly'"),
        ("no_think", "Sure! <answer>done</answer>", "text before <answer>: 'Sure!'"),
        ("no_think", "<answer>done</answer> ok", "text after </answer>: 'ok'"),
        ("no_think", "<answer>done</answer><answer>done</answer>", "text after </answer>: '<answer>done"),
        ("no_think", "<answer><answer>done</answer></answer>", "<answer> stands inside <answer>"),
        ("no_think", "<|im_end|><answer>done</answer>", "text before <answer>: '<|im_end|>'"),
        ("free_think", "<answer>done</answer>", "no <think> block"),
        (
            "free_think",
            "<think>a</think> so <answer>done</answer>",
            "text between </think> and <answer>: 'so'",
        ),
        ("free_think", "<think>a<answer>done</answer>", "<think> is never closed"),
        (
            "free_think",
            "<think>I <answer>done</answer></think><answer>done</answer>",
            "<answer> stands inside <think>",
        ),
        ("grounding", "<think>a</think><answer>done</answer>", "no <observation> block"),
        (
            "grounding",
            "<think><observation>a</observation></think><answer>done</answer>",
            "no <reasoning> block",
        ),
        (
            "grounding",
            "<think><observation>a</observation><reasoning>b</reasoning><answer>done</answer>",
            "<think> is never closed",
        ),
        ("json", "done", "no JSON object"),
        ("json", "{}", "no 'actions' list"),
        ("json", '{"actions": []}', "empty answer"),
        ("json", '{"actions": "done"}', "'actions' is a str, not a list"),
        ("json", '{"actions": [1]}', "action 1 is a int, not a string"),
        (
            "json",
            '{"actions": ["done"]',
            "broken JSON at character 20: expected ',', found the end (cut off?)",
        ),
        ("json", '{"actions": ["done"', "broken JSON at character"),
        ("json", '{"actions" ["done"]}', "broken JSON at character 11: expected ':', found "),
        ("json", '{"actions": ["done"]} ok', "text after '}': 'ok'"),
        ("json", 'ok {"actions": ["done"]}', "text before '{': 'ok'"),
        ("json", '{"actions": ["done"], "actions": ["done"]}', "the key 'actions' stands twice"),
        ("json", '{"thoughts": 3, "actions": ["done"]}', "'thoughts' is a int, not a string"),
        ("json_grounding", '{"current observation": "a"}', "no 'action'"),
        ("json_grounding", '{"action": 3}', "'action' is a int, neither a string nor a list of strings"),
        (
            "json_grounding",
            '{"current observation": 3, "action": "done"}',
            "'current observation' is a int, not a string",
        ),
    ],
)
def test_an_invalid_answer_has_no_actions_and_a_precise_reason(name: str, text: str, reason: str) -> None:
    parsed = build_parser(name)(text, ACTIONS, 4)
    assert not parsed.valid
    assert parsed.actions == ()
    assert parsed.reason.startswith(reason)


def test_case_aliases_blanks_and_stop_tokens_are_understood() -> None:
    text = " <answer> MoveAhead ,m, Done,</answer>\n<|im_end|>\n<|endoftext|><|endoftext|>"
    assert build_parser("no_think")(text, ACTIONS, 4).actions == ("move_ahead", "move_ahead", "done")
    text = '{"reasoning": "so, ]", "actions": ["MoveAhead", "m", "Done", ], } <|im_end|>'
    assert build_parser("json")(text, ACTIONS, 4).actions == ("move_ahead", "move_ahead", "done")


def test_trailing_commas_inside_strings_stay() -> None:
    parsed = build_parser("json")('{"actions": ["done,]"]}', ACTIONS, 4)
    assert parsed.reason.startswith("unknown action 'done,]'")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no_think", "<answer>m,m,done,fly</answer>"),
        ("json", '{"actions": ["m", "m", "done", "fly"]}'),
    ],
)
def test_actions_beyond_the_limit_are_cut_unread_and_counted(name: str, text: str) -> None:
    parsed = build_parser(name)(text, ACTIONS, 2)
    assert parsed.valid
    assert parsed.actions == ("move_ahead", "move_ahead")
    assert parsed.dropped_actions == 2
    assert parsed.reason == "2 of 4 actions cut, at most 2 a turn"


@pytest.mark.parametrize("strict", [True, False])
def test_strictness_decides_over_text_around_the_answer(strict: bool) -> None:
    for name, text in (
        ("no_think", "Sure: <answer>done</answer> bye"),
        ("json", '```json\n{"actions": ["done"]}\n```'),
    ):
        assert build_parser(name, strict=strict)(text, ACTIONS, 4).valid is not strict


def test_spans_are_ranges_of_the_text_itself() -> None:
    text = (
        "\n<think><observation>a mug</observation> <reasoning>é汉</reasoning>"
        "<prediction>nearer</prediction></think>\n<answer>m</answer><|im_end|>"
    )
    parsed = build_parser("grounding_worldmodeling")(text, ACTIONS, 4)
    found = {part: text[start:stop] for part, (start, stop) in parsed.spans.items()}
    assert found == {
        "observation": "a mug",
        "reasoning": "é汉",
        "prediction": "nearer",
        "think": "<observation>a mug</observation> <reasoning>é汉</reasoning><prediction>nearer</prediction>",
        "answer": "m",
    }


def test_json_spans_survive_trailing_commas() -> None:
    text = ' {"x": [1, ], "thoughts": "a, ]", "actions": ["done", ], }'
    parsed = build_parser("json")(text, ACTIONS, 4)
    found = {part: text[start:stop] for part, (start, stop) in parsed.spans.items()}
    assert found == {"think": '"a, ]"', "answer": '["done", ]'}


def test_an_invalid_answer_keeps_the_spans_read_so_far() -> None:
    parsed = build_parser("free_think")("<think>ab</think><answer>", ACTIONS, 4)
    assert parsed.spans == {"think": (7, 9)}


@pytest.mark.parametrize("name", TAGGED)
@pytest.mark.parametrize("separator", ["|", " ", ";"])
def test_other_separators(name: str, separator: str) -> None:
    parser = build_parser(name, separator=separator)
    text = parser.format(Demonstration(actions=("done", "move_ahead")), ACTIONS)
    assert f"done{separator}move_ahead" in text
    assert parser(text, ACTIONS, 4).actions == ("done", "move_ahead")


def test_an_expert_that_gave_up_writes_an_empty_answer() -> None:
    for name in NAMES:
        parser = build_parser(name)
        assert parser(parser.format(Demonstration(actions=()), ACTIONS), ACTIONS, 4).reason == "empty answer"


def test_wrong_options_say_what_was_meant() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'free_think'"):
        build_parser("free_thinking")
    with pytest.raises(ConfigErrors, match="Did you mean 'separator'"):
        build_parser("no_think", seperator="|")
    with pytest.raises(ConfigErrors, match="separator is ''"):
        build_parser("no_think", separator="")
    with pytest.raises(ConfigErrors, match="'move_ahead' holds the separator '_'"):
        build_parser("no_think", separator="_").instructions(ACTIONS, 2)


def test_padding_puts_a_blank_before_what_is_said_and_parses_the_same():
    said = Demonstration(actions=("move_ahead",), observation="red mug ahead", reasoning="approach")
    padded, plain = build_parser("grounding", padded=True), build_parser("grounding")
    actions = ActionSet(names=("move_ahead",))
    assert "<observation> red mug ahead</observation>" in padded.format(said, actions)
    assert "<answer>move_ahead</answer>" in padded.format(said, actions)
    assert (
        padded(padded.format(said, actions), actions, 1).actions
        == plain(plain.format(said, actions), actions, 1).actions
    )


# Free-text actions: the object is the action.


@pytest.mark.parametrize("name", NAMES)
@given(text=ANY_TEXT)
@settings(max_examples=100, deadline=None)
def test_no_text_makes_a_parser_of_free_text_raise(name: str, text: str) -> None:
    parsed = build_parser(name)(text, TEXT_ACTIONS, 1)
    assert parsed.valid == bool(parsed.actions)
    assert parsed.valid or parsed.reason
    assert all(0 <= start <= stop <= len(text) for start, stop in parsed.spans.values())
    parsed.reason.encode()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("max_actions", [1, 3])
def test_the_form_shown_for_free_text_is_an_answer_the_parser_accepts(name: str, max_actions: int) -> None:
    parser = build_parser(name)
    form = parser.instructions(TEXT_ACTIONS, max_actions).splitlines()[1]
    parsed = parser(form, TEXT_ACTIONS, max_actions)
    assert parsed.actions == ('{"see": ["a", "b"], "current plan": "go on", "go": "north"}',)


@pytest.mark.parametrize("name", NAMES)
def test_free_text_of_an_expert_arrives_as_it_was_written(name: str) -> None:
    parser = build_parser(name)
    said = '{\n  "see": [1, ],\n  "more": {}, "current plan": "x, }",\n  "go": "é"\n,}'
    text = parser.format(Demonstration(actions=(said,), reasoning="so"), TEXT_ACTIONS)
    parsed = parser(text + "<|im_end|>", TEXT_ACTIONS, 1)
    assert parsed.valid, parsed.reason
    assert parsed.actions == (said,)
    start, stop = parsed.spans["answer"]
    assert text[start:stop] == '"é"'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty answer"),
        ("<|im_end|>", "empty answer"),
        ("north", "no JSON object"),
        ('{"see": 1, "go": 2}', "no member 'current plan' (nearest: "),
        ('{"see": 1, "current plan": 2, "goo": 3}', "no member 'go' (nearest: 'goo')"),
        ('{"see": 1, "current plan": 2, "go": 3} ok', "text after '}': 'ok'"),
        ('{"see": 1, "current plan": ', "broken JSON at character"),
    ],
)
def test_broken_free_text_is_refused_unless_the_simulator_grades_it(text: str, reason: str) -> None:
    parsed = build_parser("json")(text, TEXT_ACTIONS, 1)
    assert not parsed.valid
    assert parsed.reason.startswith(reason)
    verbatim = build_parser("json", verbatim=True)(text, TEXT_ACTIONS, 1)
    assert verbatim.actions == (() if reason == "empty answer" else (text.strip(),))
    assert verbatim.reason.startswith(reason)


def test_text_around_an_object_is_cut_where_that_is_forgiven() -> None:
    answer = '{"see": 1, "current plan": 2, "go": 3}'
    parsed = build_parser("json", strict=False)(f"```json\n{answer}\n```", TEXT_ACTIONS, 1)
    assert parsed.actions == (answer,)


def test_spans_of_free_text_are_what_leads_to_the_decision_and_the_decision() -> None:
    text = ' {"see": [1, ], "current plan": "a", "go": "b", }'
    parsed = build_parser("json")(text, TEXT_ACTIONS, 1)
    found = {part: text[start:stop] for part, (start, stop) in parsed.spans.items()}
    assert found == {"think": '{"see": [1, ], "current plan": "a", "go": ', "answer": '"b"'}


def test_an_action_set_has_names_or_fields() -> None:
    with pytest.raises(ValueError, match="either names or fields"):
        ActionSet()
    with pytest.raises(ValueError, match="either names or fields"):
        ActionSet(names=("left",), fields={"go": "left"})
    assert TEXT_ACTIONS.is_text and TEXT_ACTIONS.resolve(" Go ") == " Go "
    assert not ACTIONS.is_text


def test_json_grounding_reads_the_original_form_with_its_trailing_comma() -> None:
    text = (
        '{\n  "current observation": "a lake; You observe an intersection",\n'
        '  "current instruction": "Turn left.",\n  "action": "done",\n}'
    )
    parsed = build_parser("json_grounding")(text, ACTIONS, 1)
    assert parsed.valid and parsed.actions == ("done",)
    said = {name: text[start:stop] for name, (start, stop) in parsed.spans.items()}
    assert said == {
        "observation": '"a lake; You observe an intersection"',
        "reasoning": '"Turn left."',
        "answer": '"done"',
    }
