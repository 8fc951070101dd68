"""An expert's episodes as conversations: `rllib demos SIMULATOR FILE.json --format llava`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rllib_vlm.data import ConversationWriter, Manifest
from rllib_vlm.data.demos import play
from rllib_vlm.env.conversations import conversation_of
from rllib_vlm.errors import ConfigErrors, DataError, did_you_mean
from rllib_vlm.prompts import build_history, build_parser
from rllib_vlm.prompts.renderer import PromptRenderer

_KNOWN = ("parser", "parser_options", "template", "observation")


def write_conversations(
    make_simulator: Callable[[], Any],
    file: Path,
    prompting: Mapping[str, Any],
    *,
    episodes: int,
    seed: int = 0,
    split: str = "train",
    max_actions: int = 1,
) -> int:
    """Has the simulator's expert play, and writes what it solved as conversations.

    Args:
        make_simulator: makes one simulator.
        file: of the JSON list; must not exist.
        prompting: `parser`, `parser_options`, `template` and `observation` as in an experiment's `prompting`. By
            default: JSON where answers are free text, else no_think; the default template; images, where there are any.
        episodes: how many are played.
        seed: of the first one; each next one counts up.
        split: option of `reset`.
        max_actions: actions the expert may give per turn.

    Returns:
        The number of conversations: one for each episode that was solved.

    Raises:
        ConfigErrors: `prompting` has something that is not known.
        DataError: the file exists, or no episode was solved.
        SimulatorError: the simulator has no expert.
    """
    unknown = [name for name in prompting if name not in _KNOWN]
    if unknown:
        raise ConfigErrors(
            "prompting",
            [f"no {name!r}.{did_you_mean(name, _KNOWN)} Known: {', '.join(_KNOWN)}" for name in unknown],
        )
    options = prompting.get("parser_options") or {}
    if not isinstance(options, Mapping):
        raise ConfigErrors("prompting", [f"parser_options must be a mapping of options, not {options!r}"])
    writer = ConversationWriter(file)
    simulator = make_simulator()
    try:
        actions = simulator.actions
        parser = build_parser(
            prompting.get("parser", "json" if actions.is_text else "no_think"),
            **options,
        )
        shows_images = "images" in simulator.observation_space.spaces
        renderer = PromptRenderer(
            simulator.description,
            actions,
            parser,
            build_history("full"),
            max_actions,
            template=prompting.get("template", "default"),
            observation=prompting.get("observation", "vision" if shows_images else "text"),
        )
        plan = Manifest(
            simulator=type(simulator).__name__,
            seeds=tuple(range(seed, seed + episodes)),
            split=split,
            expert={"max_actions": max_actions},
        )
        written = 0
        for index in range(episodes):
            recorded = play(simulator, index, plan)
            conversation = conversation_of(recorded, renderer, parser, actions)
            if recorded.success and conversation is not None:
                writer.write(conversation)
                written += 1
    finally:
        simulator.close()
    if not written:
        raise DataError(f"the expert solved none of {episodes} episodes, so there is nothing to imitate")
    writer.close()
    return written
