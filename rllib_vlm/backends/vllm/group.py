"""The engines of a run: started once, given weights after every update, started again where they die."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rllib_vlm.backends.vllm.keeper import WeightKeeper
from rllib_vlm.backends.vllm.messages import Answer, Ask, PolicyWeights
from rllib_vlm.backends.vllm.settings import VLLMSettings
from rllib_vlm.errors import ModelError

_SITE = Path(__file__).with_name("site")
_CALLS = 100_000  # that an engine may have under way; vLLM itself queues what does not fit into its batch
_PAUSE_S = 0.2


class EngineGroup:
    """Whoever makes it owns the engines: they end with it, or with its process.

    Args:
        settings: of the engines.

    Attributes:
        engines: once they are placed.
        learner_devices: unique ids of the GPUs that learn; engines that start compare them with their own
            (`transfer.choose_transport`).
        transport: that all engines take.
    """

    def __init__(self, settings: VLLMSettings) -> None:
        self.settings = settings
        self.engines: tuple[ActorHandle, ...] = ()
        self.learner_devices: tuple[str, ...] = ()
        self.transport = "files"
        self._keeper: ActorHandle | None = None
        self._up = False  # all of them have had weights

    def place(self, first_bundle: int | None = None) -> None:
        """Starts the engines' processes, which have their resources when this returns, and wait for weights.

        Args:
            first_bundle: of this process's placement group, if it is in one: the first engine's, the others' follow.
                None leaves to Ray where they go.

        Raises:
            ModelError: an engine does not start.
        """
        self._keeper = keeper = ray.remote(num_cpus=0)(WeightKeeper).remote()
        count = self.settings.count
        self.engines = tuple(self._make(number, first_bundle) for number in range(count))
        placed = keeper.placed.remote(count)
        # These come once an engine has weights, or at once if it dies.
        up = [engine.transport.remote() for engine in self.engines]
        ready, _ = ray.wait([placed, *up], timeout=self.settings.start_deadline_s)
        if not ready:
            raise self._too_late()
        try:
            ray.get(ready)
        except RayActorError as error:
            refuse_the_dead(error, 0.0)

    def keep(self, weights: PolicyWeights) -> None:
        """Engines that start from now on have these weights; the first call waits until all are up.

        Raises:
            ModelError: an engine does not start.
        """
        if self._keeper is None:
            self.place()
        assert self._keeper is not None
        ray.get(self._keeper.put.remote(weights, self.learner_devices))
        if not self._up:
            found = set(self._each(lambda engine: engine.transport.remote()))
            self.transport = found.pop() if len(found) == 1 else "files"
            self._up = True

    def load(self, weights: PolicyWeights) -> None:
        """All engines have these weights when this returns, and those that die will have them again.

        Raises:
            ModelError: an engine does not start.
        """
        were_up = self._up
        self.keep(weights)
        if were_up:
            self._each(lambda engine: engine.load.remote(weights))

    def ask_each(self, ask: Ask) -> list[Answer]:
        """Every engine's answer to the same prompt."""
        answers: list[Answer] = self._each(lambda engine: engine.generate.remote(ask))
        return answers

    def num_restarts(self) -> int:
        """How often engines had to be started again."""
        return int(ray.get(self._keeper.num_restarts.remote())) if self._keeper is not None else 0

    def stop(self) -> None:
        """Ends the engines; safe to call twice."""
        for actor in (*self.engines, self._keeper):
            if actor is not None:
                ray.kill(actor)
        self.engines, self._keeper, self._up = (), None, False

    def _each(self, call: Callable[[ActorHandle], ray.ObjectRef]) -> list[Any]:
        """Outcomes of a call of every engine, all at once; an engine that dies is called again when it is up again."""
        under_way = [(engine, call(engine)) for engine in self.engines]
        return [self._outcome(engine, ref, call) for engine, ref in under_way]

    def _outcome(
        self, engine: ActorHandle, ref: ray.ObjectRef, call: Callable[[ActorHandle], ray.ObjectRef]
    ) -> Any:
        deadline = time.monotonic() + self.settings.start_deadline_s
        while True:
            try:
                return ray.get(ref, timeout=max(1.0, deadline - time.monotonic()))
            except GetTimeoutError as error:
                raise self._too_late() from error
            except RayActorError as error:
                refuse_the_dead(error, deadline)
                time.sleep(_PAUSE_S)
                ref = call(engine)

    def _too_late(self) -> ModelError:
        settings = self.settings
        return ModelError(
            f"an engine was not up after {settings.start_deadline_s:g} s (start_deadline_s); where the cluster lacks "
            f"what each of them asks for ({settings.num_cpus:g} CPUs, {settings.gpus_per_engine:g} GPUs), Ray waits "
            "for it"
        )

    def _make(self, number: int, first_bundle: int | None) -> ActorHandle:
        from rllib_vlm.backends.vllm.engine import VLLMEngine

        settings = self.settings
        where: dict[str, Any] = {}
        reserved = get_current_placement_group()
        if reserved is not None and first_bundle is not None:
            where["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                placement_group=reserved, placement_group_bundle_index=first_bundle + number
            )
        return (
            ray.remote(VLLMEngine)
            .options(
                num_cpus=settings.num_cpus,
                num_gpus=settings.gpus_per_engine,
                max_restarts=-1,
                max_task_retries=0,  # whoever asked asks again, and counts it
                max_concurrency=_CALLS,
                runtime_env={"env_vars": _environment(settings)},
                **where,
            )
            .remote(number, settings, self._keeper)
        )


def refuse_the_dead(error: RayActorError, deadline: float) -> None:
    """Raises what keeps an engine from coming up again, if it will not, or did not until `deadline`.

    Raises:
        ModelError: the reason.
    """
    gone = isinstance(error, ActorDiedError) and "ModelError" in str(error)
    if gone or time.monotonic() > deadline:
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        told = [line for line in lines if "ModelError:" in line] or lines
        raise ModelError(f"an engine does not start: {told[-1].split('ModelError: ')[-1]}") from error


def _environment(settings: VLLMSettings) -> dict[str, str]:
    """Of an engine's process; what the user set stays."""
    own = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the actor is a process of its own already
        "VLLM_USE_V2_MODEL_RUNNER": "0",  # logits processors, which bans need, have another form there
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(settings.torch_threads),
    }
    if not settings.gpus_per_engine:
        own["TORCHDYNAMO_DISABLE"] = (
            "1"  # else the first steps wait for a C++ compiler, which may not even be there
        )
    paths = [str(_SITE), os.environ.get("PYTHONPATH", "")]
    fixed = {"OMP_NUM_THREADS", "VLLM_ENABLE_V1_MULTIPROCESSING"}
    return {
        **{name: value if name in fixed else os.environ.get(name, value) for name, value in own.items()},
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
