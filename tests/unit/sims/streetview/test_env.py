"""The street simulator: parity by golden transcripts, what is corrected, and that nothing ahead is told."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from street_data import BEND, SHORT, write_data

from rllib_vlm.errors import ConfigErrors, SimulatorError, UnknownNameError
from rllib_vlm.prompts import Exchange, build_history, build_parser
from rllib_vlm.prompts.renderer import PromptRenderer
from rllib_vlm.sims.streetview.env import StreetView
from rllib_vlm.types import Said

TINY = {"style": "nyc", "routes": 10, "seed": 0, "width": 128}
ORACLE = ("current_instruction", "instruction_idx", "gt_action", "current_obs", "Verify Info", "is_success")


def wrong(action: str) -> str:
    return "stop()" if action != "stop()" else "forward()"


def said(kind: str, street: StreetView) -> str:
    """A model's raw answer of a kind, at the present stop."""
    node = street.node
    seen, told = node.observation, node.instruction
    if kind == "malformed, no action":
        return "I would walk on."
    if kind == "malformed, right":  # a trailing comma, as in the answers the original's models learn
        fields = {"current observation": seen, "current instruction": told, "action": node.action}
        return "{\n" + "".join(f'  "{name}": "{value}",\n' for name, value in fields.items()) + "}"
    if kind == "malformed, no blank":
        return f'{{"current observation":"{seen}","action":"{node.action}",}}'
    action = node.action if kind == "right" else wrong(node.action)
    if kind == "wrong, says intersection":
        seen = "You observe an intersection"
    if kind == "wrong, says nothing of it":
        seen = "a street"
    if kind == "wrong, number":
        return json.dumps({"current observation": 7, "action": action})
    return json.dumps({"current observation": seen, "current instruction": told, "action": action})


SCRIPT = (
    "right", "wrong", "malformed, right", "right", "wrong, says intersection", "malformed, no blank", "right",
    "wrong, says nothing of it", "right", "wrong, number", "right", "malformed, no action", "right", "malformed, right",
    "wrong, says intersection", "right", "right", "wrong", "wrong", "wrong", "wrong", "wrong", "right", "right",
)  # fmt: skip


def transcript(street: StreetView, route: int, script: tuple[str, ...]) -> dict[str, Any]:
    observation, _ = street.reset(seed=7, options={"route": route})
    calls = []
    record = {
        "instruction": street.rail.text,
        "rail": [[n.pano_id, round(n.heading), n.action, n.observation, n.number] for n in street.rail.nodes],
        "text": observation["text"],
        "calls": calls,
    }
    for kind in script:
        answer = said(kind, street)
        observation, reward, terminated, truncated, _ = street.step_text(answer)
        oracle = street.oracle()
        calls.append({
            "kind": kind, "answer": answer, "reward": reward, "terminated": terminated, "truncated": truncated,
            **{key: oracle[key] for key in ORACLE}, "text": observation["text"],
        })  # fmt: skip
        if terminated:
            break
    return record


@pytest.mark.parametrize("action_set", ["absolute", "relative"])
@pytest.mark.parametrize("verify_iter", [1, 2, 3])
def test_transitions_of_the_original(
    golden: Callable[[str, str], None], data: Path, action_set: Any, verify_iter: int
) -> None:
    """Every file was compared, call by call, with the original's own code on the same data (docs/streetview.md)."""
    street = StreetView(
        data=str(data), mode="parity", observation="text", action_set=action_set, verify_iter=verify_iter
    )
    records = [transcript(street, route, SCRIPT) for route in (0, 1)]
    text = json.dumps(records, indent=1, ensure_ascii=False) + "\n"
    golden(f"streetview/{action_set}_{verify_iter}.json", text)


def parity(data: Path, **settings: Any) -> StreetView:
    street = StreetView(data=str(data), mode="parity", resolution=16, **settings)
    street.reset(seed=1, options={"route": 0})
    return street


def test_the_third_call_at_a_stop_is_not_graded_and_looks_from_the_old_place(data: Path) -> None:
    street = parity(data, verify_iter=2)
    bad = json.dumps({"action": "stop()"})
    assert [street.step_text(bad)[1:4] for _ in range(2)] == [(-1.0, False, False)] * 2
    place = street._place
    observation, reward, terminated, truncated, info = street.step_text(
        json.dumps({"action": street.node.action})
    )
    assert (reward, terminated, truncated, info["success"]) == (-1.0, False, True, False)
    assert street.position == 1 and street._place == place
    assert observation["text"].startswith("O_1: You observe an image of 4 views; \nA_1: \n")
    assert observation["text"].endswith("because Exceed maximum verify steps")
    for _ in range(4):  # tries are now without limit
        assert street.step_text(bad)[1:4] == (-1.0, False, False)
    assert street.step_text(json.dumps({"action": street.node.action}))[1] == 1.0


