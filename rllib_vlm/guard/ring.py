"""The states a run can go back to: the last few that turned out well."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rllib_vlm.files import remove_folder, write_json

_META = "guard.json"


@dataclass(slots=True)
class Ring:
    """Directories under `root`, one per saved update, oldest dropped.

    What an update did to the policy shows in the next ones, so a state is a *candidate* until `proof` healthy
    updates have followed it; only then the run may go back to it. A directory is written under another name and
    renamed, so that one with its proper name is whole.

    Args:
        root: where; made when the first state is saved.
        keep: proven states that are kept.
        proof: healthy updates that prove a candidate.
    """

    root: Path
    keep: int = 2
    proof: int = 2
    _proven: dict[int, int] = field(default_factory=dict)  # update -> healthy updates since

    def __post_init__(self) -> None:
        for folder in sorted(self.root.glob("update_*")):
            meta = folder / _META
            if meta.is_file():
                found = json.loads(meta.read_text(encoding="utf-8"))
                self._proven[int(found["update"])] = int(found["proven"])

    def save(self, update: int, write: Callable[[Path], Any]) -> None:
        """Adds a candidate: the state after `update`, which `write` puts into the directory it is given.

        Raises:
            OSError: the disk is full or not to be written; nothing of this state is left then.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        temporary = self.root / f".update_{update:06d}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            write(temporary)
            self._note(temporary, update, 0)
            remove_folder(self._folder(update))
            temporary.rename(self._folder(update))
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._proven[update] = 0

    def healthy(self) -> None:
        """One more update has gone well: candidates come nearer to being proven, and the oldest proven ones go."""
        for update, count in list(self._proven.items()):
            if count < self.proof:
                self._proven[update] = count + 1
                self._note(self._folder(update), update, count + 1)
        proven = sorted(u for u, count in self._proven.items() if count >= self.proof)
        for update in proven[: -self.keep]:
            self._drop(update)

    def suspect(self) -> None:
        """Something is wrong: candidates are not trusted."""
        for update in [u for u, count in self._proven.items() if count < self.proof]:
            self._drop(update)

    def forget_after(self, update: int) -> None:
        """States of updates that a run, resumed at `update`, has not made yet: it will make its own."""
        for later in [u for u in self._proven if u > update]:
            self._drop(later)

    def best(self) -> tuple[int, Path] | None:
        """The newest proven state: its update and directory."""
        proven = [u for u, count in self._proven.items() if count >= self.proof]
        return (max(proven), self._folder(max(proven))) if proven else None

    def give_up(self, update: int) -> None:
        """A state that was gone back to, and from which the run collapsed again, unless it is the last there is."""
        if len([u for u, count in self._proven.items() if count >= self.proof]) > 1:
            self._drop(update)

    def _folder(self, update: int) -> Path:
        return self.root / f"update_{update:06d}"

    def _drop(self, update: int) -> None:
        del self._proven[update]
        remove_folder(self._folder(update))

    @staticmethod
    def _note(folder: Path, update: int, proven: int) -> None:
        write_json(folder / _META, {"update": update, "proven": proven})
