"""Demonstrations and offline data, as files: floor 1, knows no simulator, no model and no Ray.

`demonstrations` is the format (writer and reader), `images` its lossless pixels, `demos` the loop
that has an expert fill a folder, `conversations` LLaVA's JSON. The formats' page is docs/demonstrations.md.
"""

from rllib_vlm.data.conversations import (
    Conversation,
    ConversationReader,
    ConversationWriter,
    open_demonstrations,
)
from rllib_vlm.data.demonstrations import (
    DemonstrationReader,
    DemonstrationWriter,
    Manifest,
    RecordedEpisode,
    RecordedTurn,
)

__all__ = [
    "Conversation",
    "ConversationReader",
    "ConversationWriter",
    "DemonstrationReader",
    "DemonstrationWriter",
    "Manifest",
    "RecordedEpisode",
    "RecordedTurn",
    "open_demonstrations",
]
