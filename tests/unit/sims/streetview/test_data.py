"""Files: routes, mappings that may be hostile, nearest panoramas, checks."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from street_data import BEND, SHORT, milestones, panoramas, place, record

from rllib_vlm.errors import DataError
from rllib_vlm.sims.streetview.check import check_folder
from rllib_vlm.sims.streetview.dataset import open_folder
from rllib_vlm.sims.streetview.geo import COMPASS, PanoramaIndex, compass_word, distance_m
from rllib_vlm.sims.streetview.mapping import read_json, read_mapping, read_pickle, write_json
from rllib_vlm.sims.streetview.routes import format_milestones, parse_route


def haversine_m(a: Any, b: Any) -> float:
    (u, v), (x, y) = ((math.radians(t) for t in p) for p in (a, b))
    h = math.sin((x - u) / 2) ** 2 + math.cos(u) * math.cos(x) * math.sin((y - v) / 2) ** 2
    return 2 * 6371000 * math.asin(math.sqrt(h))


def test_a_degree_is_as_long_as_on_wgs_84() -> None:
    assert distance_m((0.0, 0.0), (0.0, 0.001)) == pytest.approx(111.31949, abs=1e-4)
    assert distance_m((-0.0005, 0.0), (0.0005, 0.0)) == pytest.approx(110.57428, abs=1e-4)
    assert distance_m((10.0, 179.9995), (10.0, -179.9995)) == pytest.approx(109.6393, abs=1e-3)
    assert [compass_word(h) for h in range(0, 360, 45)] == list(COMPASS)
    assert compass_word(350) == "north" and compass_word(177) == "south"


def test_the_nearest_panorama_is_the_one_a_scan_finds() -> None:
    rng = np.random.default_rng(0)
    spots = [place(*p) for p in rng.uniform(0, 300, (200, 2))]
    index = PanoramaIndex({spot: str(i) for i, spot in enumerate(spots)}, radius_m=12.0)
    found = 0
    for p in rng.uniform(0, 300, (200, 2)):
        asked = place(*p)
        far = [haversine_m(asked, spot) for spot in spots]
        best = int(np.argmin(far))
        got = index.nearest(asked)
        assert got == ((spots[best], str(best)) if far[best] < 12.0 else None)
        found += got is not None
    assert 20 < found < 180
    assert index.nearest(spots[7]) == (spots[7], "7")
    assert PanoramaIndex({}).nearest(spots[0]) is None


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


def test_a_hostile_pickle_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    for name, content in {
        "runs": Hostile(tmp_path / "ran"),
        "in a value": {(1.0, 2.0): Hostile(tmp_path / "ran")},
        "numpy": {(np.float64(1), 2.0): "a"},
    }.items():
        file = tmp_path / f"{name}.pkl"
        file.write_bytes(pickle.dumps(content))
        with pytest.raises(DataError, match="refused: it asks for"):
            read_pickle(file)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [[1], {"a": "b"}, {(1.0,): "a"}, {(1.0, float("nan")): "a"}, {(91.0, 0.0): "a"}, {(1.0, 2.0): 3},
     {(1.0, 2.0): "../../etc/passwd"}, {(True, 2.0): "a"}],
)  # fmt: skip
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "m.pkl"
    file.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="is refused"):
        read_pickle(file)


def test_tuples_within_tuples_are_refused_before_they_are_hashed(tmp_path: Path) -> None:
    """Each holds the one before it twice: hashing the last takes 2 to the 59th steps."""
    file = tmp_path / "m.pkl"
    twice = b"".join(b"q%ch%c\x86" % (i, i) for i in range(1, 60))
    file.write_bytes(b"\x80\x02}K\x01" + twice + b"U\x01as.")
    with pytest.raises(DataError, match="a tuple within a tuple"):
        read_pickle(file)


def test_a_pickle_takes_no_more_memory_than_it_has_bytes(tmp_path: Path) -> None:
    """One that memorises under a number of billions made the reader in C ask for 16 bytes each."""
    file = tmp_path / "m.pkl"
    file.write_bytes(
        b"\x80\x02}r\xff\xff\xff\xff" + b"G?\xf0" + bytes(6) + b"G@" + bytes(7) + b"\x86X\x01\0\0\0as."
    )
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom rllib_vlm.sims.streetview.mapping import read_pickle\n"
        "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))\nprint(read_pickle(Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "{(1.0, 2.0): 'a'}\n", done.stderr


def test_torn_and_missing_files_are_named(tmp_path: Path) -> None:
    whole = pickle.dumps({(1.0, 2.0): "a" * 50})
    for cut in (0, 1, 5, len(whole) // 2, len(whole) - 1):
        (tmp_path / "m.pkl").write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"m\.pkl"):
            read_pickle(tmp_path / "m.pkl")
    with pytest.raises(DataError, match="neither"):
        read_mapping(tmp_path / "nowhere")
    for text in ("{", "[]", '{"panoramas": [[1, 2]]}', '{"panoramas": [[1, 2, "a/b"]]}',
                 f'{{"panoramas": [[1{"0" * 400}, 2, "a"]]}}'):  # fmt: skip
        (tmp_path / "m.json").write_text(text)
        with pytest.raises(DataError, match=r"m\.json"):
            read_json(tmp_path / "m.json")


def test_pickle_and_json_hold_the_same_mapping(tmp_path: Path) -> None:
    mapping = {(40.1234567890123, -73.9): "x", (1 / 3, 2.0): "y"}
    (tmp_path / "gps_pano_mapping.pkl").write_bytes(pickle.dumps(mapping))
    assert read_mapping(tmp_path) == mapping
    write_json(tmp_path / "gps_pano_mapping.json", read_mapping(tmp_path))
    assert read_mapping(tmp_path) == mapping


def test_milestones_are_read_as_published_and_written_so_that_they_read_the_same() -> None:
    route = parse_route(BEND)
    first, last = route.milestones()
    assert (first.heading, first.direction, first.landmark) == (10, "north", "Lucky Diner is on your right")
    assert last.landmark == "The destination Bank is on your left"
    assert route.milestones(original=True) == route.milestones()
    again = parse_route({**BEND, "milestone_info": format_milestones(route.milestones())})
    assert again.milestones() == again.milestones(original=True) == route.milestones()
    assert parse_route(SHORT).milestones()[0].landmark is None


def test_a_bracket_in_a_name_breaks_the_original_alone() -> None:
    text = milestones(("10 (north)", "Cafe :} is on your right"), ("90 (east)", "The destination: Bank"))
    route = parse_route(record([(0, 0), (0, 60), (40, 60)], text))
    assert [m.landmark for m in route.milestones()] == ["Cafe :} is on your right", "The destination: Bank"]
    with pytest.raises(DataError, match="milestone"):
        route.milestones(original=True)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"milestone_info": 3}, "milestone_info"),
        ({"start_place": {}}, "start_place has neither"),
        ({"start_place": {"relocated_geocode": [1]}}, "start_place.relocated_geocode"),
        ({"route_results": {"geocode_list": []}}, "geocode_list"),
        ({"route_results": {"geocode_list": [[1, float("nan")]]}}, "geocode_list"),
    ],
)
def test_a_broken_record_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        parse_route({**BEND, **change})


def test_a_sound_data_set_has_no_problems_and_opens(data: Path) -> None:
    assert check_folder(data) == []
    opened = open_folder(data)
    assert len(opened.routes) == 2 and opened is open_folder(str(data))


def test_every_problem_is_listed(data: Path) -> None:
    far = {**BEND, "route_results": {"geocode_list": [list(place(0, 60)), list(place(500, 0))]}}
    odd = {
        **BEND,
        "init_heading": 400,
        "milestone_info": milestones(("370 (up)", "a } b"), ("9 (north)", None)),
    }
    broken = {**BEND, "milestone_info": '{\n"landmarks": "x"\n}'}
    (data / "route_infos.json").write_text(json.dumps([[BEND, far, odd, broken, 7], 5]))
    names = sorted(panoramas().values())
    (data / "street_views" / f"{names[0]}.jpg").unlink()
    (data / "street_views" / f"{names[1]}.metadata.json").write_text("{}")
    (data / "street_views" / f"{names[2]}.jpg").write_bytes(b"no jpeg")
    (data / "splits.json").write_text('{"train": [0, 1], "heldout": [1]}')
    problems = check_folder(data)
    for part in (
        "route 1: no panorama within 20 m of the place 2", "route 2: init_heading 400", "milestone 1: heading 370",
        "'up' is not one of", "route 2: milestone 1: a '}'", "route 3: milestone 1 has no to_next", "route 4: ",
        f"{names[0]}: neither", f"{names[1]}.metadata.json", f"{names[2]}.jpg: ", "route 1 is in heldout and in train",
    ):  # fmt: skip
        assert sum(part in problem for problem in problems) == 1, part
    assert len(problems) == 11
    with pytest.raises(DataError, match="1 broken routes.*rllib data check"):
        open_folder(data)


def test_numbers_and_sizes_beyond_reason_are_problems_like_others(data: Path) -> None:
    huge = {**BEND, "milestone_info": milestones(("9" * 5000 + " (north)", None), ("9 (north)", None))}
    (data / "route_infos.json").write_text(json.dumps([[huge], 1]))
    names = sorted(panoramas().values())
    (data / "street_views" / f"{names[0]}.metadata.json").write_text(f'{{"rotation": 1{"0" * 400}}}')
    jpeg = bytearray((data / "street_views" / f"{names[1]}.jpg").read_bytes())
    at = jpeg.index(b"\xff\xc0") + 5  # height and width of the frame
    jpeg[at : at + 4] = b"\xff\xff\xff\xff"
    (data / "street_views" / f"{names[1]}.jpg").write_bytes(jpeg)
    problems = check_folder(data)
    for part in ("route 0: milestone 1 has no to_next", f"{names[0]}.metadata.json: OverflowError",
                 f"{names[1]}.jpg: Image size"):  # fmt: skip
        assert sum(part in problem for problem in problems) == 1, part
    assert len(problems) == 3 and all(len(problem) < 300 for problem in problems)


def test_splits_without_a_file_share_no_route_with_training(data: Path) -> None:
    records = [record([(0, n), (0, 60)], BEND["milestone_info"]) for n in range(40)]
    (data / "route_infos.json").write_text(json.dumps([records, 40]))
    opened = open_folder(data)
    train, heldout = (set(opened.split(name)[1]) for name in ("train", "heldout"))
    assert train and heldout and not train & heldout and len(train | heldout) == 40
    assert len(opened.split("heldout", whole=True)[1]) == 40
    assert set(opened.split("rule_ood")[1]) == heldout
    with pytest.raises(DataError, match="no routes in the split 'visual_ood'.*visual_ood: DIR"):
        opened.split("visual_ood")
