"""What stands in a demonstrations folder: the manifest, the columns, and the records behind them.

The folder's format is described, column by column, in docs/demonstrations.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from rllib_vlm.data.images import CODECS, Codec, decode_image, encode_image
from rllib_vlm.errors import DataError, UnknownNameError
from rllib_vlm.types import Demonstration, Detection, Image, Mention

FORMAT = "rllib_vlm.demonstrations"
VERSION = 2
MANIFEST = "manifest.json"

_TEXT = pa.string()
_DETECTION = pa.struct(
    {
        "image": pa.int32(), "x": pa.float64(), "y": pa.float64(), "words": _TEXT, "place": _TEXT,
        "named": pa.bool_(), "pixels": pa.float64(),
    }
)  # fmt: skip
SCHEMA = pa.schema(
    [
        pa.field("episode", pa.int64(), nullable=False),  # position in the manifest's seeds
        pa.field("turn", pa.int32(), nullable=False),
        pa.field("task_seed", pa.int64(), nullable=False),
        pa.field("instruction", _TEXT, nullable=False),
        pa.field("text", _TEXT, nullable=False),  # the observation's
        pa.field("images", pa.list_(pa.binary()), nullable=False),  # the observation's, compressed
        pa.field("actions", pa.list_(_TEXT), nullable=False),
        pa.field("observation", _TEXT, nullable=False),  # what the expert says it sees
        pa.field("reasoning", _TEXT, nullable=False),
        pa.field("prediction", _TEXT, nullable=False),
        pa.field("questions", pa.list_(pa.list_(_TEXT)), nullable=True),  # [question, answer] each
        pa.field("detections", pa.list_(_DETECTION), nullable=True),  # fields as in `types.Detection`
        pa.field("mentions", pa.list_(pa.struct({"words": _TEXT, "named": pa.bool_()})), nullable=True),
        pa.field("reward", pa.float64(), nullable=False),
        pa.field("terminated", pa.bool_(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("success", pa.bool_(), nullable=False),  # of the whole episode, in every row
        pa.field("metrics", _TEXT, nullable=False),  # JSON, of the whole episode; "" before its last turn
        pa.field("final_text", _TEXT, nullable=True),  # observation after the last turn; null before it
        pa.field("final_images", pa.list_(pa.binary()), nullable=True),
    ]
)
COLUMNS = tuple(SCHEMA.names)
ADDED = ("questions", "detections", "mentions")  # by version 2; folders of version 1 lack them
_ALWAYS = ("episode", "turn")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedTurn:
    """One turn: what was observed, and what the expert did about it.

    Pixels stand in `images`, or as compressed bytes in `encoded_images` where a reader was asked
    not to decode them.
    """

    demonstration: Demonstration
    text: str = ""
    images: tuple[Image, ...] = ()
    encoded_images: tuple[bytes, ...] = ()
    reward: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedEpisode:
    """One episode of an expert, with the observation that followed its last turn."""

    index: int  # position in the manifest's seeds
    task_seed: int
    instruction: str
    turns: tuple[RecordedTurn, ...]  # at least one
    terminated: bool
    truncated: bool
    success: bool
    metrics: Mapping[str, float] = field(default_factory=dict)
    final_text: str = ""
    final_images: tuple[Image, ...] = ()
    encoded_final_images: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Where the episodes come from, and which ones there are to be.

    Everything but `seeds` and the counts identifies a folder: only runs that agree in it may add
    episodes to the same one. `seeds` may grow at its end.
    """

    simulator: str  # its name in the table `simulators`, or a dotted path
    seeds: tuple[int, ...]  # one per episode, all different
    env_config: Mapping[str, Any] = field(default_factory=dict)
    split: str = "train"
    options: Mapping[str, Any] = field(
        default_factory=dict
    )  # further options of `reset`, e.g. {"level": 1.0}
    expert: Mapping[str, Any] = field(default_factory=dict)  # e.g. {"max_actions": 4}
    image_codec: Codec = "webp"
    episodes: int = 0  # as of the last time a writer closed the folder
    turns: int = 0
    successes: int = 0

    def identity(self) -> dict[str, Any]:
        """What must agree for episodes to stand in one folder, as plain JSON values."""
        values: dict[str, Any] = {
            "simulator": self.simulator,
            "env_config": dict(self.env_config),
            "split": self.split,
            "options": dict(self.options),
            "expert": dict(self.expert),
            "image_codec": self.image_codec,
        }
        try:
            plain: dict[str, Any] = json.loads(json.dumps(values, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise DataError(
                f"the settings of a demonstrations folder are not plain JSON values: {error}. "
                "Use strings, numbers, lists and dictionaries."
            ) from error
        return plain

    def to_json(self) -> str:
        body = {
            "format": FORMAT,
            "version": VERSION,
            **self.identity(),
            "seeds": _runs(self.seeds),
            "counts": {"episodes": self.episodes, "turns": self.turns, "successes": self.successes},
            "complete": self.episodes == len(self.seeds),
        }
        return json.dumps(body, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: object) -> Manifest:
        """Reads a manifest.

        Raises:
            DataError: it is no manifest, a foreign one, a newer one or a damaged one.
        """
        try:
            body = json.loads(text)
        except ValueError as error:
            raise DataError(
                f"{source} is not JSON ({error}). Restore it, or collect into another folder."
            ) from error
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            found = body.get("format") if isinstance(body, dict) else type(body).__name__
            raise DataError(
                f"{source} has the format {found!r}, not {FORMAT!r}: choose a folder of `rllib demos`."
            )
        version = body.get("version")
        if not isinstance(version, int) or not 1 <= version <= VERSION:
            raise DataError(
                f"{source} has the format version {version!r}; this package reads up to {VERSION}. "
                "Upgrade rllib_vlm, or collect the demonstrations again with this version."
            )
        try:
            counts = body["counts"]
            manifest = cls(
                **{key: body[key] for key in _IDENTITY},
                seeds=tuple(first + i for first, count in body["seeds"] for i in range(count)),
                episodes=int(counts["episodes"]),
                turns=int(counts["turns"]),
                successes=int(counts["successes"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{source} is damaged ({type(error).__name__}: {error}). "
                "Restore it, or collect into another folder."
            ) from error
        manifest.check(source)
        return manifest

    def check(self, source: object) -> None:
        """Raises `DataError` for values no writer could honour."""
        if self.image_codec not in CODECS:
            raise UnknownNameError("image codecs", self.image_codec, CODECS)
        if not self.seeds:
            raise DataError(f"{source} asks for no episodes: give at least one seed.")
        if len(set(self.seeds)) != len(self.seeds):
            twice = next(s for i, s in enumerate(self.seeds) if s in self.seeds[:i])
            raise DataError(f"{source} has the seed {twice} twice: every episode needs a seed of its own.")


_IDENTITY = ("simulator", "env_config", "split", "options", "expert", "image_codec")


def _runs(seeds: Sequence[int]) -> list[tuple[int, int]]:
    """(first, count) of each ascending run: 5,000 seeds in a row are one pair."""
    runs: list[tuple[int, int]] = []
    for seed in seeds:
        if runs and seed == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((int(seed), 1))
    return runs


def to_table(episode: RecordedEpisode, codec: Codec) -> pa.Table:
    """The rows of an episode, one per turn, images compressed.

    Raises:
        DataError: the episode has no turns.
    """
    turns = episode.turns
    if not turns:
        raise DataError(f"episode {episode.index} (seed {episode.task_seed}) has no turns to write")
    n, last = len(turns), len(turns) - 1
    final_images = _encoded(episode.final_images, episode.encoded_final_images, codec)
    columns: dict[str, list[Any]] = {
        "episode": [episode.index] * n,
        "turn": list(range(n)),
        "task_seed": [episode.task_seed] * n,
        "instruction": [episode.instruction] * n,
        "text": [t.text for t in turns],
        "images": [_encoded(t.images, t.encoded_images, codec) for t in turns],
        "actions": [list(t.demonstration.actions) for t in turns],
        "observation": [t.demonstration.observation for t in turns],
        "reasoning": [t.demonstration.reasoning for t in turns],
        "prediction": [t.demonstration.prediction for t in turns],
        "questions": [[list(q) for q in t.demonstration.questions] for t in turns],
        "detections": [[asdict(d) for d in t.demonstration.detections] for t in turns],
        "mentions": [[asdict(m) for m in t.demonstration.mentions] for t in turns],
        "reward": [float(t.reward) for t in turns],
        "terminated": [i == last and episode.terminated for i in range(n)],
        "truncated": [i == last and episode.truncated for i in range(n)],
        "success": [episode.success] * n,
        "metrics": [_metrics_json(episode.metrics) if i == last else "" for i in range(n)],
        "final_text": [episode.final_text if i == last else None for i in range(n)],
        "final_images": [final_images if i == last else None for i in range(n)],
    }
    return pa.table(columns, schema=SCHEMA)


def from_table(table: pa.Table, *, decode_images: bool) -> RecordedEpisode:
    """The episode behind the rows of one row group; columns that were not read stay empty."""
    n = table.num_rows
    read = {name: table.column(name).to_pylist() for name in table.column_names}

    def column(name: str, default: Any) -> list[Any]:
        return read.get(name) or [default] * n

    text, actions, rewards = column("text", ""), column("actions", ()), column("reward", 0.0)
    said = {name: column(name, "") for name in ("observation", "reasoning", "prediction")}
    asked, shown, told = column("questions", ()), column("detections", ()), column("mentions", ())
    turns = []
    for i, encoded in enumerate(column("images", ())):
        images, data = _pixels(encoded, decode_images)
        demonstration = Demonstration(
            actions=tuple(actions[i]),
            questions=tuple((question, answer) for question, answer in asked[i]),
            detections=tuple(Detection(**values) for values in shown[i]),
            mentions=tuple(Mention(**values) for values in told[i]),
            **{k: v[i] for k, v in said.items()},
        )
        turns.append(
            RecordedTurn(
                demonstration=demonstration,
                text=text[i],
                images=images,
                encoded_images=data,
                reward=rewards[i],
            )
        )
    final, final_data = _pixels(column("final_images", ())[-1] or (), decode_images)
    return RecordedEpisode(
        index=read["episode"][0],
        task_seed=column("task_seed", 0)[0],
        instruction=column("instruction", "")[0],
        turns=tuple(turns),
        terminated=column("terminated", False)[-1],
        truncated=column("truncated", False)[-1],
        success=column("success", False)[0],
        metrics=_metrics(column("metrics", "")[-1]),
        final_text=column("final_text", "")[-1] or "",
        final_images=final,
        encoded_final_images=final_data,
    )


def projection(columns: Collection[str] | None) -> list[str]:
    """The columns to read: those asked for, and the ones that say which rows these are.

    Raises:
        UnknownNameError: there is no such column.
    """
    for name in columns or ():
        if name not in COLUMNS:
            raise UnknownNameError("columns of demonstrations", name, COLUMNS)
    return [name for name in COLUMNS if columns is None or name in columns or name in _ALWAYS]


def _encoded(images: Sequence[Image], encoded: Sequence[bytes], codec: Codec) -> list[bytes]:
    return list(encoded) if encoded else [encode_image(image, codec) for image in images]


def _pixels(encoded: Sequence[bytes], decode: bool) -> tuple[tuple[Image, ...], tuple[bytes, ...]]:
    if not decode:
        return (), tuple(encoded)
    return tuple(decode_image(data) for data in encoded), ()


def _metrics_json(metrics: Mapping[str, float]) -> str:
    # JSON has no NaN: a figure that was not defined for an episode is null.
    values = {name: float(value) for name, value in metrics.items()}
    return json.dumps({k: v if math.isfinite(v) else None for k, v in values.items()}, sort_keys=True)


def _metrics(text: str) -> dict[str, float]:
    return {k: math.nan if v is None else float(v) for k, v in json.loads(text or "{}").items()}
