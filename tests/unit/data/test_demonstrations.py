import json
import math
import pickle
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from rllib_vlm.data import DemonstrationReader, DemonstrationWriter
from rllib_vlm.data.schema import ADDED, SCHEMA, Manifest
from rllib_vlm.errors import DataError, UnknownNameError


@pytest.fixture
def folder(tmp_path, manifest, make_episode):
    """Ten episodes in shards of four; episode 3 failed."""
    with DemonstrationWriter(tmp_path / "demos", manifest, episodes_per_shard=4) as writer:
        for index in writer.missing:
            writer.write(make_episode(index, turns=1 + index % 3, success=index != 3))
    return tmp_path / "demos"


def assert_same(one, other):
    assert (one.index, one.task_seed, one.instruction) == (other.index, other.task_seed, other.instruction)
    assert (one.terminated, one.truncated, one.success) == (other.terminated, other.truncated, other.success)
    assert one.final_text == other.final_text
    np.testing.assert_equal(dict(one.metrics), dict(other.metrics))
    np.testing.assert_array_equal(one.final_images, other.final_images)
    assert len(one.turns) == len(other.turns)
    for a, b in zip(one.turns, other.turns, strict=True):
        assert (a.demonstration, a.text, a.reward) == (b.demonstration, b.text, b.reward)
        np.testing.assert_array_equal(a.images, b.images)


def test_episodes_come_back_as_they_were_written(folder, make_episode):
    reader = DemonstrationReader(folder)
    assert len(reader) == 10
    for index, episode in enumerate(reader):
        assert_same(episode, make_episode(index, turns=1 + index % 3, success=index != 3))
    assert math.isnan(reader.read(0).metrics["sel"])


def test_folders_of_the_first_version_are_read_without_what_came_later(folder, make_episode):
    for path in folder.glob("*.parquet"):
        table = pq.read_table(path).drop_columns(list(ADDED))
        groups = np.flatnonzero(np.array(table.column("turn")) == 0)
        with pq.ParquetWriter(path, table.schema) as writer:
            for first, end in zip(groups, [*groups[1:], table.num_rows], strict=True):
                writer.write_table(table.slice(first, end - first))
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 1}))
    with DemonstrationReader(folder) as reader:
        written = make_episode(5, turns=3).turns
        for read in (reader.read(5), reader.read(5, columns=["images", "actions", "mentions"])):
            assert [t.demonstration.actions for t in read.turns] == [t.demonstration.actions for t in written]
            assert not any(t.demonstration.detections or t.demonstration.mentions for t in read.turns)


def test_shards_hold_at_most_what_was_asked_for(folder):
    names = sorted(path.name for path in folder.glob("*.parquet"))
    assert names == [f"episodes-{a:08d}-{b:08d}.parquet" for a, b in ((0, 4), (4, 8), (8, 10))]


def test_manifest_says_where_the_episodes_come_from_and_how_many_there_are(folder):
    body = json.loads((folder / "manifest.json").read_text())
    assert body["format"] == "rllib_vlm.demonstrations"
    assert body["version"] == 2
    assert body["seeds"] == [[100, 10]]
    assert body["counts"] == {"episodes": 10, "turns": 19, "successes": 9}
    assert body["complete"] is True


def test_any_parquet_reader_sees_one_row_per_turn(folder):
    table = pq.read_table(folder / "episodes-00000004-00000008.parquet")
    assert table.schema.equals(SCHEMA)
    assert table.column("episode").to_pylist() == [4, 4, 5, 5, 5, 6, 7, 7]
    assert table.column("turn").to_pylist() == [0, 1, 0, 1, 2, 0, 0, 1]
    assert table.column("terminated").to_pylist() == [False, True, False, False, True, True, False, True]
    assert [t is None for t in table.column("final_text").to_pylist()] == [True, False] + [True] * 2 + [
        False,
        False,
        True,
        False,
    ]


def test_random_access(folder, make_episode):
    reader = DemonstrationReader(folder)
    for index in (9, 0, 5, 5):
        assert_same(reader.read(index), make_episode(index, turns=1 + index % 3))
    with pytest.raises(DataError, match="no episode 10"):
        reader.read(10)


