"""The renderer: order of messages, what is cut and counted, and the exact words (golden files)."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_vlm.errors import ConfigErrors, RLlibVLMError, UnknownNameError
from rllib_vlm.prompts import Exchange, build_history, build_parser
from rllib_vlm.prompts.renderer import PromptRenderer, PromptTooLong
from rllib_vlm.prompts.system import template_names
from rllib_vlm.types import IMAGE_PLACEHOLDER, ActionSet, Image, Message

ACTIONS = ActionSet(names=("move_ahead", "rotate_right", "rotate_left", "pickup", "done"))
TASK = "fetch the red mug"


def image(value: int) -> Image:
    return np.full((2, 2, 3), value % 256, np.uint8)


def exchange(turn: int, cameras: int = 2) -> Exchange:
    return Exchange(
        text=f"turn {turn}",
        images=tuple(image(10 * turn + c) for c in range(cameras)),
        answer=f"<answer>{ACTIONS.names[turn % 3]}</answer>",
        answer_ids=np.array([turn, turn], np.int64),
    )


PAST = [exchange(i) for i in range(4)]
NOW = (image(90), image(91))


def renderer(history: Any = "full", parser: str = "no_think", **options: Any) -> PromptRenderer:
    max_actions = options.pop("max_actions", 4)
    return PromptRenderer(
        "You are a household robot.",
        ACTIONS,
        build_parser(parser),
        build_history(history),
        max_actions,
        **options,
    )


def readable(messages: Sequence[Message]) -> str:
    lines = []
    for message in messages:
        shown = [int(i[0, 0, 0]) for i in message.images]
        ids = "" if message.token_ids is None else f" ids={message.token_ids.tolist()}"
        lines.append(f"[{message.role}]{f' images={shown}' if shown else ''}{ids}\n{message.text}\n")
    return "\n".join(lines)


def words(messages: Sequence[Message]) -> int:
    """A stand-in for a tokenizer: words, and 5 for an image."""
    return sum(len(m.text.split()) + 5 * len(m.images) for m in messages)


def consistent(messages: Sequence[Message]) -> bool:
    return all(m.text.count(IMAGE_PLACEHOLDER) == len(m.images) for m in messages)


@pytest.mark.parametrize("template", template_names())
@pytest.mark.parametrize("parser", ["no_think", "grounding_worldmodeling", "json"])
def test_the_words_of_a_prompt(template: str, parser: str, golden: Callable[[str, str], None]) -> None:
    rendered = renderer(parser=parser, template=template).render(TASK, PAST[:1], "now", NOW)
    golden(f"prompts/{template}_{parser}.txt", readable(rendered.messages))


@pytest.mark.parametrize(
    ("name", "history", "options"),
    [
        ("last_2", "last_2", {}),
        ("transcript", {"name": "last_k", "k": 3, "layout": "transcript"}, {}),
        ("transcript_images", {"name": "last_k", "k": 3, "layout": "transcript", "images": "all"}, {}),
        ("current_bare", "current", {"template": "bare"}),
        ("text", "full", {"observation": "text"}),
        ("placeholder", "full", {"image_placeholder": "(image)"}),
        ("max_images", "full", {"max_images": 5}),
    ],
)
def test_the_layout_of_a_prompt(
    name: str, history: Any, options: dict[str, Any], golden: Callable[[str, str], None]
) -> None:
    rendered = renderer(history, **{"template": "short", **options}).render(TASK, PAST, "now", NOW)
    assert consistent(rendered.messages)
    counts = f"dropped_turns={rendered.dropped_turns} dropped_images={rendered.dropped_images}\n\n"
    golden(f"prompts/layout_{name}.txt", counts + readable(rendered.messages))


def test_past_answers_keep_their_sampled_ids() -> None:
    messages = renderer().render(TASK, PAST, "now", NOW).messages
    answers = [m for m in messages if m.role == "assistant"]
    assert [m.token_ids is past.answer_ids for m, past in zip(answers, PAST, strict=True)] == [True] * 4
    assert [m.role for m in messages] == ["system"] + ["user", "assistant"] * 4 + ["user"]


def test_an_invalid_past_answer_shows_as_such_in_a_transcript() -> None:
    past = [Exchange(text="", images=(), answer="hm"), exchange(1)]
    history = {"name": "full", "layout": "transcript"}
    text = renderer(history).render(TASK, past, "now", ()).messages[-1].text
    assert "previously: invalid | rotate_right" in text


def test_a_transcript_may_recall_what_was_seen() -> None:
    thought = "<think><observation> red mug left </observation><reasoning> go</reasoning></think>"
    said = f"{thought}<answer>rotate_right</answer>"
    past = [Exchange(text="", images=(), answer=said), Exchange(text="", images=(), answer="hm")]
    history = {"name": "last_k", "k": 2, "layout": "transcript"}

    def line(recall: str, parser: str = "grounding") -> str:
        made = renderer({**history, "recall": recall}, parser=parser)
        return made.render(TASK, past, "now", ()).messages[-1].text

    assert "previously: red mug left: rotate_right | invalid" in line("observation")
    assert "previously: rotate_right | invalid" in line("actions")
    # A format without an observation has none to recall.
    past = [Exchange(text="", images=(), answer="<answer>rotate_right</answer>")]
    assert "previously: rotate_right\n" in line("observation", parser="no_think")


def test_the_instruction_survives_every_cut() -> None:
    for template in template_names():
        for history in ("full", "current", "last_1"):
            messages = renderer(history, template=template).render(TASK, PAST, "now", NOW).messages
            assert sum(m.text.count(TASK) for m in messages) == 1
            assert TASK in "".join(m.text for m in messages[:2])


def test_a_simulator_may_place_its_images() -> None:
    text = f"ahead: {IMAGE_PLACEHOLDER}, arm: {IMAGE_PLACEHOLDER}"
    assert renderer("current").render(TASK, [], text, NOW).messages[-1].text == text
    message = renderer("current").render(TASK, [], text, NOW[:1]).messages[-1]
    assert message.text == f"{IMAGE_PLACEHOLDER}\nahead: , arm: "


WORDS = st.lists(st.sampled_from([IMAGE_PLACEHOLDER, "<im", "age>", "a", "\n"]), max_size=5).map("".join)


@given(task=WORDS, text=WORDS, answer=WORDS, cameras=st.integers(0, 2), data=st.data())
@settings(max_examples=150, deadline=None)
def test_no_words_upset_the_count_of_images(
    task: str, text: str, answer: str, cameras: int, data: st.DataObject
) -> None:
    images = tuple(image(i) for i in range(cameras))
    past = [Exchange(text=text, images=images, answer=answer)] * data.draw(st.integers(0, 3))
    history = data.draw(
        st.sampled_from(
            ["full", "last_1", {"name": "full", "layout": "transcript"}, {"name": "full", "images": "none"}]
        )
    )
    options: dict[str, Any] = data.draw(
        st.sampled_from(
            [{}, {"observation": "text"}, {"image_placeholder": ""}, {"max_images": 3}, {"template": "bare"}]
        )
    )
    rendered = renderer(history, **options).render(task, past, text, images)
    assert consistent(rendered.messages)
    shown = sum(len(m.images) for m in rendered.messages)
    if options.get("observation") == "text" or "image_placeholder" in options:
        assert shown == 0
    else:
        assert shown >= cameras


def test_max_images_takes_whole_turns_from_the_oldest() -> None:
    rendered = renderer(max_images=5).render(TASK, PAST, "now", NOW)
    assert [len(m.images) for m in rendered.messages if m.role == "user"] == [0, 0, 0, 2, 2]
    assert rendered.dropped_images == 6
    assert rendered.dropped_turns == 0
    mixed = [exchange(0, cameras=1), exchange(1, cameras=2), exchange(2, cameras=1)]
    rendered = renderer(max_images=4).render(TASK, mixed, "now", NOW)
    # Turn 0 alone would fit, but an older turn never outlives a newer one.
    assert [len(m.images) for m in rendered.messages if m.role == "user"] == [0, 0, 1, 2]
    with pytest.raises(PromptTooLong, match="2 images, over the limit of 1"):
        renderer(max_images=1).render(TASK, PAST, "now", NOW)


@given(turns=st.integers(0, 9), limit=st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_fit_drops_as_few_of_the_oldest_turns_as_it_can(turns: int, limit: int) -> None:
    past = [exchange(i) for i in range(turns)]
    render = renderer(template="short")
    fitting = [
        drop
        for drop in range(turns + 1)
        if words(render.render(TASK, past[drop:], "now", NOW).messages) <= limit
    ]
    if not fitting:
        with pytest.raises(PromptTooLong, match=f"over the limit of {limit}"):
            render.fit(TASK, past, "now", NOW, count_tokens=words, max_prompt_tokens=limit)
        return
    fit = render.fit(TASK, past, "now", NOW, count_tokens=words, max_prompt_tokens=limit)
    assert fit.dropped_turns == fitting[0]
    assert readable(fit.messages) == readable(render.render(TASK, past[fitting[0] :], "now", NOW).messages)


def test_fit_counts_what_the_history_dropped_too() -> None:
    render = renderer("last_3", template="short")
    limit = words(render.render(TASK, PAST[-1:], "now", NOW).messages)
    fit = render.fit(TASK, PAST, "now", NOW, count_tokens=words, max_prompt_tokens=limit)
    assert fit.dropped_turns == 3  # one by the history, two by the limit


def test_fit_counts_tokens_seldom() -> None:
    calls = []

    def count(messages: Sequence[Message]) -> int:
        calls.append(words(messages))
        return calls[-1]

    past = [exchange(i) for i in range(64)]
    renderer(template="short").fit(TASK, past, "now", NOW, count_tokens=count, max_prompt_tokens=60)
    assert len(calls) <= 8


def test_the_short_template_is_short() -> None:
    messages = renderer("current", template="short").render(TASK, [], "", NOW).messages
    assert readable(messages) == (
        f"[system]\nTask: {TASK}\n\n[user] images=[90, 91]\n{IMAGE_PLACEHOLDER * 2}\n"
    )


def test_the_actions_template_names_the_set() -> None:
    messages = renderer("current", template="actions").render(TASK, [], "", NOW).messages
    assert messages[0].text == f"Actions: {' '.join(ACTIONS.names)}\nTask: {TASK}"


def test_words_of_a_task_are_not_template_code() -> None:
    messages = renderer().render("{{ 7 * 7 }}{% raw %}", [], "{{ x }}", ()).messages
    assert "{{ 7 * 7 }}{% raw %}" in messages[0].text
    assert messages[1].text == "{{ x }}"


def test_templates_of_ones_own(tmp_path: Path) -> None:
    def use(source: str) -> str:
        file = tmp_path / f"t{len(list(tmp_path.iterdir()))}.md"
        file.write_text(source)
        return renderer(template=str(file)).render(TASK, [], "now", ()).messages[0].text

    assert use("{{ actions | length }} actions, {{ max_actions }} a turn") == "5 actions, 4 a turn"
    with pytest.raises(UnknownNameError, match="Did you mean 'instruction'"):
        use("{{ instructions }}")
    with pytest.raises(RLlibVLMError, match="line 2"):
        use("a\n{% if %}")
    with pytest.raises(RLlibVLMError, match="unsafe"):
        use("{{ description.__class__.__mro__ }}")


def test_wrong_arguments_are_named_all_at_once() -> None:
    with pytest.raises(
        UnknownNameError, match=r"Did you mean 'short'.*Known: actions, bare, default, short, vagen"
    ):
        renderer(template="shrt")
    with pytest.raises(ConfigErrors) as error:
        renderer(max_actions=0, observation="smell", max_images=-1, image_placeholder=IMAGE_PLACEHOLDER)
    assert len(error.value.errors) == 4


def test_a_renderer_travels_to_another_process() -> None:
    here = renderer()
    there = pickle.loads(pickle.dumps(here))
    assert readable(there.render(TASK, PAST, "now", NOW).messages) == readable(
        here.render(TASK, PAST, "now", NOW).messages
    )
    error = pickle.loads(pickle.dumps(PromptTooLong("tokens", 9, 8, "shorten")))
    assert (error.size, error.limit) == (9, 8)
