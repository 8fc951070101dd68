"""One engine in a Ray actor of its own: requests of all env runners in one running batch."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray.actor import ActorHandle

from rllib_vlm.backends.vllm.messages import Answer, Ask, PolicyWeights
from rllib_vlm.backends.vllm.model import VLLMModel
from rllib_vlm.backends.vllm.settings import VLLMSettings
from rllib_vlm.backends.vllm.transfer import choose_transport, device_ids
from rllib_vlm.errors import ModelError

logger = logging.getLogger(__name__)
_PREFIX = "rllib_vlm-engine-"


@dataclass(frozen=True, slots=True)
class _Order:
    """Something for the engine's thread to do, and where its outcome is waited for."""

    work: (
        Ask | Callable[[VLLMModel], Any]
    )  # what is no prompt is done between answers, when none is under way
    outcome: Future[Any]


class VLLMEngine:
    """The actor. One thread owns the model and steps it; the actor's own loop takes calls meanwhile.

    Orders are taken in the order they come: new weights wait for the answers that were begun before, and what is asked
    after waits for them. So every answer is sampled from one policy, whose version it carries.

    Where the model fails beyond a single request, the process ends: Ray starts the actor again, with the weights that
    `keeper` has, and env runners ask again.

    Args:
        number: of this engine, from 0.
        settings: of all engines.
        keeper: a `WeightKeeper` actor; where it has no weights yet, they are waited for.

    Raises:
        ModelError: vLLM does not start.
    """

    def __init__(
        self,
        number: int,
        settings: VLLMSettings,
        keeper: ActorHandle,
    ) -> None:
        self._orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        self._waiting: dict[str, _Order] = {}
        self._names: dict[str, str] = {}  # vLLM's, of the answers under way
        self._count = 0
        self._transport = "files"
        started: Future[None] = Future()
        threading.Thread(target=self._run, args=(number, settings, keeper, started), daemon=True).start()
        started.result()

    async def generate(self, ask: Ask) -> Answer:
        """The answer to a prompt.

        Raises:
            ModelError: the engine refuses the prompt.
        """
        answer: Answer = await self._order(ask)
        return answer

    async def load(self, weights: PolicyWeights) -> None:
        """New weights, for everything that is asked from now on."""
        await self._order(lambda model: model.load(weights))

    async def transfer(self, method: str, arguments: Mapping[str, Any], version: int | None = None) -> None:
        """A call of vLLM's weight transfer; with `version`, the last one of an update."""

        def transfer(model: VLLMModel) -> None:
            model.transfer(method, arguments)
            if version is not None:
                model.loaded(version)

        await self._order(transfer)

    async def version(self) -> int:
        """Of the weights."""
        version: int = await self._order(lambda model: model.version)
        return version

    async def transport(self) -> str:
        """How this engine is given weights: "files", or a backend of vLLM's weight transfer."""
        return self._transport

    async def _order(self, work: Ask | Callable[[VLLMModel], Any]) -> Any:
        outcome: Future[Any] = Future()
        self._orders.put(_Order(work, outcome))
        return await asyncio.wrap_future(outcome)  # where the caller cancels, the outcome is cancelled

    # The engine's own thread.

    def _run(self, number: int, settings: VLLMSettings, keeper: ActorHandle, started: Future[None]) -> None:
        try:
            # Not `ray.get`: see `PolicyWeights.fetched`.
            weights, learner_devices = keeper.start.remote(number).future().result()
            self._transport = choose_transport(settings.transport, device_ids(), learner_devices)
            model = VLLMModel(settings, weights, _folder(), self._transport)
            del weights  # or the object store would keep them as long as this engine lives
        except BaseException as error:  # noqa: BLE001  (the constructor waits for it)
            started.set_exception(error)
            return
        started.set_result(None)
        try:
            while True:
                self._take(model, wait=not model.busy)
                self._step(model)
        except BaseException:
            logger.exception("An engine failed. It is started again.")
            os._exit(1)  # this is no main thread: nothing else ends the process

    def _take(self, model: VLLMModel, *, wait: bool) -> None:
        """Begins what was ordered since the last step."""
        while True:
            try:
                order = self._orders.get(block=wait)
            except queue.Empty:
                return
            wait = False
            if isinstance(order.work, Ask):
                self._begin(model, order, order.work)
                continue
            while model.busy:
                self._step(model)
            if order.outcome.set_running_or_notify_cancel():
                order.outcome.set_result(order.work(model))

    def _begin(self, model: VLLMModel, order: _Order, ask: Ask) -> None:
        if order.outcome.cancelled():
            return
        self._count += 1
        key = str(self._count)
        try:
            self._names[key] = model.add(key, ask)
        except ModelError as error:
            if order.outcome.set_running_or_notify_cancel():
                order.outcome.set_exception(error)
            return
        self._waiting[key] = order

    def _step(self, model: VLLMModel) -> None:
        for key in [key for key, order in self._waiting.items() if order.outcome.cancelled()]:
            del self._waiting[key]
            model.abort(self._names.pop(key))
        if not model.busy:
            return
        for key, answer in model.step():
            order = self._waiting.pop(key, None)
            self._names.pop(key, None)
            if order is not None and order.outcome.set_running_or_notify_cancel():
                order.outcome.set_result(answer)


def _folder() -> Path:
    """A folder of this process in memory, or on disk where there is no such thing; those of dead engines go."""
    memory = Path("/dev/shm")
    root = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    for old in root.glob(f"{_PREFIX}*"):
        pid = old.name.removeprefix(_PREFIX)
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(old, ignore_errors=True)
    folder = root / f"{_PREFIX}{os.getpid()}"
    folder.mkdir(exist_ok=True)
    return folder