def test_shuffling_is_a_permutation_that_follows_the_seed(folder):
    reader = DemonstrationReader(folder)

    def order(seed):
        return [e.index for e in reader.iterate(shuffle=True, seed=seed, columns=["actions"])]

    assert sorted(order(1)) == list(range(10))
    assert order(1) == order(1) != order(2)
    assert order(1) != list(range(10))


def test_only_successful_episodes(folder):
    reader = DemonstrationReader(folder)
    assert [e.index for e in reader.iterate(successful_only=True, columns=[])] == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_projection_reads_only_what_was_asked_for(folder):
    episode = DemonstrationReader(folder).read(2, columns=["actions", "success"])
    assert episode.success
    assert [t.demonstration.actions for t in episode.turns] == [("left",), ("left", "down"), ("left",)]
    assert episode.turns[0].images == () and episode.turns[0].text == "" and episode.instruction == ""
    with pytest.raises(UnknownNameError, match="Did you mean 'actions'"):
        DemonstrationReader(folder).read(2, columns=["action"])


def test_images_can_stay_compressed(folder):
    turn = DemonstrationReader(folder).read(2, decode_images=False).turns[0]
    assert turn.images == ()
    assert [data[8:12] for data in turn.encoded_images] == [b"WEBP", b"WEBP"]


def test_compressed_episodes_can_be_written_again(folder, tmp_path, manifest, make_episode):
    with DemonstrationWriter(tmp_path / "copy", manifest) as writer:
        for episode in DemonstrationReader(folder).iterate(decode_images=False):
            writer.write(episode)
    assert_same(DemonstrationReader(tmp_path / "copy").read(4), make_episode(4, turns=2))


def test_reader_travels_to_another_process(folder, make_episode):
    reader = pickle.loads(pickle.dumps(DemonstrationReader(folder)))
    assert_same(reader.read(1), make_episode(1, turns=2))


def test_writing_goes_on_at_the_next_unwritten_episode(tmp_path, manifest, make_episode):
    def write_until_interrupted():
        with DemonstrationWriter(tmp_path, manifest, episodes_per_shard=4) as writer:
            for index in writer.missing:
                if index == 6:
                    raise KeyboardInterrupt
                writer.write(make_episode(index))

    with pytest.raises(KeyboardInterrupt):
        write_until_interrupted()
    with DemonstrationWriter(tmp_path, manifest, episodes_per_shard=4) as writer:
        assert writer.missing == (6, 7, 8, 9)
        assert writer.ranges() == [(6, 10)]
        for index in writer.missing:
            writer.write(make_episode(index))
    assert [e.index for e in DemonstrationReader(tmp_path)] == list(range(10))


def test_episodes_may_be_written_in_any_order_but_once(tmp_path, manifest, make_episode):
    with DemonstrationWriter(tmp_path, manifest) as writer:
        for index in (5, 6, 0, 9, 1, 2, 3, 4, 8, 7):
            writer.write(make_episode(index))
        with pytest.raises(DataError, match="already written"):
            writer.write(make_episode(5))
    assert [e.index for e in DemonstrationReader(tmp_path)] == list(range(10))


def test_a_killed_writer_leaves_nothing_half_written(tmp_path, manifest, make_episode):
    with DemonstrationWriter(tmp_path, manifest) as writer:
        writer.write(make_episode(0))
    (tmp_path / ".tmp-1-episodes-00000001-00000003.parquet").write_bytes(b"PAR1 torn")
    with DemonstrationWriter(tmp_path, manifest) as writer:
        assert writer.missing == tuple(range(1, 10))
    assert not list(tmp_path.glob(".tmp-*"))


def test_more_seeds_may_be_added_at_the_end(folder, manifest, make_episode):
    longer = replace(manifest, seeds=(*manifest.seeds, 500))
    with DemonstrationWriter(folder, longer) as writer:
        assert writer.missing == (10,)
        writer.write(replace(make_episode(0), index=10, task_seed=500))
    assert DemonstrationReader(folder).read(10).task_seed == 500
    with pytest.raises(DataError, match="choose another folder"):
        DemonstrationWriter(folder, manifest)


