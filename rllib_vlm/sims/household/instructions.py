"""Instructions in natural language: many phrasings of the same order."""

from __future__ import annotations

import numpy as np

# {item}: "red mug"; {place}: "kitchen table" or "table in the kitchen"; {room}: "kitchen".
TEMPLATES: dict[str, tuple[str, ...]] = {
    "Fetch": (
        "fetch the {item} from the {place}",
        "get the {item} from the {place}",
        "bring the {item} from the {place}",
        "go to the {place} and pick up the {item}",
        "find the {place} and take the {item}",
        "pick up the {item} on the {place}",
        "grab the {item} that is on the {place}",
        "the {item} is on the {place}, fetch it",
        "look on the {place} for the {item} and get it",
        "i need the {item} from the {place}",
    ),
    "PickUp": (
        "pick up the {item} from the {place}",
        "pick up the {item} on the {place}",
        "take the {item} from the {place}",
        "grab the {item} on the {place}",
        "lift the {item} off the {place}",
        "the {item} is on the {place}, pick it up",
        "take hold of the {item} on the {place}",
        "grasp the {item} that is on the {place}",
    ),
    "ObjectNav": (
        "go to the {item}",
        "navigate to the {item}",
        "find the {item}",
        "locate the {item}",
        "search for the {item}",
        "look for the {item} and stop near it",
        "move close to the {item}",
        "find the {item} in this house",
        "where is the {item}, go there",
    ),
    "RoomNav": (
        "go to the {room}",
        "navigate to the {room}",
        "find the {room}",
        "move to the {room}",
        "drive into the {room} and stop",
        "search for the {room}",
        "enter the {room}",
        "locate the {room} and go inside",
    ),
    "RoomVisit": (
        "visit every room of this {count} room house",
        "go through all {count} rooms of the house",
        "visit all {count} rooms and mark each one",
        "explore the house, it has {count} rooms",
        "see each of the {count} rooms, mark every new one",
        "inspect all {count} rooms, then stop",
        "tour the {count} room house, marking each new room",
        "go to every one of the {count} rooms",
    ),
}

_PLACES = ("{room} {receptacle}", "{receptacle} in the {room}")


def place(receptacle: str, room: str, rng: np.random.Generator) -> str:
    """A receptacle and its room in words: "kitchen table" or "table in the kitchen"."""
    return _PLACES[int(rng.integers(len(_PLACES)))].format(room=room, receptacle=receptacle)


def instruct(task: str, rng: np.random.Generator, **words: str) -> str:
    """One of the phrasings of `task`, filled in."""
    templates = TEMPLATES[task]
    return templates[int(rng.integers(len(templates)))].format(**words)
