"""The words a small model's tokenizer is made of."""

from rllib_vlm.models.tokenizer import load_corpus, train_tokenizer
from rllib_vlm.sims.streetview.city_style import KINDS, STYLES
from rllib_vlm.sims.streetview.geo import COMPASS

CORPUS = "rllib_vlm.sims.streetview:corpus/streets.txt"  # as in configs/models/tiny_streets.yaml


def test_street_words_are_one_token_each() -> None:
    """Names and compass words of both cities, in what is told and in what is answered."""
    tokenizer = train_tokenizer(load_corpus(CORPUS))
    for style in STYLES.values():
        told = [f" {word}" for word in (*style.adjectives, *KINDS, *COMPASS)]
        pieces = [tokenizer.tokenize(text) for text in told]
        assert [text for text, found in zip(told, pieces, strict=True) if len(found) != 1] == []
    assert len(tokenizer.tokenize("turn_direction(southeast)")) == 4
