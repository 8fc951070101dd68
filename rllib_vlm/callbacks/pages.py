"""An episode as a person looks at it: what was shown, what was answered, what it earned; as one HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import PIL.Image
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_vlm.connectors.trajectories import executed
from rllib_vlm.core.columns import GROUP, METRICS, SUCCESS, VLMColumns
from rllib_vlm.types import Completion, Image, TokenCredit

_FAINTEST = 0.12  # of a background that is there at all


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """A sampled token: its text, and how strongly and which way it is coloured."""

    text: str
    logprob: float  # nats
    advantage: float | None = None
    shade: float = 0.0  # -1 (much worse than expected) to 1 (much better)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnView:
    number: int  # from 1
    images: tuple[Image, ...]
    text: str  # of the observation
    prompt: str
    tokens: tuple[TokenView, ...]
    finish_reason: str
    actions: tuple[str, ...]
    invalid_reason: str  # "" where the answer is valid
    note: str  # what a parser cut off a valid answer
    reward: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeView:
    group: str
    instruction: str
    success: bool
    ending: str
    total_reward: float
    num_turns: int
    turns: tuple[TurnView, ...]  # at most as many as were asked for, the first ones and the last
    metrics: dict[str, float]
    last_images: tuple[Image, ...]
    by_expert: bool = False


def episode_view(
    episode: SingleAgentEpisode,
    views: Sequence[tuple[Image, ...]],
    pieces: Sequence[Sequence[str]],
    credit: Sequence[TokenCredit] | None,
    *,
    max_turns: int,
) -> EpisodeView:
    """What a page shows of an episode.

    Args:
        episode: a finished one.
        views: what was seen before each turn and after the last, as `observed_images` gives it.
        pieces: the text of each token of each turn.
        credit: of each turn, where there is any.
        max_turns: turns to show; of a longer episode, as many from its beginning as from its end.
    """
    observations, completions = episode.get_observations(), executed(episode)
    prompts = episode.get_extra_model_outputs(VLMColumns.PROMPT)
    parsed = episode.get_extra_model_outputs(VLMColumns.PARSED)
    rewards = episode.get_rewards()
    scale = max((float(np.abs(c.advantages).max(initial=0.0)) for c in credit or ()), default=0.0)
    turns = []
    for i in _shown(len(episode), max_turns):
        meaning = parsed[i]
        turns.append(
            TurnView(
                number=i + 1,
                images=views[i],
                text=str(observations[i].get("text", "")),
                prompt=prompts[i].text,
                tokens=_tokens(completions[i], pieces[i], credit[i].advantages if credit else None, scale),
                finish_reason=completions[i].finish_reason,
                actions=tuple(meaning.actions) if meaning.valid else (),
                invalid_reason="" if meaning.valid else meaning.reason or "no reason given",
                note=meaning.reason if meaning.valid else "",
                reward=float(rewards[i]),
            )
        )
    return EpisodeView(
        group=str(episode.custom_data.get(GROUP, episode.id_)),
        instruction=str(episode.get_infos(0).get("instruction", "")),
        success=bool(episode.custom_data.get(SUCCESS, False)),
        ending="ended by the simulator" if episode.is_terminated else "cut at its limit of turns or steps",
        total_reward=float(episode.get_return()),
        num_turns=len(episode),
        turns=tuple(turns),
        metrics=dict(episode.custom_data.get(METRICS, {})),
        last_images=views[-1],
        by_expert=VLMColumns.EXECUTED in episode.extra_model_outputs,
    )


def observed_images(episode: SingleAgentEpisode) -> list[tuple[Image, ...]]:
    """The images of each observation, one more than there are turns."""
    return [tuple(o["images"]) if "images" in o else () for o in episode.get_observations()]


def render_page(
    title: str, subtitle: str, episodes: Sequence[EpisodeView], *, image_pixels: int, video: str = ""
) -> str:
    """One self-contained HTML page; only `video`, a relative path, lies beside it."""
    template = _templates(image_pixels).get_template("episodes.html")
    return template.render(title=title, subtitle=subtitle, episodes=episodes, video=video)


def render_index(title: str, pages: Sequence[tuple[str, str]]) -> str:
    """The page that links all others: (relative path, label), newest first."""
    return _templates(0).get_template("index.html").render(title=title, pages=pages)


def token_pieces(family: Any, completion: Completion) -> list[str]:
    """The text of each token: what it adds to the text of those before it.

    A character that several tokens spell stands at the last of them; a stop token adds nothing.
    """
    pieces, before = [], ""
    for end in range(1, len(completion.token_ids) + 1):
        text = family.decode(completion.token_ids[:end])
        whole = text.rstrip("\N{REPLACEMENT CHARACTER}") if end < len(completion.token_ids) else text
        pieces.append(whole[len(before) :])
        before = max(before, whole, key=len)
    return pieces


def _tokens(
    completion: Completion, pieces: Sequence[str], advantages: NDArray[np.float32] | None, scale: float
) -> tuple[TokenView, ...]:
    views = []
    for i, text in enumerate(pieces):
        advantage = None if advantages is None else float(advantages[i])
        views.append(
            TokenView(
                text=text or "∎",  # a stop token, or part of a character
                logprob=float(completion.logprobs[i]),
                advantage=advantage,
                shade=_shade(advantage, scale),
            )
        )
    return tuple(views)


def _shade(advantage: float | None, scale: float) -> float:
    if not advantage or not scale:
        return 0.0
    strength = max(_FAINTEST, min(1.0, abs(advantage) / scale))
    return strength if advantage > 0 else -strength


def _shown(turns: int, limit: int) -> list[int]:
    if turns <= limit:
        return list(range(turns))
    head = (limit + 1) // 2
    return [*range(head), *range(turns - (limit - head), turns)]


def _inline(image: Image, pixels: int) -> str:
    """A data URI of at most `pixels` on the longer side."""
    picture = PIL.Image.fromarray(image)
    picture.thumbnail((pixels, pixels))
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


@cache
def _templates(image_pixels: int) -> Environment:
    environment = Environment(
        loader=PackageLoader("rllib_vlm.callbacks"),
        autoescape=True,  # answers and instructions are foreign text: a model may well write <script>
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = lambda image: _inline(image, image_pixels)
    return environment
