"""LLaVA's conversation JSON: what is read, what is written, and every problem of a file at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from rllib_vlm.data import (
    Conversation,
    ConversationReader,
    ConversationWriter,
    open_demonstrations,
)
from rllib_vlm.errors import DataError
from rllib_vlm.types import Message


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


def write(folder: Path, items: Any) -> Path:
    file = folder / "data.json"
    file.write_text(items if isinstance(items, str) else json.dumps(items), encoding="utf-8")
    return file


def picture(file: Path, colour: tuple[int, int, int], form: str = "PNG") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (6, 4), colour).save(file, format=form)


def test_the_published_layout_is_read(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png", (255, 0, 0))
    picture(tmp_path / "b.jpg", (0, 0, 255), "JPEG")
    file = write(
        tmp_path,
        [
            {"id": 7, "conversations": [human("2 3"), gpt('{\n  "formula": "2*3",\n}')]},
            {"image": "images/a.png", "conversations": [human("<image>\nwhat?"), gpt("red")]},
            {
                "id": "two",
                "image": ["b.jpg", "images/a.png"],
                "conversations": [
                    human("first <image>"), gpt("blue"), human("and this?<image>"), gpt("red"),
                ],
            },
        ],
    )  # fmt: skip
    reader = ConversationReader(file)
    text, one, two = reader
    assert [c.id for c in (text, one, two)] == ["7", "1", "two"]
    assert [(m.role, m.text) for m in text.messages] == [
        ("user", "2 3"),
        ("assistant", '{\n  "formula": "2*3",\n}'),
    ]
    assert one.messages[0].images[0].shape == (4, 6, 3)
    assert (one.messages[0].images[0] == [255, 0, 0]).all()
    assert [len(m.images) for m in two.messages] == [1, 0, 1, 0]
    assert two.messages[0].images[0][..., 2].min() > 200
    assert (two.messages[2].images[0] == [255, 0, 0]).all()
    assert reader.indices == reader.successes() == (0, 1, 2)
    with pytest.raises(DataError, match="no conversation 3; it has 3"):
        reader.read(3)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    told = Conversation(
        id="x",
        messages=(
            Message(role="system", text="rules"),
            Message(role="user", text="<image>go, é", images=(pixels,)),
            Message(role="assistant", text="left"),
            Message(role="user", text="<image>on<image>", images=(pixels[::-1], pixels)),
            Message(role="assistant", text="right"),
        ),
    )
    writer = ConversationWriter(tmp_path / "sub/out.json")
    writer.write(told)
    assert not (tmp_path / "sub/out.json").exists()
    writer.close()
    (item,) = json.loads((tmp_path / "sub/out.json").read_text())
    assert item["system"] == "rules"
    assert item["conversations"][1] == gpt("left")
    assert item["image"] == [f"out_images/00000000_{k}.png" for k in range(3)]
    (read,) = ConversationReader(tmp_path / "sub/out.json")
    assert read.id == "x"
    for a, b in zip(read.messages, told.messages, strict=True):
        assert (a.role, a.text) == (b.role, b.text)
        assert all((x == y).all() for x, y in zip(a.images, b.images, strict=True))
    with pytest.raises(DataError, match="exists already"):
        ConversationWriter(tmp_path / "sub/out.json")


def test_every_problem_of_a_file_is_named_at_once(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        [
            5,
            {},
            {"conversations": []},
            {"conversations": [human("a"), gpt("b"), human("c")]},
            {"conversations": [gpt("b")]},
            {"conversations": [{"from": "humam", "value": "a"}, gpt(" "), 3, {"from": "gpt", "value": 1}]},
            {"conversations": [human("a"), gpt("<image>")]},
            {"image": "none.png", "conversations": [human("a"), gpt("b")]},
            {"image": ["/etc/passwd", "../x.png"], "conversations": [human("<image><image>"), gpt("b")]},
            {"image": {"a": 1}, "conversations": [human("a"), gpt("b")]},
            {"system": 1, "conversations": [human("a"), gpt("b")]},
            {"system": "a", "conversations": [{"from": "system", "value": "b"}, human("a"), gpt("b")]},
            {"conversations": [human("good"), gpt("good")]},
        ],
    )
    with pytest.raises(DataError) as raised:
        ConversationReader(file)
    said = str(raised.value)
    for expected in (
        "data.json: 17 problems",
        "item 0: is a int, not an object",
        "item 1: 'conversations' is 'None'",
        "item 3: messages are from human, gpt, human; human and gpt must take turns, and gpt ends",
        "item 4: messages are from gpt;",
        """item 5: message 0 is from "'humam'". Did you mean 'human'?""",
        "item 5: message 1 is an empty answer",
        "item 5: message 2 is a int",
        "item 5: message 3 has the value '1', not a text",
        "item 6: message 1 has <image>, which only a human shows",
        "item 7: image 'none.png' is missing",
        "item 7: 1 images, and 0 times <image>",
        "item 8: image '/etc/passwd' is no path below",
        "item 8: image '../x.png' is no path below",
        "item 9: 'image' is",
        "item 10: 'system' is a int",
        "item 11: 'system' and a system message",
    ):
        assert expected in said
    assert "item 12" not in said


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ("[" * 100_000, "is not JSON"), ("{}", "no list"), ("[]", "no list")],
)
def test_other_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ConversationReader(write(tmp_path, content))


def test_many_problems_are_counted_and_some_shown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="400 problems") as raised:
        ConversationReader(write(tmp_path, [1] * 400))
    assert len(str(raised.value).splitlines()) == 52
    assert "and 350 more" in str(raised.value)


def test_a_file_that_only_looks_like_an_image_is_refused_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"GIF89a nothing")
    reader = ConversationReader(
        write(tmp_path, [{"image": "a.png", "conversations": [human("<image>"), gpt("b")]}])
    )
    with pytest.raises(DataError, match=r"a\.png is no whole PNG, JPEG, WEBP image"):
        reader.read(0)


def test_a_path_says_which_kind_of_demonstrations_it_is(tmp_path: Path) -> None:
    file = write(tmp_path, [{"conversations": [human("a"), gpt("b")]}])
    with open_demonstrations(file) as reader:
        assert len(reader) == 1
    write(tmp_path, [{"conversations": [human("a"), gpt("bc")]}] * 2)
    with open_demonstrations(file) as reader:
        assert len(reader) == 2, "a file that changed is read anew"
    with pytest.raises(DataError, match=r"gone\.json: No such file"):
        open_demonstrations(tmp_path / "gone.json")
    with pytest.raises(DataError, match="no manifest"):
        open_demonstrations(tmp_path)
