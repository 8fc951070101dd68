"""Synthetic cities: the same from the same seed, whole routes, landmarks where the text says, two looks."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from rllib_vlm.errors import DataError
from rllib_vlm.sims.streetview.check import check_folder
from rllib_vlm.sims.streetview.city import STYLES, make_city, write_city
from rllib_vlm.sims.streetview.city_drawing import CityPainter
from rllib_vlm.sims.streetview.city_plan import heading_deg
from rllib_vlm.sims.streetview.city_style import KINDS
from rllib_vlm.sims.streetview.env import StreetView
from rllib_vlm.sims.streetview.geo import compass_word, wrapped_deg
from rllib_vlm.sims.streetview.routes import parse_route


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def write(folder: Path, seed: int = 0) -> Path:
    steps: list[tuple[int, int]] = []
    write_city(
        folder, style="nyc", routes=10, seed=seed, layout="equirectangular", width=128,
        progress=lambda done, total: steps.append((done, total)),
    )  # fmt: skip
    assert [done for done, _ in steps] == list(range(1, steps[0][1] + 1))
    return folder


@pytest.fixture(scope="module")
def city_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("city") / "one")


def test_a_city_on_disk_follows_from_its_seed_and_is_sound(city_folder: Path, tmp_path: Path) -> None:
    assert digests(city_folder) == digests(write(tmp_path / "again"))
    assert check_folder(city_folder) == []
    assert len(list((city_folder / "visual_ood" / "street_views").glob("*_h000.jpg"))) > 20
    with pytest.raises(DataError, match="not an empty folder"):
        write(city_folder)
    assert make_city("nyc", 10, 0, 128).records != make_city("nyc", 10, 1, 128).records


def test_what_is_drawn_in_memory_is_what_stands_on_disk(city_folder: Path) -> None:
    memory = StreetView(city={"style": "nyc", "routes": 10, "seed": 0, "width": 128}, resolution=24)
    disk = StreetView(data=str(city_folder), resolution=24)
    for split in ("train", "heldout", "rule_ood"):
        (first, told), (second, other) = (s.reset(seed=5, options={"split": split}) for s in (memory, disk))
        np.testing.assert_array_equal(first["images"], second["images"])
        assert told == other
    (first, _), (second, _) = (s.reset(seed=5, options={"split": "visual_ood"}) for s in (memory, disk))
    assert memory.rail == disk.rail
    middle = slice(9, 15)  # four views lack what is far above and below
    assert np.abs(first["images"][0, middle].astype(int) - second["images"][0, middle]).mean() < 25


@pytest.mark.parametrize("style", STYLES)
def test_routes_are_whole_and_no_two_alike(style: str) -> None:
    city = make_city(style, 200, 3, 128)
    assert nx.is_connected(city.plan.streets)
    routes = [parse_route(record) for record in city.records]
    assert len({(r.start, r.geocodes, r.milestone_info) for r in routes}) == 200
    everything = sorted(number for numbers in city.splits.values() for number in numbers)
    assert everything == list(range(200)) and [len(v) for v in city.splits.values()] == [160, 20, 20]
    words = {m.direction for r in routes for m in r.milestones()}
    assert len(words) >= 4
    named = [m.landmark is not None for r in routes for m in r.milestones()]
    assert np.mean(named) > 0.7


@pytest.mark.parametrize("style", STYLES)
def test_landmarks_are_where_the_text_says(style: str) -> None:
    city = make_city(style, 100, 1, 128)
    fronts = {
        house.landmark: wall.middle(i)
        for wall in city.plan.sides.values()
        for i, house in enumerate(wall.houses)
        if house.landmark
    }
    assert len(fronts) == sum(bool(h.landmark) for w in city.plan.sides.values() for h in w.houses), "unique"
    at = {city.plan.geocode(p): p for p in city.plan.panoramas.values()}
    looked = 0
    for record in city.records:
        route = parse_route(record)
        places = [at[place] for place in (route.start, *route.geocodes)]
        for i, milestone in enumerate(route.milestones()):
            assert abs(wrapped_deg(heading_deg(places[i], places[i + 1]) - milestone.heading)) <= 1
            assert milestone.direction == compass_word(milestone.heading)
            if milestone.landmark is None:
                continue
            match = re.fullmatch(r"(?:The destination )?(.+) is on your (left|right)", milestone.landmark)
            assert match is not None
            bearing = wrapped_deg(heading_deg(places[i + 1], fronts[match[1]]) - milestone.heading)
            assert (bearing > 0) == (match[2] == "right") and 15 < abs(bearing) < 150
            looked += 1
    assert looked > 200


def test_a_landmark_s_front_is_seen_where_it_stands() -> None:
    """Its colour, in the panorama's column that looks at the middle of its front, below the sign."""
    city = make_city("nyc", 40, 0, 512)
    painter = CityPainter(city.plan, 512)
    seen = 0
    for (a, b), wall in sorted(city.plan.sides.items()):
        for i, house in enumerate(wall.houses[1:-1], 1):
            if not house.landmark:
                continue
            front = wall.middle(i)
            pano = min(
                city.plan.along[a, b], key=lambda p: np.hypot(*np.subtract(city.plan.panoramas[p], front))
            )
            at = city.plan.panoramas[pano]
            pixels = painter.draw(at, 30.0)
            column = round((heading_deg(at, front) + 30.0) / 360 * 512) % 512
            kind = np.array(KINDS[house.landmark.split()[-1]])
            column_colours = pixels[:128, column].astype(int)
            assert (np.abs(column_colours - kind).max(axis=1) < 25).any(), house
            seen += 1
        if seen >= 5:
            return
    raise AssertionError("no landmarks between corners")


def test_the_two_styles_look_different() -> None:
    means = {}
    for style in STYLES:
        city = make_city(style, 10, 0, 128)
        painter = CityPainter(city.plan, 128)
        shown = [
            painter.draw(at, 0.0)[16:48].mean(axis=(0, 1)) for at in list(city.plan.panoramas.values())[::20]
        ]
        means[style] = np.array(shown)
    gap = np.abs(means["nyc"].mean(axis=0) - means["sf"].mean(axis=0)).max()
    assert gap > 3 * max(m.std(axis=0).max() for m in means.values())


def test_a_city_too_small_for_its_routes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from rllib_vlm.sims.streetview import city_routes

    monkeypatch.setattr(city_routes, "_TRIES", 1)
    with pytest.raises(DataError, match="fewer than the 400 asked for"):
        make_city("nyc", 400, 0, 128)


def test_splits_file_names_a_folder_for_visual_ood(city_folder: Path) -> None:
    splits = json.loads((city_folder / "splits.json").read_text())
    assert splits == {"train": list(range(8)), "heldout": [9], "rule_ood": [8], "visual_ood": "visual_ood"}