def test_at_the_destination_both_ends_come_together(data: Path) -> None:
    street = parity(data, verify_iter=1)
    while street.node.action != "stop()":
        assert street.step_text(json.dumps({"action": street.node.action}))[1:4] == (1.0, False, False)
    street.step_text("x")
    *_, terminated, truncated, info = street.step_text("x")
    assert terminated and truncated and info["success"] is False


def test_no_tries_truncate_the_first_call_in_parity_alone(data: Path) -> None:
    street = parity(data, verify_iter=0)
    assert street.step_text(json.dumps({"action": street.node.action}))[1:4] == (-1.0, False, True)
    with pytest.raises(ConfigErrors, match="verify_iter"):
        StreetView(data=str(data), verify_iter=0)
    with pytest.raises(SimulatorError, match="parity"):
        StreetView(data=str(data)).step_text("x")


def test_parity_turns_grade_the_answer_heard(data: Path) -> None:
    street = parity(data)
    street.hear(Said(text='{"current observation": "an intersection", "action": "stop()"}'))
    assert street.turn(("turn_direction(north)",))[1] == -1.5
    assert street.turn(("turn_direction(north)",))[1] == 1.0


# ----- mode fixed


def fixed(data: Path, **settings: Any) -> StreetView:
    street = StreetView(data=str(data), resolution=16, drop_rate=0.0, **settings)
    street.reset(seed=1, options={"route": 0})
    return street


