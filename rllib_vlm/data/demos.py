"""The loop that has a simulator's expert fill a demonstrations folder.

What an episode holds follows from its seed alone, so the folder's content does not depend on how
many processes collected it, nor on interruptions.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from rllib_vlm.data.demonstrations import DemonstrationWriter
from rllib_vlm.data.images import Codec
from rllib_vlm.data.schema import Manifest, RecordedEpisode, RecordedTurn
from rllib_vlm.data.shards import ShardBuffer
from rllib_vlm.errors import DataError, SimulatorError
from rllib_vlm.types import Demonstration, Image

_PROGRESS_S = 0.2


class Expert(Protocol):
    """Answers turns; an answer without actions gives up."""

    def __call__(self) -> Demonstration: ...


class ExpertSimulator(Protocol):
    """What the loop needs of a simulator; every `rllib_vlm` simulator with an expert has it."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Mapping[str, Any], dict[str, Any]]: ...

    def turn(self, actions: Sequence[str]) -> tuple[Mapping[str, Any], float, bool, bool, dict[str, Any]]: ...

    def expert(self, *, max_actions: int = 1) -> Expert | None: ...

    def close(self) -> None: ...


MakeSimulator = Callable[[], Any]  # a fresh ExpertSimulator; picklable where there are several processes


def collect(
    make_simulator: MakeSimulator,
    directory: str | Path,
    *,
    simulator: str,
    episodes: int,
    seeds: int | Sequence[int] = 0,
    max_actions: int = 1,
    split: str = "train",
    options: Mapping[str, Any] | None = None,
    env_config: Mapping[str, Any] | None = None,
    image_codec: Codec = "webp",
    processes: int = 1,
    episodes_per_shard: int = 32,
    console: Console | None = None,
) -> Manifest:
    """Collects demonstrations into a folder, or what an earlier run left out of it.

    Args:
        make_simulator: makes one simulator; called once in each process.
        directory: the folder.
        simulator: name of the simulator, for the manifest.
        episodes: how many there are to be in the folder.
        seeds: the first seed, or one seed per episode.
        max_actions: actions the expert may give per turn.
        split: option of `reset`: "train" or "heldout".
        options: further options of `reset`.
        env_config: what `make_simulator` was made of, for the manifest.
        image_codec: lossless compression of images, "webp" or "png".
        processes: 1 plays in this process; more start that many fresh ones.
        episodes_per_shard: episodes a file holds, and each process at most loses when killed.
        console: where progress is shown; None shows none.

    Returns:
        The folder's manifest, counts up to date.

    Raises:
        DataError: the folder is foreign, of other settings, or in use; or `seeds` are too few.
        SimulatorError: the simulator has no expert, or a process died. What was collected stays.
    """
    chosen = tuple(range(seeds, seeds + episodes)) if isinstance(seeds, int) else tuple(seeds)[:episodes]
    if len(chosen) < episodes:
        raise DataError(f"{episodes} episodes need as many seeds, and there are {len(chosen)}")
    manifest = Manifest(
        simulator=simulator,
        seeds=tuple(int(seed) for seed in chosen),
        env_config=env_config or {},
        split=split,
        options=options or {},
        expert={"max_actions": max_actions},
        image_codec=image_codec,
    )
    with (
        DemonstrationWriter(directory, manifest, episodes_per_shard=episodes_per_shard) as writer,
        _progress(console) as progress,
    ):
        task = progress.add_task(
            f"{simulator} {split}", total=episodes, completed=episodes - len(writer.missing)
        )
        player = _Player(make_simulator, writer.manifest, writer.directory)
        if processes <= 1:
            with player:
                for span in writer.ranges():
                    player.fill(span, lambda: progress.advance(task))
        else:
            _in_processes(player, writer.ranges(), processes, lambda count: progress.advance(task, count))
    return writer.manifest


def play(simulator: Any, index: int, manifest: Manifest) -> RecordedEpisode:
    """Plays one episode by its expert. A turn in which the expert gives up is the last, without actions.

    Raises:
        SimulatorError: the simulator has no expert.
    """
    seed = manifest.seeds[index]
    options = {"split": manifest.split, **manifest.options}
    observation, info = simulator.reset(seed=seed, options=options)
    instruction = str(info.get("instruction", ""))
    expert = simulator.expert(**manifest.expert)
    if expert is None:
        raise SimulatorError(f"{type(simulator).__name__} has no expert, so it cannot give demonstrations")
    turns: list[RecordedTurn] = []
    reward, terminated, truncated, info = 0.0, False, False, {}
    while not (terminated or truncated):
        said = expert()
        seen = observation
        if said.actions:
            observation, reward, terminated, truncated, info = simulator.turn(said.actions)
        else:
            reward, truncated = 0.0, True
        turns.append(
            RecordedTurn(
                demonstration=said, text=str(seen["text"]), images=_images(seen), reward=float(reward)
            )
        )
    return RecordedEpisode(
        index=index,
        task_seed=seed,
        instruction=instruction,
        turns=tuple(turns),
        terminated=bool(terminated),
        truncated=bool(truncated),
        success=bool(info.get("success", False)),
        metrics={str(name): float(value) for name, value in info.get("metrics", {}).items()},
        final_text=str(observation["text"]),
        final_images=_images(observation),
    )


class _Player:
    """A simulator that is made when first needed, and the folder it fills."""

    def __init__(self, make_simulator: MakeSimulator, manifest: Manifest, directory: Path) -> None:
        self._make = make_simulator
        self._manifest = manifest
        self._directory = directory
        self._simulator: Any = None

    def fill(self, span: tuple[int, int], on_episode: Callable[[], object]) -> None:
        """Plays a range of episodes into one shard; what was played is written even after an error."""
        if self._simulator is None:
            self._simulator = self._make()
        with ShardBuffer(self._directory, self._manifest.image_codec) as shard:
            for index in range(*span):
                shard.add(play(self._simulator, index, self._manifest))
                on_episode()

    def close(self) -> None:
        simulator, self._simulator = self._simulator, None
        if simulator is not None:
            simulator.close()

    def __enter__(self) -> _Player:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _in_processes(
    player: _Player, spans: Sequence[tuple[int, int]], processes: int, on_episodes: Callable[[int], object]
) -> None:
    # Fresh processes, not forks: a forked OpenGL context or thread pool is broken in the child.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    shown = 0
    with ProcessPoolExecutor(
        max(1, min(processes, len(spans))), mp_context=context, initializer=_start, initargs=(player, counter)
    ) as pool:
        running: set[Future[None]] = {pool.submit(_fill, span) for span in spans}
        try:
            while running:
                done, running = wait(running, timeout=_PROGRESS_S, return_when=FIRST_COMPLETED)
                played = counter.value
                on_episodes(played - shown)
                shown = played
                for future in done:
                    future.result()
        except BrokenProcessPool as error:
            raise SimulatorError(
                "a process that collected demonstrations died (out of memory, or killed). "
                "Run the same command again: it collects only what is missing."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


# What a process of the pool holds: set once by `_start`, the pool's initializer.
_player: _Player | None = None
_counter: Any = None


def _start(player: _Player, counter: Any) -> None:
    global _player, _counter
    _player, _counter = player, counter
    Finalize(player, player.close, exitpriority=10)


def _fill(span: tuple[int, int]) -> None:
    assert _player is not None
    _player.fill(span, _count)


def _count() -> None:
    with _counter.get_lock():
        _counter.value += 1


def _images(observation: Mapping[str, Any]) -> tuple[Image, ...]:
    return tuple(observation.get("images", ()))


def _progress(console: Console | None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=console is None,
    )
