"""History policies keep and drop whole turns."""

from __future__ import annotations

import numpy as np
import pytest

from rllib_vlm.errors import ConfigErrors, UnknownNameError
from rllib_vlm.prompts import Exchange, build_history
from rllib_vlm.prompts.history import Current, Full, LastK

PAST = [
    Exchange(
        text=f"turn {i}",
        images=(np.full((2, 2, 3), i, np.uint8),),
        answer=f"answer {i}",
        answer_ids=np.array([i]),
    )
    for i in range(5)
]


def test_full_keeps_everything_and_current_nothing() -> None:
    assert list(build_history("full")(PAST)) == PAST
    assert list(build_history("current")(PAST)) == []


@pytest.mark.parametrize("k", [1, 3, 5, 9])
def test_last_k_keeps_the_newest_turns_in_order(k: int) -> None:
    kept = build_history(f"last_{k}")(PAST)
    assert [e.text for e in kept] == [e.text for e in PAST[-k:]]
    assert all(e.images == () for e in kept)  # the default: past images are dear
    assert [e.answer_ids for e in kept] == [e.answer_ids for e in PAST[-k:]]
    assert list(build_history(f"last_{k}")([])) == []


def test_last_k_keeps_images_where_asked() -> None:
    kept = build_history({"name": "last_k", "k": 2, "images": "all"})(PAST)
    assert list(kept) == PAST[-2:]


def test_every_form_of_the_configuration() -> None:
    assert build_history("full") == Full()
    assert build_history("current") == Current()
    assert build_history("last_4") == LastK(k=4)
    spec = {"name": "last_k", "k": 4, "images": "none", "layout": "transcript"}
    assert build_history(spec) == LastK(k=4, images="none", layout="transcript")
    assert build_history({"name": "full", "images": "none"}) == Full(images="none")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("last_0", "k is 0"),
        ("last_k", "option 'k' is missing"),
        ({"k": 4}, "has no 'name'"),
        ({"name": "last_k", "k": 2.5}, "k is 2.5"),
        ({"name": "last_k", "k": 4, "image": "all"}, "Did you mean 'images'"),
        ({"name": "last_k", "k": 4, "images": "some"}, "images is 'some', not one of none, all"),
        ({"name": "full", "layout": "chats"}, "layout is 'chats', not one of chat, transcript"),
        ({"name": "current", "k": 1}, "no option 'k'"),
    ],
)
def test_a_wrong_configuration_is_named(spec: object, message: str) -> None:
    with pytest.raises(ConfigErrors) as error:
        build_history(spec)  # type: ignore[arg-type]
    assert message in str(error.value)


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'full'"):
        build_history("ful")
