"""An episode as a film, and as one picture: what the agent saw, turn by turn, and what it did."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image
from PIL import ImageDraw, ImageFont

from rllib_vlm.callbacks.pages import EpisodeView, TurnView
from rllib_vlm.types import Image

_CAPTION_LINES = 3
_LINE_PIXELS = 14
_MIN_WIDTH = 320  # pixels, so that a caption can be read
_CODECS = (("libx264", ".mp4"), ("libvpx-vp9", ".webm"))


def frames(episode: EpisodeView) -> Iterator[Image]:
    """`[H, W, 3]` per turn and one for the end, all of one size: the views side by side, a caption below."""
    for turn in episode.turns:
        if turn.images:
            yield _captioned(turn.images, f"{turn.number}. {episode.instruction}\n{_said(turn)}")
    if episode.last_images:
        outcome = "success" if episode.success else "failure"
        yield _captioned(
            episode.last_images, f"{episode.instruction}\n{outcome}, reward {episode.total_reward:.3f}"
        )


def film_strip(episode: EpisodeView, *, max_frames: int = 12) -> Image | None:
    """Up to `max_frames` turns, evenly spread, in one picture; None for an episode without images."""
    shown = list(frames(episode))
    if not shown:
        return None
    chosen = np.unique(np.linspace(0, len(shown) - 1, min(max_frames, len(shown))).round().astype(int))
    columns = min(4, len(chosen))
    blank = np.zeros_like(shown[0])
    tiles = [shown[i] for i in chosen] + [blank] * (-len(chosen) % columns)
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    return np.concatenate(rows, axis=0)


def write_video(path: Path, pictures: Sequence[Image], *, frames_per_s: int = 2) -> Path | None:
    """Writes a film named `path` and the suffix of what it really is: H.264, else VP9, else an animated GIF.

    Returns:
        The file, or None where there are no pictures.
    """
    if not pictures:
        return None
    for codec, suffix in _CODECS:
        if codec in av.codecs_available:
            return _encode(path.with_suffix(suffix), codec, pictures, frames_per_s)
    first, *rest = [PIL.Image.fromarray(picture) for picture in pictures]
    target = path.with_suffix(".gif")
    first.save(target, save_all=True, append_images=rest, duration=1000 // frames_per_s, loop=0)
    return target


def _encode(path: Path, codec: str, pictures: Sequence[Image], frames_per_s: int) -> Path:
    height, width = pictures[0].shape[:2]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=frames_per_s)
        # What browsers play: halved colour planes, which need even sides.
        stream.width, stream.height, stream.pix_fmt = width - width % 2, height - height % 2, "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in pictures:
            even = np.ascontiguousarray(picture[: stream.height, : stream.width])
            for packet in stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def _said(turn: TurnView) -> str:
    if turn.invalid_reason:
        return f"invalid: {turn.invalid_reason}"
    return ", ".join(turn.actions)


def _captioned(images: Sequence[Image], caption: str) -> Image:
    height = max(image.shape[0] for image in images)
    padded = [np.pad(image, ((0, height - image.shape[0]), (0, 0), (0, 0))) for image in images]
    views = np.concatenate(padded, axis=1)
    scale = max(1, -(-_MIN_WIDTH // views.shape[1]))
    views = views.repeat(scale, axis=0).repeat(scale, axis=1)
    font = ImageFont.load_default(size=11)
    bar = PIL.Image.new("RGB", (views.shape[1], _CAPTION_LINES * _LINE_PIXELS + 4), (20, 20, 20))
    lines = [
        part for line in caption.split("\n") for part in textwrap.wrap(line, views.shape[1] // 6) or [""]
    ]
    for i, line in enumerate(lines[:_CAPTION_LINES]):
        ImageDraw.Draw(bar).text((4, 2 + i * _LINE_PIXELS), line, fill=(235, 235, 235), font=font)
    return np.concatenate([views, np.asarray(bar, dtype=np.uint8)], axis=0)