@pytest.mark.parametrize("observation", ["vision", "text", "both"])
def test_it_is_a_gymnasium_environment(data: Path, observation: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        check_env(StreetView(data=str(write_data(data / "more", [BEND] * 40)), observation=observation, resolution=16,
                             render_mode="rgb_array"), skip_render_check=True)  # fmt: skip


@pytest.mark.parametrize("action_set", ["absolute", "relative"])
def test_the_expert_arrives(data: Path, action_set: Any) -> None:
    street = fixed(data, action_set=action_set)
    expert, total, over = street.expert(), 0.0, False
    while not over:
        said = expert()
        assert said.observation and said.reasoning in street.rail.instructions
        _, reward, terminated, truncated, info = street.turn(said.actions)
        total, over = total + reward, terminated or truncated
    assert terminated and info["success"] is True and total == len(street.rail.nodes)
    assert info["metrics"]["step_accuracy"] == info["metrics"]["progress"] == 1.0
    assert expert().actions == ()
    with pytest.raises(SimulatorError, match="over"):
        street.idle()


def test_wrong_answers_cost_tries_and_the_last_one_the_episode(data: Path) -> None:
    street = fixed(data, verify_iter=2)
    observation, reward, terminated, truncated, info = street.turn(("stop()",))
    assert (reward, terminated, truncated) == (-1.0, False, False) and "success" not in info
    assert observation["text"].endswith("That action is wrong here.")
    assert street.turn((street.node.action,))[1] == 1.0  # tries begin anew
    assert street.turn(())[1:4] == (-1.0, False, False)
    observation, reward, terminated, truncated, info = street.turn(("stop()",))
    assert (reward, terminated, truncated, info["success"], street.position) == (-1.0, False, True, False, 1)
    assert info["metrics"]["incorrect_action"] == 3.0 and info["metrics"]["step_accuracy"] == 0.25


def test_what_an_answer_says_is_graded(data: Path) -> None:
    street = fixed(data, verify_iter=9, grade_instruction=True, reward_weights={"incorrect_instruction": -3})
    for parts, reward in (
        ({"observation": '"an intersection"'}, -1.5),
        ({"observation": '"a street"', "reasoning": '"Turn back."'}, -3.0),
        ({"observation": '"a street"', "reasoning": f'"{street.node.instruction}"'}, -1.0),
        ({}, -1.0),
    ):
        street.hear(Said(text="", parts=parts))
        assert street.turn(("stop()",))[1] == reward
    street.hear(Said(text="", parts={"observation": "an intersection"}))
    assert street.turn((street.node.action, "stop()"))[1] == 0.0, "what is said is about the first action"


def test_outcome_only(data: Path) -> None:
    street = fixed(data, reward="outcome")
    rewards = [street.turn(("stop()",))[1]]
    while not street.over:
        rewards.append(street.turn((street.node.action,))[1])
    assert rewards == [0.0] * (len(rewards) - 1) + [1.0]


def test_views_are_front_right_back_left(data: Path) -> None:
    """Columns of these panoramas are green where they look from 0 to 180 degrees."""
    street = fixed(data)
    street.turn((street.node.action,))  # faces 10 degrees
    grid = street.turn(())[0]["images"][0]
    at = {"front": (8, 8), "right": (8, 29), "back": (29, 8), "left": (29, 29)}
    green = {name: bool(grid[y, x, 1] > 64) for name, (y, x) in at.items()}
    assert green == {"front": True, "right": True, "back": False, "left": False}
    original = parity(data)
    original.step_text(json.dumps({"action": original.node.action}))
    grid = original._picture()
    green = {name: bool(grid[y, x, 1] > 64) for name, (y, x) in at.items()}
    assert green == {
        "front": False,
        "right": False,
        "back": True,
        "left": True,
    }  # behind, front left, front right, behind


# ----- nothing ahead is told


def prompts(street: StreetView, turns: list[tuple[str, ...]]) -> list[str]:
    """Every prompt of an episode, as the policy would read it."""
    parser = build_parser("json_grounding")
    renderer = PromptRenderer(street.description, street.actions, parser, build_history("full"), 1)
    observation, info = street.reset(seed=1, options={"route": 0})
    texts, past = [], []
    for actions in [*turns, ()]:
        rendered = renderer.render(info["instruction"], past, observation["text"], ())
        texts.append("\n".join(m.text for m in rendered.messages))
        past.append(Exchange(text=observation["text"], images=(), answer=" ".join(actions)))
        if actions:
            observation = street.turn(actions)[0]
    return texts


@pytest.mark.parametrize("mode", ["fixed", "parity"])
def test_prompts_do_not_depend_on_the_oracle_s_answers_to_come(
    data: Path, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With other right actions and landmarks ahead, everything said up to there is the same."""
    street = StreetView(data=str(data), mode=mode, resolution=16, drop_rate=0.0)
    street.reset(seed=1, options={"route": 0})
    right = [(node.action,) for node in street.rail.nodes[:3]]
    told = prompts(street, [("stop()",), *right])

    def other(*arguments: Any) -> Any:
        rail = build(*arguments)
        changed = [
            replace(n, action="SECRET", landmark="SECRET", instruction="SECRET") for n in rail.nodes[3:]
        ]
        return replace(rail, nodes=(*rail.nodes[:3], *changed))

    from rllib_vlm.sims.streetview import env

    build = env.build_rail
    monkeypatch.setattr(env, "build_rail", other)
    assert prompts(street, [("stop()",), *right]) == told
    assert street.node.action == "SECRET"
    assert not any("SECRET" in text for text in told)


@pytest.mark.parametrize("observation", ["vision", "text", "both"])
def test_info_holds_no_answers(data: Path, observation: Any) -> None:
    street = StreetView(data=str(data), observation=observation, resolution=16)
    _, info = street.reset(seed=1, options={"route": 0})
    assert set(info) == {"instruction", "route", "split", "rail_length", "state", "anchor"}
    while not street.over:
        node = street.node
        after = street.turn((node.action,))[4]
        assert set(after) <= {"metrics", "grades", "state", "anchor", "success"}
        for value in (*info.values(), *after.values()):
            if value is not info["instruction"]:
                assert node.action not in str(value) and node.landmark not in str(value)


def test_an_intersection_is_told_by_text_in_parity_alone(data: Path) -> None:
    for mode, told in (("fixed", False), ("parity", True)):
        street = StreetView(data=str(data), mode=mode, resolution=16)  # type: ignore[arg-type]
        observation, _ = street.reset(seed=1, options={"route": 0})
        while not street.node.intersection:
            observation = street.turn((street.node.action,))[0]
        present = observation["text"].rsplit("O_", 1)[1]
        assert ("intersection" in present) is told and "Lucky Diner" not in present


def test_without_an_account_the_text_is_of_the_present_stop_alone(data: Path) -> None:
    for observation, views in (("text", False), ("both", True)):
        street = StreetView(data=str(data), observation=observation, resolution=16, account=False)  # type: ignore[arg-type]
        text = street.reset(seed=1, options={"route": 0})[0]["text"]
        while not street.over:
            node = street.node
            told = text.removeprefix("You observe an image of 4 views; ")
            assert (told != text) is views
            assert ("You observe an intersection" in told) is node.intersection
            assert node.landmark in told or node.intersection
            assert "O_1" not in text and "\n" not in text and node.action not in text
            assert street.turn(())[0]["text"] == f"{text}\nYour answer named no action in the asked form."
            text = street.turn((node.action,))[0]["text"]


# ----- seeds, splits, arguments


def test_held_out_routes_come_in_order_and_splits_share_none() -> None:
    street = StreetView(city=TINY, observation="text")
    seen: dict[str, list[Any]] = {}
    for split in ("train", "heldout", "rule_ood", "visual_ood"):
        data, numbers = street.settings.data.split(split)
        seen[split] = []
        for seed in range(2 * len(numbers)):
            street.reset(seed=seed, options={"split": split})
            route = data.routes[street.route_number]
            seen[split].append((route.start, route.geocodes))
        if split != "train":
            assert len(set(seen[split][: len(numbers)])) == len(numbers)
    for one in seen:
        assert not any(set(seen[one]) & set(seen[other]) for other in seen if other != one)


def test_the_seed_decides_everything() -> None:
    one, other = (StreetView(city=TINY, resolution=16) for _ in range(2))
    other.reset(seed=99)
    for seed in range(4):
        first, second = one.reset(seed=seed), other.reset(seed=seed)
        np.testing.assert_array_equal(first[0]["images"], second[0]["images"])
        assert first[1] == second[1] and one.rail == other.rail
    assert len({one.reset(seed=s)[1]["anchor"] for s in range(9)}) == 9


def test_every_wrong_argument_is_named(data: Path) -> None:
    with pytest.raises(ConfigErrors) as error:
        StreetView(
            mode="fixd", split="test", observation="smell", action_set="polar", resolution=8, verify_iter=0,  # type: ignore[arg-type]
            relocation=1, drop_rate=2, straight_line_length=0, reward="gold", reward_weights={"x": 1},  # type: ignore[arg-type]
            grade_instruction=None, account=1, city={"style": "paris", "rotes": 3, "width": 130},  # type: ignore[arg-type]
        )  # fmt: skip
    assert len(error.value.errors) == 16
    assert any("Did you mean 'fixed'" in e for e in error.value.errors)
    for config, complaint in (
        ({"data": str(data), "city": {}}, "both"), ({"data": "nowhere"}, "nowhere"), ({"data": 3}, "path"),
        ({"mode": "parity", "reward": "outcome"}, "original"),
        ({"mode": "parity", "account": False}, "account=False"), ({"city": {"routes": 3}}, "from 10"),
    ):  # fmt: skip
        with pytest.raises(ConfigErrors, match=complaint):
            StreetView.check_config(config)


def test_grades_tell_which_try_an_answer_was(data: Path) -> None:
    street = StreetView(data=str(data), observation="text", verify_iter=2)
    street.reset(seed=0, options={"route": 0})
    right = [node.action for node in street.rail.nodes]
    given = []
    for action in (right[0], wrong(right[1]), right[1], wrong(right[2]), wrong(right[2])):
        given += street.turn((action,))[4]["grades"]
    assert [(g["attempt"], g["correct"]) for g in given] == [
        (1, True), (1, False), (2, True), (1, False), (2, False),
    ]  # fmt: skip
    assert {g["verdict"] for g in given} == {"correct_action", "incorrect_action"}
    street.reset(seed=0, options={"route": 0})
    both = street.turn((right[0], right[1]))[4]["grades"]
    assert [g["correct"] for g in both] == [True, True]


def test_visual_ood_may_be_a_folder_of_its_own(data: Path, tmp_path: Path) -> None:
    other = write_data(tmp_path / "other", [SHORT])
    street = StreetView(data=str(data), visual_ood=str(other), observation="text")
    for seed in (0, 1):
        _, info = street.reset(seed=seed, options={"split": "visual_ood"})
        assert info["route"] == 0 and street.rail.text.count("Intersection Books")
    with pytest.raises(ConfigErrors, match="visual_ood: .*nowhere"):
        StreetView(data=str(data), visual_ood="nowhere")


def test_options_of_reset(data: Path) -> None:
    street = StreetView(data=str(data), observation="text")
    with pytest.raises(UnknownNameError, match="rout"):
        street.reset(options={"rout": 1})
    for options in ({"route": 2}, {"route": True}, {"route": "x"}, {"split": "trian"}, {"split": "rule_ood"}):
        with pytest.raises(SimulatorError):
            street.reset(seed=0, options=options)
    assert street.reset(seed=0, options={"route": 1})[1]["route"] == 1
    assert SHORT["milestone_info"] == street.settings.data.routes[1].milestone_info
    with pytest.raises(SimulatorError, match="begun"):
        StreetView(data=str(data), observation="text").idle()
    with pytest.raises(SimulatorError, match="no action"):
        street.step(99)
