"""Weights by part of an answer: its parser's spans, brought from characters to tokens."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

REST = "rest"  # stands for what is in no part that has a weight of its own


def token_weights(
    spans: Mapping[str, tuple[int, int]], ends: NDArray[np.int64], weights: Mapping[str, float]
) -> NDArray[np.float32]:
    """[T] the weight of each token of an answer; a token is in the part its first character is in.

    Where parts lie in one another the innermost that has a weight counts, elsewhere `weights["rest"]`, or 1.

    Args:
        spans: character range of each part, as of `ParsedAction.spans`.
        ends: [T] characters of the answer's text up to and with each token.
        weights: by name of the part.
    """
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64) if len(ends) else ends
    found = np.full(len(ends), weights.get(REST, 1.0), np.float32)
    for name, (start, stop) in sorted(spans.items(), key=lambda item: item[1][0] - item[1][1]):
        if name in weights:  # the longest first, so that what lies inside has the last word
            found[(starts >= start) & (starts < stop)] = weights[name]
    return found
