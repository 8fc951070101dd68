"""Conversations in LLaVA's JSON, read and written; the format is in docs/demonstrations.md.

Example::

    [{"id": "7", "image": ["images/7_0.png"], "system": "You solve card puzzles.",
      "conversations": [{"from": "human", "value": "<image>\\nMake 24."}, {"from": "gpt", "value": "6*4"},
                        {"from": "human", "value": "wrong"},              {"from": "gpt", "value": "8*3"}]}]
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import PIL.Image
from PIL import UnidentifiedImageError

from rllib_vlm.data.demonstrations import DemonstrationReader
from rllib_vlm.data.images import encode_image
from rllib_vlm.errors import DataError, did_you_mean, quote
from rllib_vlm.types import IMAGE_PLACEHOLDER, Image, Message, Role

_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}
_NAMES = {role: name for name, role in _ROLES.items()}
_FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
)  # only these decoders: a file from outside never reaches Pillow's rarer ones
_MOST_PROBLEMS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages that take turns after an optional system message; the last is an answer."""

    id: str
    messages: tuple[Message, ...]


class ConversationReader:
    """The conversations of one JSON file. Everything but the pixels is checked when it is opened.

    Args:
        file: a JSON list; images are named relative to its folder.

    Raises:
        DataError: the file is missing or no such JSON; with every problem of every conversation.
    """

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        try:
            items = json.loads(self.file.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{self.file}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.file} is not JSON ({error})") from error
        if not isinstance(items, list) or not items:
            raise DataError(f"{self.file} holds no list of conversations: [{{'conversations': [...]}}, ...]")
        folder = self.file.parent
        problems = [
            f"item {i}: {problem}" for i, item in enumerate(items) for problem in _problems(item, folder)
        ]
        if problems:
            more = len(problems) - _MOST_PROBLEMS
            lines = [f"  {n}. {problem}" for n, problem in enumerate(problems[:_MOST_PROBLEMS], 1)]
            lines += [f"  and {more} more"] if more > 0 else []
            noun = "problem" if len(problems) == 1 else "problems"
            raise DataError("\n".join([f"{self.file}: {len(problems)} {noun}", *lines]))
        self._items: list[dict[str, Any]] = items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Conversation]:
        return (self.read(index) for index in self.indices)

    @property
    def indices(self) -> tuple[int, ...]:
        """The conversations that are there."""
        return tuple(range(len(self)))

    def successes(self) -> tuple[int, ...]:
        """Those worth imitating: all of them."""
        return self.indices

    def read(self, index: int) -> Conversation:
        """One conversation, with its pixels.

        Raises:
            DataError: there is none, or an image cannot be decoded.
        """
        if not 0 <= index < len(self):
            raise DataError(f"{self.file} has no conversation {index}; it has {len(self)}")
        item = self._items[index]
        images = iter([_decode(self.file.parent / name) for name in _image_names(item)])
        messages = [Message(role="system", text=item["system"])] if item.get("system") else []
        for said in item["conversations"]:
            role, text = _ROLES[said["from"]], said["value"]
            shown = text.count(IMAGE_PLACEHOLDER) if role == "user" else 0
            messages.append(Message(role=role, text=text, images=tuple(next(images) for _ in range(shown))))
        return Conversation(id=str(item.get("id", index)), messages=tuple(messages))

    def close(self) -> None:
        """Nothing is kept open."""

    def __enter__(self) -> ConversationReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_demonstrations(path: str | Path) -> DemonstrationReader | ConversationReader:
    """What `warm_start.demonstrations` names: a JSON file of conversations, or a folder of `rllib demos`.

    Raises:
        DataError: it is neither, or has problems.
    """
    file = Path(path)
    if file.suffix != ".json":
        return DemonstrationReader(path)
    return _opened(file, file.stat().st_mtime_ns) if file.is_file() else ConversationReader(file)


@lru_cache(maxsize=2)
def _opened(file: Path, changed_ns: int) -> ConversationReader:
    """Every update of a warm start opens its file anew: it is parsed and checked once for each time it changed."""
    return ConversationReader(file)


