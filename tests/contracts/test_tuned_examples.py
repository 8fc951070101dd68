"""No shipped configuration may rot: every example and every fragment is validated, each on its own."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from rllib_vlm.config.loader import load, validate
from rllib_vlm.config.resources import examples, fragments
from rllib_vlm.core.step_guard import StepGuard

EXAMPLES = examples()
FRAGMENTS = fragments()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.vllm) if name.endswith("_vllm") else name for name in EXAMPLES],
)
def test_example_is_valid(name: str):
    if name.endswith("_vllm") and find_spec("vllm") is None:
        pytest.skip("needs vLLM, which is not installed: make test-engines")
    assert validate(EXAMPLES[name]), "an example holds at least one experiment"


@pytest.mark.parametrize("name", ["spoc", "spoc_grpo", "frozen_lake_ppo", "frozen_lake_grpo"])
def test_updates_that_run_away_are_cut_short(name: str):
    (experiment,) = load(EXAMPLES[name])
    assert StepGuard(**experiment.config.step_guard).max_kl == 0.05


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_says_how_to_run_it(name: str):
    text = EXAMPLES[name].read_text(encoding="utf-8")
    header = text.split("\n\n")[0] if EXAMPLES[name].suffix == ".py" else _comment(text)
    assert f"tuned_examples/{name}{EXAMPLES[name].suffix}" in header, "the header gives the exact command"


@pytest.mark.parametrize("name", FRAGMENTS)
def test_fragment_is_valid(name: str):
    assert validate(FRAGMENTS[name]) == []


def test_there_are_fragments():
    assert {"models/tiny", "hardware/cpu_2"} <= FRAGMENTS.keys()
    assert all(isinstance(f, Path) for f in FRAGMENTS.values())


def _comment(text: str) -> str:
    lines = text.splitlines()
    end = next((i for i, line in enumerate(lines) if line and not line.startswith("#")), len(lines))
    return "\n".join(lines[:end])
