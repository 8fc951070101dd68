"""A gallery of episodes: open `gallery/index.html` in the run's folder and see what the agent does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override

from rllib_vlm import registry
from rllib_vlm.callbacks.pages import (
    EpisodeView,
    episode_view,
    observed_images,
    render_index,
    render_page,
    token_pieces,
)
from rllib_vlm.callbacks.video import film_strip, frames, write_video
from rllib_vlm.connectors import pipelines
from rllib_vlm.connectors.trajectories import credit_of, executed, to_trajectory
from rllib_vlm.core.columns import GROUP, VLMColumns
from rllib_vlm.errors import RLlibVLMError
from rllib_vlm.types import Image, TokenCredit

FOLDER = "gallery"
_KEPT = "gallery_episodes"  # attribute of an env runner: its latest episodes by split


@dataclass(frozen=True, slots=True)
class Sample:
    """An episode on its way to the driver."""

    episode: SingleAgentEpisode
    views: list[tuple[Image, ...]]  # seen before each turn, and after the last
    pieces: list[list[str]]  # the text of each token of each turn


class Gallery(RLlibCallback):
    """Writes pages of sampled episodes: frames, prompt, answer, what it meant, reward, advantage per token.

    A page is one HTML file with its frames inside; a film of its first episode lies beside it, and
    TensorBoard gets the film's pictures as one image. Episodes are the first whole groups that an env
    runner was asked for, not the ones that ended first. Advantages are shown as the estimator gives
    them, before any normalisation; those of a critic are by the critic after the iteration's update.
    Demonstrations and evaluation episodes have none.

    Args:
        every: iterations from one page of training episodes to the next; the first iteration has one.
        episodes: shown on a page.
        max_turns: shown of an episode, as many from its beginning as from its end.
        image_pixels: longer side of a frame on a page; larger ones are scaled down.
        keep: pages that are kept; older ones are deleted with their films.
        evaluations: whether evaluations have pages, too.
        video: whether a film is written.
        tensorboard: whether TensorBoard gets a picture.
    """

    def __init__(
        self,
        *,
        every: int = 10,
        episodes: int = 4,
        max_turns: int = 40,
        image_pixels: int = 224,
        keep: int = 50,
        evaluations: bool = True,
        video: bool = True,
        tensorboard: bool = True,
    ) -> None:
        super().__init__()
        counts = {"every": every, "episodes": episodes, "max_turns": max_turns}
        for name, value in {**counts, "image_pixels": image_pixels, "keep": keep}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RLlibVLMError(
                    f"callbacks: gallery: {name} is {value!r}, it must be a whole number from 1 on"
                )
        self._every = every
        self._episodes = episodes
        self._max_turns = max_turns
        self._image_pixels = image_pixels
        self._keep = keep
        self._evaluations = evaluations
        self._video = video
        self._tensorboard = tensorboard
        self._writer: Any = None

    # On an env runner.

    @override(RLlibCallback)
    def on_sample_end(
        self, *, env_runner: Any = None, metrics_logger: Any = None, samples: Any, **kwargs: Any
    ) -> None:
        if samples:
            split = str(samples[0].custom_data.get(GROUP, "train")).partition("/")[0]
            kept = vars(env_runner).setdefault(_KEPT, {})
            # Views are taken now: episodes that travel to the driver leave theirs behind.
            kept[split] = [(e, observed_images(e)) for e in _whole_groups(samples, self._episodes)]

    # On the driver.

    @override(RLlibCallback)
    def on_train_result(
        self, *, algorithm: Any, metrics_logger: Any = None, result: dict[str, Any], **kwargs: Any
    ) -> None:
        iteration = int(result["training_iteration"])
        if iteration == 1 or iteration % self._every == 0:
            samples = _fetch(algorithm.env_runner_group, "train")
            credit = _credit(algorithm, samples)
            self._write(
                algorithm, f"iteration_{iteration:06d}", f"iteration {iteration}", iteration, samples, credit
            )

    @override(RLlibCallback)
    def on_evaluate_end(
        self, *, algorithm: Any, metrics_logger: Any = None, evaluation_metrics: Any = None, **kwargs: Any
    ) -> None:
        if not self._evaluations:
            return
        group = algorithm.eval_env_runner_group or algorithm.env_runner_group
        iteration = int(algorithm.iteration)
        at = str((evaluation_metrics or {}).get("at", "interval"))
        samples = _fetch(group, "heldout")
        label = f"evaluation after iteration {iteration} ({at})"
        self._write(
            algorithm, f"evaluation_{iteration:06d}", label, iteration, samples, [None] * len(samples)
        )

    def _write(
        self,
        algorithm: Any,
        name: str,
        label: str,
        iteration: int,
        samples: Sequence[Sample],
        credit: Sequence[Sequence[TokenCredit] | None],
    ) -> None:
        views = [
            episode_view(sample.episode, sample.views, sample.pieces, own, max_turns=self._max_turns)
            for sample, own in list(zip(samples, credit, strict=True))[: self._episodes]
        ]
        if not views:
            return
        folder = Path(algorithm.logdir) / FOLDER
        write_gallery(
            folder, name, label, views, image_pixels=self._image_pixels, video=self._video, keep=self._keep
        )
        strip = film_strip(views[0]) if self._tensorboard else None
        if strip is not None:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                # TensorBoard reads one growing file per folder, and Tune's is in the parent.
                self._writer = SummaryWriter(str(folder / "tensorboard"))
            tag = name.partition("_")[0] + "/episode"
            self._writer.add_image(tag, strip, global_step=iteration, dataformats="HWC")
            self._writer.flush()


def write_gallery(
    folder: Path,
    name: str,
    label: str,
    episodes: Sequence[EpisodeView],
    *,
    image_pixels: int = 224,
    video: bool = True,
    keep: int = 50,
) -> Path:
    """Writes a page, its film and the index, and deletes pages beyond the newest `keep`.

    Returns:
        The page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    film = write_video(folder / name, list(frames(episodes[0]))) if video else None
    successes = sum(e.success for e in episodes)
    subtitle = f"{len(episodes)} episodes, {successes} successful"
    page = folder / f"{name}.html"
    text = render_page(label, subtitle, episodes, image_pixels=image_pixels, video=film.name if film else "")
    page.write_text(text, encoding="utf-8")
    pages = sorted(folder.glob("*_*.html"), key=lambda p: (p.stem.rpartition("_")[2], p.stem), reverse=True)
    for old in pages[keep:]:
        for file in folder.glob(f"{old.stem}.*"):
            file.unlink()
    links = [(p.name, p.stem.replace("_", " ")) for p in pages[:keep]]
    (folder / "index.html").write_text(render_index("Episodes", links), encoding="utf-8")
    return page


