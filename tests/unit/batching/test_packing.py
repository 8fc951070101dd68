import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_vlm.batching.micro import micro_batches
from rllib_vlm.batching.packing import TOKEN_COLUMNS, pack, pad, pad_batch, to_torch, unpack, unpack_column
from rllib_vlm.batching.rows import Row, rows_from_trajectory
from rllib_vlm.errors import RLlibVLMError
from rllib_vlm.types import Completion, ParsedAction, Prompt, Trajectory, Turn


def make_row(length, sizes=(), seed=0):
    rng = np.random.default_rng(seed)
    sampled = rng.random(length) < 0.5
    sampled[0] = False
    return Row(
        token_ids=rng.integers(1, 100, length),
        loss_mask=sampled,
        value_mask=sampled,
        loss_weights=rng.random(length).astype(np.float32),
        old_logprobs=rng.normal(size=length).astype(np.float32),
        advantages=rng.normal(size=length).astype(np.float32),
        returns=rng.normal(size=length).astype(np.float32),
        old_values=rng.normal(size=length).astype(np.float32),
        policy_versions=np.where(sampled, 5, -1),
        turn_ids=np.where(sampled, 2, -1),
        turn_ends=sampled,
        grounding_mask=sampled[::-1].copy(),
        referring_mask=sampled.copy(),
        labels=rng.integers(-1, 50, (length, 6)),
        images=tuple(rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sizes),
    )


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        for name in TOKEN_COLUMNS:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
        assert len(a.images) == len(b.images)
        for x, y in zip(a.images, b.images, strict=True):
            np.testing.assert_array_equal(x, y)


sizes = st.tuples(st.integers(1, 4), st.integers(1, 5))
row_lists = st.lists(
    st.builds(make_row, st.integers(1, 20), st.lists(sizes, max_size=3), st.integers(0, 1000)), max_size=12
)


@settings(max_examples=80, deadline=None)
@given(row_lists, st.integers(20, 50), st.sampled_from([None, 3, 5]), st.sampled_from([1, 8]))
def test_packing_is_lossless_in_order_and_within_budgets(rows, max_tokens, max_images, multiple):
    batch = pack(
        rows, max_tokens=max_tokens, max_images=max_images, pad_to_multiple=multiple, pad_token_id=77
    )
    assert_same(unpack(batch), rows)
    used = batch["segment_ids"] > 0
    assert used.sum() == sum(map(len, rows))
    assert (used.sum(1) <= max_tokens).all() and batch["token_ids"].shape[1] % multiple == 0
    assert ((batch["image_sizes"][..., 0] > 0).sum(1) <= (max_images or 99)).all()
    assert (batch["token_ids"][~used] == 77).all() and not batch["loss_mask"][~used].any()
    assert ((batch["row_ids"] == -1) == ~used).all()
    assert batch["loss_mask"].sum() == sum(r.loss_mask.sum() for r in rows)
    assert len({len(a) for a in batch.values()}) == 1  # every column is [B, ...]
    for b, segments in enumerate(batch["segment_ids"]):
        inside = segments[segments > 0]
        assert (np.diff(inside) >= 0).all() and (np.diff(inside) <= 1).all() and inside[0] == 1
        assert (np.diff(batch["row_ids"][b][segments > 0]) >= 0).all()  # original order inside a packed row


@settings(max_examples=30, deadline=None)
@given(row_lists)
def test_padding_keeps_one_row_per_row(rows):
    batch = pad(rows, pad_to_multiple=4)
    assert len(batch["token_ids"]) == len(rows)
    assert [int(r[0]) for r in batch["row_ids"]] == list(range(len(rows)))
    assert_same(unpack(batch), rows)
    assert_same(unpack(pad_batch(batch, len(rows) + 2)), rows)


def test_first_fit_decreasing_by_hand():
    rows = [make_row(n, seed=n) for n in (3, 5, 2, 6, 4)]
    batch = pack(rows, max_tokens=10)
    # 6 -> A, 5 -> B, 4 -> A, 3 -> B, 2 -> B
    assert [np.unique(r[r >= 0]).tolist() for r in batch["row_ids"]] == [[0, 1, 2], [3, 4]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 2, 2, 2, 2, 2, 3, 3], [1] * 6 + [2] * 4]


def test_images_follow_their_segments():
    rows = [make_row(4, [(2, 3)], 1), make_row(4, [], 2), make_row(4, [(4, 1), (1, 5)], 3)]
    batch = pack(rows, max_tokens=12)
    assert batch["images"].shape == (1, 3, 4, 5, 3) and batch["images"].dtype == np.uint8
    assert batch["image_sizes"].tolist() == [[[2, 3], [4, 1], [1, 5]]]
    np.testing.assert_array_equal(batch["images"][0, 1, :4, :1], rows[2].images[0])
    assert not batch["images"][0, 0, 2:].any() and not batch["images"][0, 0, :, 3:].any()