@pytest.mark.parametrize(
    "change",
    [
        {"simulator": "household"},
        {"env_config": {"size": 5}},
        {"split": "heldout"},
        {"expert": {"max_actions": 1}},
    ],
)
def test_other_settings_do_not_mix(folder, manifest, change):
    with pytest.raises(DataError, match=next(iter(change))):
        DemonstrationWriter(folder, replace(manifest, **change))


def test_two_writers_do_not_mix(tmp_path, manifest):
    with DemonstrationWriter(tmp_path, manifest), pytest.raises(DataError, match="another process"):
        DemonstrationWriter(tmp_path, manifest)


def test_a_folder_of_other_things_is_left_alone(tmp_path, manifest):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(DataError, match="not empty"):
        DemonstrationWriter(tmp_path, manifest)


def test_an_incomplete_folder_is_read_only_when_asked_for(tmp_path, manifest, make_episode):
    with DemonstrationWriter(tmp_path, manifest) as writer:
        writer.write(make_episode(4))
    with pytest.raises(DataError, match="1 of 10 episodes.*rllib demos"):
        DemonstrationReader(tmp_path)
    assert DemonstrationReader(tmp_path, allow_partial=True).indices == (4,)


def test_missing_folders_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match="does not exist.*rllib demos"):
        DemonstrationReader(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no manifest\.json.*rllib demos"):
        DemonstrationReader(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "lerobot"}, "'lerobot'"),
        ({"version": 3}, "Upgrade"),
        ({"version": "1"}, "Upgrade"),
        ({"seeds": None}, "damaged"),
        ({"seeds": [[3, 2], [4, 1]]}, "seed 4 twice"),
        ({"counts": {}}, "damaged"),
    ],
)
def test_foreign_newer_and_damaged_manifests_are_refused(folder, change, message):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        DemonstrationReader(folder)


def test_a_torn_manifest_is_refused(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(DataError, match="not JSON"):
        DemonstrationReader(folder)


@pytest.mark.parametrize("cut", [10, 2000])
def test_a_torn_shard_is_refused_and_can_be_made_again(folder, manifest, make_episode, cut):
    shard = folder / "episodes-00000004-00000008.parquet"
    shard.write_bytes(shard.read_bytes()[:-cut])
    with pytest.raises(DataError, match="Delete it and run"):
        DemonstrationReader(folder)
    shard.unlink()
    with DemonstrationWriter(folder, manifest) as writer:
        assert writer.missing == (4, 5, 6, 7)
        for index in writer.missing:
            writer.write(make_episode(index))
    assert len(DemonstrationReader(folder)) == 10


def test_damaged_bytes_are_refused_when_read(folder):
    shard = folder / "episodes-00000000-00000004.parquet"
    data = bytearray(shard.read_bytes())
    at = data.index(b"WEBP") - 8
    data[at : at + 12] = b"x" * 12
    shard.write_bytes(data)
    with pytest.raises(DataError, match="damaged at episode 0"):
        DemonstrationReader(folder).read(0)


def test_shards_that_overlap_or_lie_are_refused(folder):
    shard = folder / "episodes-00000004-00000008.parquet"
    double = folder / "episodes-00000003-00000007.parquet"
    double.write_bytes(shard.read_bytes())
    with pytest.raises(DataError, match="same episodes"):
        DemonstrationReader(folder)
    double.unlink()
    shard.rename(folder / "episodes-00000004-00000007.parquet")
    with pytest.raises(DataError, match="as its name says"):
        DemonstrationReader(folder, allow_partial=True)


def test_settings_must_be_plain_json(tmp_path, manifest):
    with pytest.raises(DataError, match="plain JSON"):
        DemonstrationWriter(tmp_path, replace(manifest, env_config={"x": object()}))


def test_manifest_without_seeds_is_refused(tmp_path):
    with pytest.raises(DataError, match="no episodes"):
        DemonstrationWriter(tmp_path, Manifest(simulator="frozen_lake", seeds=()))