def _whole_groups(episodes: Sequence[SingleAgentEpisode], count: int) -> list[SingleAgentEpisode]:
    """The first groups that together have at least `count` episodes: estimators compare whole groups."""
    chosen: list[SingleAgentEpisode] = []
    for i, episode in enumerate(episodes):
        starts_group = i == 0 or episode.custom_data.get(GROUP) != episodes[i - 1].custom_data.get(GROUP)
        if starts_group and len(chosen) >= count:
            break
        chosen.append(episode)
    return [episode for episode in chosen if len(episode)]


def _fetch(group: Any, split: str) -> list[Sample]:
    """What one of the runners kept last; it has it no longer afterwards."""

    def take(runner: Any) -> list[Sample]:
        kept = vars(runner).get(_KEPT, {}).pop(split, [])
        return [
            Sample(
                episode, views, [token_pieces(runner.module.family, answer) for answer in executed(episode)]
            )
            for episode, views in kept
        ]

    remote = group.healthy_env_runner_ids()[:1]
    found = group.foreach_env_runner(take, remote_worker_ids=remote, local_env_runner=not remote)
    return found[0] if found else []


def _credit(algorithm: Any, samples: Sequence[Sample]) -> list[Sequence[TokenCredit] | None]:
    """Advantages of the episodes, as the algorithm's estimator gives them; None for demonstrations."""
    episodes = [sample.episode for sample in samples]
    if any(VLMColumns.EXECUTED in episode.extra_model_outputs for episode in episodes):
        return [None] * len(episodes)
    given = [credit_of(episode) for episode in episodes]
    if not episodes or all(given):
        return list(given)
    config = algorithm.config
    if config.credit_stage == "learner":
        algorithm.let_learn()
        outcomes = algorithm.learner_group.foreach_learner(_learner_credit, episodes=episodes)
        return next((list(found.get()) for found in outcomes.ignore_errors()), [None] * len(episodes))
    assign = registry.resolve("credit", config.credit)(**config.credit_options)
    groups: dict[str, list[int]] = defaultdict(list)
    for i, episode in enumerate(episodes):
        groups[str(episode.custom_data[GROUP])].append(i)
    credit: list[Sequence[TokenCredit] | None] = [None] * len(episodes)
    for members in groups.values():
        for i, own in zip(members, assign([to_trajectory(episodes[i]) for i in members]), strict=True):
            credit[i] = own
    return credit


def _learner_credit(learner: Any, *, episodes: list[SingleAgentEpisode]) -> list[Sequence[TokenCredit]]:
    """The first two pieces of the learner's pipeline, on a few episodes: rows, then values and credit."""
    config = learner.config
    to_rows, score_rows, _ = pipelines.learner(
        credit=config.credit,
        credit_options=config.credit_options,
        row_tokens=config.row_tokens,
        micro_batch_tokens=config.micro_batch_tokens,
        mask_truncated=config.mask_truncated,
        span_weights=config.span_weights,
        old_logprobs=config.old_logprobs,
        mismatch=config.mismatch,
        packing=config.packing,
    )
    batch: dict[str, Any] = {}
    for piece in (to_rows, score_rows):
        batch = piece(rl_module=learner.module, batch=batch, episodes=episodes)
    credit: list[Sequence[TokenCredit]] = batch[VLMColumns.TRAJECTORY_CREDIT]
    return credit
