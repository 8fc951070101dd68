"""Conversations and episodes: what an expert's episode reads like, and imitation of what was said elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_vlm.core.columns import GROUP, METRICS, SUCCESS, TASK_SEED, VLMColumns
from rllib_vlm.data import Conversation, RecordedEpisode
from rllib_vlm.models.base import VLMFamily
from rllib_vlm.prompts.base import ActionParser, Exchange
from rllib_vlm.prompts.renderer import PromptRenderer, PromptTooLong
from rllib_vlm.types import ActionSet, Completion, Message, ParsedAction


def told_episode(
    conversation: Conversation,
    index: int,
    family: VLMFamily,
    complete: Callable[[str], Completion],
    *,
    max_prompt_tokens: int | None = None,
) -> SingleAgentEpisode:
    """The episode whose turns are a conversation's answers, each after everything said before it.

    Args:
        conversation: as read from disk.
        index: its number, by which the episode goes.
        family: makes prompts of messages.
        complete: a text as if the model had said it.
        max_prompt_tokens: longest prompt; nothing is cut.

    Raises:
        PromptTooLong: an answer has more than that before it.
    """
    asked = [message.text for message in conversation.messages if message.role == "user"]
    episode = SingleAgentEpisode()
    episode.custom_data.update(
        {
            GROUP: f"recorded/{index}",
            TASK_SEED: index,
            SUCCESS: True,
            METRICS: {},
            "num_actions": len(asked),
        }
    )
    episode.add_env_reset(observation={"text": asked[0]}, infos={"instruction": ""})
    before: list[Message] = []
    for message in conversation.messages:
        if message.role != "assistant":
            before.append(message)
            continue
        prompt, answer = family.encode(before), complete(message.text)
        if max_prompt_tokens is not None and len(prompt.token_ids) > max_prompt_tokens:
            raise PromptTooLong(
                "tokens",
                len(prompt.token_ids),
                max_prompt_tokens,
                f"raise max_prompt_tokens, or shorten conversation {conversation.id}",
            )
        turn = len(episode)
        last = turn + 1 == len(asked)
        episode.add_env_step(
            observation={"text": "" if last else asked[turn + 1]},
            action=answer,
            reward=0.0,
            infos={},
            terminated=last,
            truncated=False,
            extra_model_outputs={
                VLMColumns.PROMPT: prompt,
                VLMColumns.PARSED: ParsedAction(valid=True, actions=(message.text,)),
                VLMColumns.FOLLOWUPS: [],
            },
        )
        before.append(replace(message, token_ids=answer.token_ids))
    return episode


def conversation_of(
    recorded: RecordedEpisode, renderer: PromptRenderer, parser: ActionParser, actions: ActionSet
) -> Conversation | None:
    """What a policy that sees all past turns would be shown and should answer; None where the expert gave up at once.

    Args:
        recorded: an expert's episode.
        renderer: of these prompts; its history must keep every turn.
        parser: the answer format.
        actions: of the simulator.
    """
    past: list[Exchange] = []
    messages: list[Message] = []
    for turn in recorded.turns:
        said = turn.demonstration
        if not said.actions:
            break
        answer = parser.format(said, actions)
        messages = renderer.render(recorded.instruction, past, turn.text, turn.images).messages
        messages = [*messages, Message(role="assistant", text=answer)]
        past.append(Exchange(text=turn.text, images=turn.images, answer=answer))
    if not messages:
        return None
    return Conversation(id=str(recorded.task_seed), messages=tuple(messages))