class ConversationWriter:
    """Collects conversations and writes them as one JSON file when closed; images go into a folder beside it.

    Args:
        file: of the JSON list; must not exist.

    Raises:
        DataError: the file or the images' folder exists.
    """

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        self.images = self.file.with_name(f"{self.file.stem}_images")
        for path in (self.file, self.images):
            if path.exists():
                raise DataError(f"{path} exists already; choose another name, or delete it")
        self._items: list[dict[str, Any]] = []

    def write(self, conversation: Conversation) -> None:
        """Adds one; its images are written now."""
        item: dict[str, Any] = {"id": conversation.id}
        names = [
            self._save(f"{len(self._items):08d}_{k}.png", image)
            for k, image in enumerate(image for message in conversation.messages for image in message.images)
        ]
        if names:
            item["image"] = names
        first, *rest = conversation.messages
        if first.role == "system":
            item["system"] = first.text
        said = rest if first.role == "system" else [first, *rest]
        item["conversations"] = [{"from": _NAMES[m.role], "value": m.text} for m in said]
        self._items.append(item)

    def close(self) -> None:
        """Writes the file, whole or not at all."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_name(f".{self.file.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self._items, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(self.file)

    def _save(self, name: str, image: Image) -> str:
        self.images.mkdir(parents=True, exist_ok=True)
        (self.images / name).write_bytes(encode_image(image, "png"))
        return f"{self.images.name}/{name}"


def _problems(item: Any, folder: Path) -> Iterator[str]:
    """What is wrong with one entry of the list."""
    if not isinstance(item, dict):
        yield f"is a {type(item).__name__}, not an object"
        return
    if not isinstance(item.get("system", ""), str):
        yield f"'system' is a {type(item['system']).__name__}, not a text"
    said = item.get("conversations")
    if not isinstance(said, list) or not said:
        yield f"'conversations' is {quote(repr(said))}, not a list of messages"
        return
    wrong = [problem for k, message in enumerate(said) for problem in _message_problems(k, message)]
    yield from wrong
    if not wrong:
        yield from _order_problems(said, "system" in item)
    images = item.get("image", [])
    names = [images] if isinstance(images, str) else images
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        yield f"'image' is {quote(repr(images))}, not a path or a list of paths"
        return
    yield from (problem for name in names for problem in _image_problems(name, folder))
    if not wrong:
        shown = sum(m["value"].count(IMAGE_PLACEHOLDER) for m in said if m["from"] == "human")
        if shown != len(names):
            yield f"{len(names)} images, and {shown} times {IMAGE_PLACEHOLDER} in what the human says"


def _message_problems(k: int, message: Any) -> Iterator[str]:
    if not isinstance(message, dict):
        yield f"message {k} is a {type(message).__name__}, not an object"
        return
    speaker, text = message.get("from"), message.get("value")
    if not isinstance(speaker, str) or speaker not in _ROLES:
        near = did_you_mean(str(speaker), _ROLES)
        yield f"message {k} is from {quote(repr(speaker))}.{near} Known: {', '.join(_ROLES)}"
    if not isinstance(text, str):
        yield f"message {k} has the value {quote(repr(text))}, not a text"
    elif speaker == "gpt" and not text.strip():
        yield f"message {k} is an empty answer"
    elif speaker != "human" and IMAGE_PLACEHOLDER in text:
        yield f"message {k} has {IMAGE_PLACEHOLDER}, which only a human shows"


def _order_problems(said: Sequence[dict[str, Any]], has_system: bool) -> Iterator[str]:
    speakers = [message["from"] for message in said]
    if speakers[0] == "system":
        if has_system:
            yield "'system' and a system message: give one of the two"
        speakers = speakers[1:]
    if speakers != ["human", "gpt"] * (len(speakers) // 2) or not speakers:
        yield f"messages are from {', '.join(speakers)}; human and gpt must take turns, and gpt ends"


def _image_problems(name: str, folder: Path) -> Iterator[str]:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        yield f"image {name!r} is no path below the file's own folder"
    elif not _is_file(folder, name):
        yield f"image {name[:200]!r} is missing in {folder}"


def _is_file(folder: Path, name: str) -> bool:
    try:
        return "\0" not in name and (folder / name).is_file()
    except OSError:  # a name too long for the file system
        return False


def _image_names(item: dict[str, Any]) -> list[str]:
    names = item.get("image", [])
    return [names] if isinstance(names, str) else names


def _decode(path: Path) -> Image:
    try:
        with PIL.Image.open(path, formats=_FORMATS) as picture:
            return np.array(picture.convert("RGB"), dtype=np.uint8)
    except (UnidentifiedImageError, OSError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise DataError(f"{path} is no whole {', '.join(_FORMATS)} image: {error}") from error
