"""The table: up to four cards on green felt, two by two, so that they are large in a small picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from rllib_vlm.sims.cards.deck import Card

_FELT = (30, 94, 62)
_PAPER, _EDGE = (250, 249, 244), (150, 150, 145)
_BLACK, _RED = (22, 22, 26), (204, 30, 38)
_RED_SUITS = ("hearts", "diamonds")
_FINE = 4  # drawn this many times larger, then reduced: smooth edges
# Parts of a picture: a card's width and height, and the left and top edges of the two columns and rows.
_CARD = (0.40, 0.46)
_COLUMNS, _ROWS = (0.07, 0.53), (0.03, 0.51)


def draw_table(cards: Sequence[Card], pixels: int) -> NDArray[np.uint8]:
    """The picture `[pixels, pixels, 3]` of up to four cards, in the order of reading."""
    table = Image.new("RGB", (pixels, pixels), _FELT)
    for i, card in enumerate(cards):
        corner = round(_COLUMNS[i % 2] * pixels), round(_ROWS[i // 2] * pixels)
        table.paste(_draw_card(card, pixels), corner)
    return np.asarray(table, dtype=np.uint8).copy()


@lru_cache(maxsize=256)
def _draw_card(card: Card, pixels: int) -> Image.Image:
    size = round(_CARD[0] * pixels), round(_CARD[1] * pixels)
    width, height = size[0] * _FINE, size[1] * _FINE
    image = Image.new("RGB", (width, height), _FELT)
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle(
        (0, 0, width - 1, height - 1), radius=width // 10, fill=_PAPER, outline=_EDGE, width=_FINE
    )
    ink = _RED if card.suit in _RED_SUITS else _BLACK
    # Two digits are as wide as a card: the size is what fits, and all ranks share it.
    font = ImageFont.load_default(size=0.62 * height)
    pen.text(
        (0.5 * width, 0.33 * height), card.name, fill=ink, font=font, anchor="mm", stroke_width=width // 60
    )
    _draw_suit(pen, card.suit, ink, (0.5 * width, 0.80 * height), 0.15 * height)
    return image.resize(size, Image.Resampling.LANCZOS)


def _draw_suit(
    pen: ImageDraw.ImageDraw, suit: str, ink: tuple[int, int, int], centre: tuple[float, float], half: float
) -> None:
    """A suit's sign around `centre`, from `-half` to `half` both ways."""

    def at(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(centre[0] + half * x, centre[1] + half * y) for x, y in points]

    def disc(x: float, y: float, radius: float) -> None:
        pen.ellipse(at((x - radius, y - radius), (x + radius, y + radius)), fill=ink)

    if suit == "diamonds":
        pen.polygon(at((0, -1), (0.75, 0), (0, 1), (-0.75, 0)), fill=ink)
    elif suit == "hearts":
        disc(-0.45, -0.4, 0.5)
        disc(0.45, -0.4, 0.5)
        pen.polygon(at((-0.9, -0.15), (0.9, -0.15), (0, 1)), fill=ink)
    else:
        if suit == "spades":
            pen.polygon(at((-0.9, 0.2), (0.9, 0.2), (0, -1)), fill=ink)
            leaves = ((-0.45, 0.3), (0.45, 0.3))
        else:
            leaves = ((-0.5, 0.25), (0.5, 0.25))
            disc(0, -0.5, 0.45)
        for x, y in leaves:
            disc(x, y, 0.45)
        pen.polygon(at((0, 0), (0.35, 1), (-0.35, 1)), fill=ink)