def test_no_rows_no_images():
    batch = pack([], max_tokens=10)
    assert batch["token_ids"].shape == (0, 0) and unpack(batch) == []
    assert pack([make_row(3)], max_tokens=10)["images"].shape == (1, 0, 0, 0, 3)
    assert list(micro_batches(batch, max_tokens=10)) == []


def test_a_row_beyond_the_budget_is_named():
    with pytest.raises(RLlibVLMError, match="Row 1 has 11 tokens and 0 images, a packed row holds 10"):
        pack([make_row(3), make_row(11)], max_tokens=10)
    with pytest.raises(RLlibVLMError, match="Row 0 has 3 tokens and 2 images"):
        pack([make_row(3, [(1, 1), (1, 1)])], max_tokens=10, max_images=1)
    with pytest.raises(RLlibVLMError, match="nearest size is 1"):
        pad_batch(pack([make_row(3)], max_tokens=10), 0)


@settings(max_examples=60, deadline=None)
@given(row_lists, st.integers(10, 80), st.booleans(), st.integers(0, 3))
def test_micro_batches_partition_the_batch(rows, budget, packed, extra):
    batch = pack(rows, max_tokens=40) if packed else pad(rows)
    batch = pad_batch(batch, len(batch["token_ids"]) + extra)
    pieces = list(micro_batches(batch, max_tokens=budget))
    found = {}
    for piece in pieces:
        b, length = piece["token_ids"].shape
        assert b * length <= budget or b == 1
        assert (piece["segment_ids"] > 0).sum(1).max() == length  # no padding that all rows share
        for row, source in zip(
            unpack(piece), np.unique(piece["row_ids"][piece["row_ids"] >= 0]), strict=True
        ):
            assert source not in found
            found[int(source)] = row
    assert_same([found[i] for i in range(len(rows))], rows)
    more = list(micro_batches(batch, max_tokens=budget, count=len(pieces) + 2)) if rows else []
    for blank in more[len(pieces) :]:
        assert (
            blank["token_ids"].shape == (1, 1) and unpack(blank) == [] and blank["row_ids"].tolist() == [[-1]]
        )
        assert set(blank) == set(batch)
    assert not rows or len(more) == len(pieces) + 2


def test_micro_batches_keep_columns_of_the_caller_and_refuse_too_few():
    batch = pack([make_row(5, seed=i) for i in range(4)], max_tokens=5)
    batch["reference_logprobs"] = np.pad(batch["old_logprobs"], ((0, 0), (0, 0))) * 2
    for piece in micro_batches(batch, max_tokens=10):
        np.testing.assert_array_equal(piece["reference_logprobs"], piece["old_logprobs"] * 2)
    with pytest.raises(RLlibVLMError, match="needs 2 micro-batches"):
        list(micro_batches(batch, max_tokens=10, count=1))


def test_a_computed_column_comes_back_by_row():
    rows = [make_row(n, seed=n) for n in (3, 5, 2, 6, 4)]
    batch = pack(rows, max_tokens=10)
    for found, row in zip(unpack_column(batch, batch["returns"] + 1), rows, strict=True):
        np.testing.assert_array_equal(found, row.returns + 1)


def test_to_torch_keeps_values_and_types():
    batch = pack([make_row(3, [(2, 2)])], max_tokens=4)
    tensors = to_torch(batch)
    assert tensors["images"].dtype == torch.uint8 and tensors["loss_mask"].dtype == torch.bool
    assert tensors["token_ids"].dtype == torch.int64 and tensors["advantages"].dtype == torch.float32
    for name, array in batch.items():
        np.testing.assert_array_equal(tensors[name].numpy(), array)


def test_two_thousand_turns_take_seconds_not_minutes():
    pixels = np.zeros((112, 196, 3), np.uint8)
    turns = tuple(
        Turn(
            prompt=Prompt(token_ids=np.full(150, n + 1), images=(pixels, pixels)),
            completion=Completion(
                token_ids=np.arange(20),
                logprobs=np.zeros(20, np.float32),
                policy_version=0,
                finish_reason="stop",
            ),
            parsed=ParsedAction(valid=True),
            reward=0.0,
        )
        for n in range(500)
    )
    episode = Trajectory(turns=turns, group="g", terminated=True, truncated=False, success=False)
    start = time.process_time()
    rows = rows_from_trajectory(episode)
    batch = pack(rows, max_tokens=1700)
    spent_s = time.process_time() - start
    assert batch["images"].shape == (50, 20, 112, 196, 3)
    assert spent_s < 2.0  # a quarter second on a laptop; a quadratic algorithm takes far longer
