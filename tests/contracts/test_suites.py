"""Every suite in the registry can be played by its simulator."""

import re

import pytest

from rllib_vlm.algorithms.validation import check_simulator, check_split
from rllib_vlm.registry import names, resolve
from rllib_vlm.sims.suite import Suite


@pytest.mark.parametrize("name", names("suites"))
def test_parts_have_names_of_their_own_and_what_the_simulator_knows(name: str) -> None:
    suite = resolve("suites", name)
    assert isinstance(suite, Suite)
    parts = [part.name for part in suite.parts]
    assert parts and len(set(parts)) == len(parts)
    for part in suite.parts:
        assert re.fullmatch(r"[a-z0-9_]+", part.name), "it is also a file's name"
        assert part.episodes > 0
        check_split(suite.simulator, part.split)
        assert not list(check_simulator(suite.simulator, dict(part.env_config)))
        for argument, values in part.only_with.items():
            for value in values:
                assert not list(check_simulator(suite.simulator, {argument: value}))
