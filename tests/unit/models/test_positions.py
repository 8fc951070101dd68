from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_vlm.errors import ModelError
from rllib_vlm.models.qwen2_5_vl import Qwen25VL
from rllib_vlm.models.qwen2_5_vl.positions import rope_positions

# A segment is a list of texts (their lengths) and images (their grids) in turn.
part = st.one_of(st.integers(1, 6), st.tuples(st.integers(1, 4), st.integers(1, 4)))
segment = st.lists(part, min_size=1, max_size=6).map(
    # Two images never touch: at least <|vision_end|><|vision_start|> stands between.
    lambda parts: [x for p in parts for x in ((1, p, 1) if isinstance(p, tuple) else (p,))]
)


def tokens(parts: list[int | tuple[int, int]], image: int) -> list[int]:
    return [i for p in parts for i in ([image] * (p[0] * p[1]) if isinstance(p, tuple) else [20] * p)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(segment, min_size=1, max_size=3), min_size=1, max_size=3))
def test_positions_are_those_of_transformers(
    family: Qwen25VL, rows: list[list[list[int | tuple[int, int]]]]
) -> None:
    """Every segment of every row against transformers' `get_rope_index` of that segment alone."""
    image = family.image_token_id
    ids = [[tokens(s, image) for s in row] for row in rows]
    length = max(sum(map(len, row)) for row in ids) + 2
    token_ids = torch.zeros(len(rows), length, dtype=torch.int64)
    segment_ids = torch.zeros_like(token_ids)
    grids, owners, expected = [], [], torch.zeros(3, len(rows), length, dtype=torch.int64)
    for r, row in enumerate(rows):
        at = 0
        for s, (parts, piece) in enumerate(zip(row, ids[r], strict=True), 1):
            span = slice(at, at + len(piece))
            token_ids[r, span] = torch.tensor(piece)
            segment_ids[r, span] = s
            own = [p for p in parts if isinstance(p, tuple)]
            grids += own
            owners += [r] * len(own)
            alone = token_ids[r : r + 1, span]
            grid = torch.tensor([(1, 2 * h, 2 * w) for h, w in own]) if own else None
            expected[:, r : r + 1, span] = family.model.model.get_rope_index(
                alone, mm_token_type_ids=(alone == image).int(), image_grid_thw=grid
            )[0]
            at += len(piece)
    got = rope_positions(
        token_ids == image,
        segment_ids,
        torch.tensor(grids, dtype=torch.int64).reshape(-1, 2),
        torch.tensor(owners, dtype=torch.int64),
    )
    real = segment_ids > 0
    assert torch.equal(got[:, real], expected[:, real])


def test_an_image_without_placeholders_is_an_error() -> None:
    is_image = torch.tensor([[False, True, True, False]])
    with pytest.raises(ModelError, match="row 0 has 2 image tokens but its images make 4"):
        rope_positions(
            is_image, torch.ones(1, 4, dtype=torch.int64), torch.tensor([[2, 2]]), torch.tensor([0])
        )
    with pytest.raises(ModelError, match="row 0 has 2 image tokens but its images make 0"):
        rope_positions(
            is_image,
            torch.ones(1, 4, dtype=torch.int64),
            torch.zeros(0, 2, dtype=torch.int64),
            torch.zeros(0, dtype=torch.int64),
        )
