from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rllib_vlm.errors import ModelError
from rllib_vlm.models.tokenizer import (
    ANSWER_TAGS,
    SPECIAL_TOKENS,
    compact_corpus,
    load_corpus,
    train_tokenizer,
)
from rllib_vlm.sims.household.catalogue import ITEM_COLORS, ITEMS
from rllib_vlm.sims.household.world import ACTIONS

TOKENIZER = train_tokenizer(load_corpus(), words=ACTIONS.names)


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@pytest.mark.parametrize("word", [*ACTIONS.names, *ANSWER_TAGS, *SPECIAL_TOKENS])
def test_actions_tags_and_special_tokens_are_one_token(word: str) -> None:
    assert len(TOKENIZER.encode(word)) == 1
    with_comma = TOKENIZER.encode(f"<answer>{word},done</answer>")
    assert len(with_comma) == 4  # a comma and the name behind it are one


@pytest.mark.parametrize("word", [w for name in [*ITEMS, *ITEM_COLORS] for w in name.split()])
def test_household_words_are_one_token(word: str) -> None:
    assert len(TOKENIZER.encode(f"the {word}")) == 2


def test_tags_stay_in_the_text_and_special_tokens_do_not() -> None:
    ids = TOKENIZER.encode("<think>x</think><answer>done</answer><|im_end|>")
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "<think>x</think><answer>done</answer>"


def test_small_numbers_are_one_token_and_others_their_digits() -> None:
    assert TOKENIZER.tokenize("left 60 7 199") == ["left", "Ġ60", "Ġ7", "Ġ199"]
    assert TOKENIZER.tokenize("a 12.50 m")[1:4] == ["Ġ12", ".", "5"]
    bare = train_tokenizer(["no digit here"], vocab_size=600)
    for tokenizer in (TOKENIZER, bare):
        assert {len(tokenizer.encode(f" {i}")) for i in range(200)} == {1}
        assert {len(tokenizer.encode(f" {i}")) for i in range(200, 1000)} <= {3, 4}
        assert tokenizer.decode(tokenizer.encode("x-12.50 of 2048")) == "x-12.50 of 2048"


def test_training_is_deterministic_and_ignores_order() -> None:
    again = train_tokenizer(load_corpus()[::-1], words=ACTIONS.names)
    assert again.get_vocab() == TOKENIZER.get_vocab()
    assert again.encode("fetch the unknowable mug") == TOKENIZER.encode("fetch the unknowable mug")


@pytest.mark.parametrize("size", [600, 700, 1024])
def test_vocabulary_stays_within_its_size(size: int) -> None:
    tokenizer = train_tokenizer(load_corpus(), vocab_size=size, words=ACTIONS.names)
    assert max(tokenizer.get_vocab().values()) == len(tokenizer) - 1 < size
    assert len(tokenizer.encode("move_ahead")) == 1


def test_a_vocabulary_too_small_is_refused() -> None:
    with pytest.raises(ModelError, match=r"cannot hold the .* set vocab_size to"):
        train_tokenizer(["a"], vocab_size=100)


def test_saved_tokenizer_opens_with_plain_transformers(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": "user", "content": "fetch the <answer> 1.5\n"}, {"role": "assistant", "content": "done"}]
    assert opened.apply_chat_template(chat, tokenize=False) == (
        "<|im_start|>user\nfetch the <answer> 1.5\n<|im_end|><|im_start|>assistant\ndone<|im_end|>"
    )
    ours = TOKENIZER.apply_chat_template(chat, tokenize=True, return_dict=False)
    assert opened.apply_chat_template(chat, tokenize=True, return_dict=False) == ours
    # A message costs three tokens beyond its text: start, role with its break, end.
    assert len(ours) == 2 * 3 + len(TOKENIZER.encode(chat[0]["content"])) + 1


def test_compact_corpus_keeps_every_word() -> None:
    texts = ["a red mug\nwalk to it", "a red mug", "a red mug and more", "rare"]
    lines = compact_corpus(texts, repeats=1)
    assert {w for line in lines for w in line.split()} == {w for t in texts for w in t.split()}
    assert len(compact_corpus([f"step {i} of the walk" for i in range(500)], repeats=2)) == 2


def test_an_unknown_corpus_names_the_known() -> None:
    with pytest.raises(ModelError, match=r"there is .*household"):
        load_corpus("kitchen")


def test_a_corpus_may_lie_in_any_package() -> None:
    assert load_corpus("rllib_vlm.models:corpus/household.txt") == load_corpus()


@pytest.mark.parametrize(
    "name",
    [
        "no_such_package:words.txt",
        "rllib_vlm.models:corpus/kitchen.txt",
        "rllib_vlm.models:corpus",
        ":",
        "rllib_vlm:",
    ],
)
def test_a_corpus_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(ModelError, match=f"corpus '{name}'"):
        load_corpus(name)


@pytest.mark.parametrize("value", [5, None, ["household"]])
def test_a_corpus_is_named_by_a_text(value: Any) -> None:
    with pytest.raises(ModelError, match=r"corpus is .*; give a name \(household"):
        load_corpus(value)


def test_a_corpus_is_text_inside_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corridors" / "broken").mkdir(parents=True)
    (tmp_path / "corridors" / "__init__.py").touch()
    (tmp_path / "corridors" / "broken" / "__init__.py").write_text("1 / 0")
    (tmp_path / "leaves.py").write_text("raise SystemExit(0)")
    (tmp_path / "corridors" / "words.bin").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "corridors" / "blank.txt").write_text("\n\n")
    (tmp_path / "corridors" / "zeros.txt").write_bytes(b"left\0right")
    os.mkfifo(tmp_path / "corridors" / "pipe.txt")
    (tmp_path / "outside.txt").write_text("a word")
    monkeypatch.syspath_prepend(tmp_path)
    for name, said in (
        ("corridors:words.bin", "can't decode"),
        ("corridors:blank.txt", "the file is empty"),
        ("corridors:zeros.txt", "holds zero bytes"),
        ("corridors:pipe.txt", "it is no file"),
        ("corridors:../outside.txt", "leads out of it"),
        ("corridors.broken:words.txt", "division by zero"),
        ("leaves:words.txt", "no text file"),
    ):
        with pytest.raises(ModelError, match=said):
            load_corpus(name)
