"""N simulators that step independently: submit a reset or a turn, collect the ones that are ready.

Two kinds of slots stand behind one interface:

- `subprocess`: each simulator is a process of its own behind a pipe. Slots step in parallel; one
  that raises, dies or misses its deadline is killed and started anew.
- `inline`: simulators live in this process and step one after the other. One that raises is built
  anew. Nothing can interrupt a call that hangs; one that comes back later than its deadline counts
  as timed out, and its simulator is built anew. Simulators that may hang belong in subprocesses.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

import gymnasium as gym

from rllib_vlm.env.simulator_process import SimulatorFactory, SimulatorHost, SimulatorSpec, SlotStep
from rllib_vlm.errors import SimulatorError
from rllib_vlm.types import Said

SimulatorProcess = Literal["inline", "subprocess"]
_CLOSE_S = 1.0
# Not `python -m`: the module would run as `__main__`, and what it sends back would be of classes of that name.
_PROGRAM = "import sys; from rllib_vlm.env.simulator_process import main; main(sys.argv[1:])"
_MAX_FAILED_STARTS = 3


@dataclass(frozen=True, slots=True)
class SlotFailure:
    """A slot lost its episode; it is ready for another one."""

    kind: Literal["crash", "timeout", "engine"]  # the last: no answer came, and the simulator is well
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds a simulator may take before it counts as hung."""

    start_s: float = 120.0
    reset_s: float = 60.0
    turn_s: float = 60.0

    def of(self, kind: str) -> float:
        return self.reset_s if kind == "reset" else self.turn_s


class InlineSlot:
    """A simulator in this process."""

    def __init__(self, factory: SimulatorFactory, deadlines: Deadlines) -> None:
        self._factory = factory
        self._deadlines = deadlines
        self._host: SimulatorHost | None = SimulatorHost(factory)
        self._request: tuple[Any, ...] | None = None

    @property
    def busy(self) -> bool:
        return self._request is not None

    def spec(self) -> SimulatorSpec:
        assert self._host is not None
        return self._host.spec

    def submit(self, *request: Any) -> None:
        self._request = request

    def run(self) -> SlotStep | SlotFailure:
        """Carries the request out, here and now."""
        assert self._request is not None
        (kind, *arguments), self._request = self._request, None
        start = time.monotonic()
        try:
            if self._host is None:
                self._host = SimulatorHost(self._factory)
            step = self._host.reset(*arguments) if kind == "reset" else self._host.turn(*arguments)
        except Exception as error:  # noqa: BLE001  any simulator error costs one episode, not the run
            self.close()
            return SlotFailure("crash", f"{type(error).__name__}: {error}")
        wall_s = time.monotonic() - start
        if wall_s > self._deadlines.of(kind):
            self.close()
            return SlotFailure("timeout", f"{kind} took {wall_s:.1f} s")
        return step

    def cancel(self) -> None:
        self._request = None

    def close(self) -> None:
        host, self._host = self._host, None
        if host is not None:
            with contextlib.suppress(Exception):  # it may be the broken one
                host.close()


class SubprocessSlot:
    """A simulator in a process of its own."""

    def __init__(self, factory: SimulatorFactory, deadlines: Deadlines) -> None:
        self._factory = factory
        self._deadlines = deadlines
        self._spec: SimulatorSpec | None = None
        self._kind: str | None = None  # of the request under way
        self._deadline = 0.0
        self._failed_starts = 0
        self._start()

    @property
    def busy(self) -> bool:
        return self._kind is not None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def connection(self) -> Connection:
        return self._connection

    @property
    def deadline(self) -> float:
        """Of the request under way, on the monotonic clock."""
        return self._deadline

    def spec(self) -> SimulatorSpec:
        """Waits for the process to be up.

        Raises:
            SimulatorError: it did not come up, with what the simulator raised.
        """
        while self._spec is None:
            if not self._connection.poll(max(0.0, self._deadline - time.monotonic())):
                raise SimulatorError(f"a simulator was not up after {self._deadlines.start_s:g} s")
            outcome = self._receive()
            if isinstance(outcome, SlotFailure):
                raise SimulatorError(f"a simulator could not start: {outcome.message}")
        return self._spec

    def submit(self, *request: Any) -> None:
        self._kind = str(request[0])
        if self._kind == "reset" and self._process.poll() is not None:
            self._restart()  # it lost no episode; a turn, in contrast, must be seen to fail
        if self._up:
            self._deadline = time.monotonic() + self._deadlines.of(self._kind)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # seen as a crash when polled
            self._connection.send(request)

    def receive(self) -> SlotStep | SlotFailure | None:
        """The reply that waits, or None if that was only the process reporting itself ready."""
        outcome = self._receive()
        if isinstance(outcome, SlotFailure):
            self._fail()
        if outcome is not None:
            self._kind = None
        return outcome

    def expire(self) -> SlotFailure:
        """Gives up on a request that missed its deadline."""
        failure = SlotFailure("timeout", f"{self._kind if self._up else 'start'} missed its deadline")
        self._fail()
        self._kind = None
        return failure

    def cancel(self) -> None:
        """Forgets the request under way; its reply would be mistaken for the next one's."""
        if self.busy:
            self._kind = None
            self._restart()

    def close(self) -> None:
        self._connection.close()
        if self._process.poll() is None:
            try:
                self._process.wait(_CLOSE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            descriptor = theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(descriptor), str(os.getpid())],
                pass_fds=(descriptor,),
                # What this process can import, its simulators can.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )
        self._connection = Connection(ours.detach())
        self._up = False
        self._deadline = time.monotonic() + self._deadlines.start_s
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send((self._factory,))

    def _receive(self) -> SlotStep | SlotFailure | None:
        try:
            kind, body = self._connection.recv()
        except (EOFError, OSError):
            code = self._wait_for_end()
            return SlotFailure("crash", f"the simulator's process ended with exit status {code}")
        if kind == "error":
            return SlotFailure("crash", body)
        if kind == "ready":
            self._spec, self._up, self._failed_starts = body, True, 0
            if self._kind is not None:
                self._deadline = time.monotonic() + self._deadlines.of(self._kind)
            return None
        assert isinstance(body, SlotStep)
        return body

    def _wait_for_end(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(_CLOSE_S)
        return None

    def _fail(self) -> None:
        if not self._up:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                raise SimulatorError(f"a simulator failed to start {_MAX_FAILED_STARTS} times in a row")
        self._restart()

    def _restart(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()
        self._start()


class SlotPool:
    """N slots. It stands where RLlib expects a vector environment, but has no joint step.

    Args:
        factory: makes one simulator.
        num_slots: simulators.
        process: see this module.
        deadlines: seconds until a simulator counts as hung.

    Raises:
        SimulatorError: the first simulator cannot be made.

    Example::

        pool.reset(0, seed=7)
        for slot, outcome in pool.poll(timeout_s=1.0):      # SlotStep or SlotFailure
            pool.turn(slot, ["move_ahead"])
    """

    def __init__(
        self,
        factory: SimulatorFactory,
        num_slots: int,
        *,
        process: SimulatorProcess = "inline",
        deadlines: Deadlines | None = None,
    ) -> None:
        deadlines = deadlines or Deadlines()
        make = InlineSlot if process == "inline" else SubprocessSlot
        self._slots: list[InlineSlot | SubprocessSlot] = [make(factory, deadlines) for _ in range(num_slots)]
        self._closed = False
        try:
            self.spec = self._slots[0].spec()
        except SimulatorError:
            self.close()
            raise
        self.num_envs = num_slots

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def unwrapped(self) -> SlotPool:
        return self

    @property
    def observation_space(self) -> gym.Space[Any]:
        return self.spec.observation_space

    single_observation_space = observation_space

    @property
    def action_space(self) -> gym.Space[Any]:
        return self.spec.action_space

    single_action_space = action_space

    @property
    def pids(self) -> list[int]:
        """Process ids of the subprocess slots."""
        return [s.pid for s in self._slots if isinstance(s, SubprocessSlot)]

    @property
    def num_busy(self) -> int:
        return sum(slot.busy for slot in self._slots)

    def reset(
        self,
        slot: int,
        *,
        seed: int,
        options: dict[str, Any] | None = None,
        expert_max_actions: int = 0,
    ) -> None:
        """Starts an episode. `expert_max_actions` above 0 has the expert answer every visited state."""
        self._slots[slot].submit("reset", seed, options or {}, expert_max_actions)

    def turn(self, slot: int, actions: Sequence[str], said: Said | None = None) -> None:
        """Plays a turn; no actions is an idle one. `said` is the answer they come from, for who grades its words."""
        self._slots[slot].submit("turn", tuple(actions), said)

    def cancel(self, slot: int) -> None:
        """Forgets the request under way in a slot."""
        self._slots[slot].cancel()

    def poll(
        self, timeout_s: float = 0.0, bell: Connection | None = None
    ) -> list[tuple[int, SlotStep | SlotFailure]]:
        """Outcomes of the slots that are ready, waiting up to `timeout_s` for at least one.

        Args:
            timeout_s: none of it is spent where no slot is busy and there is no bell.
            bell: ends the wait as soon as it is readable.
        """
        outcomes: list[tuple[int, SlotStep | SlotFailure]] = [
            (i, slot.run())
            for i, slot in enumerate(self._slots)
            if isinstance(slot, InlineSlot) and slot.busy
        ]
        give_up = time.monotonic() + (0.0 if outcomes else timeout_s)
        while True:
            busy = {
                slot.connection: (i, slot)
                for i, slot in enumerate(self._slots)
                if isinstance(slot, SubprocessSlot) and slot.busy
            }
            heard = [*busy] if bell is None else [*busy, bell]
            if not heard:
                return outcomes
            until = min([give_up, *(slot.deadline for _, slot in busy.values())])
            ready = wait(heard, max(0.0, until - time.monotonic()))
            for connection in ready:
                if connection is bell:
                    continue
                assert isinstance(connection, Connection)
                i, slot = busy.pop(connection)
                outcome = slot.receive()
                if outcome is not None:
                    outcomes.append((i, outcome))
            now = time.monotonic()
            outcomes += [(i, slot.expire()) for i, slot in busy.values() if slot.deadline <= now]
            if outcomes or bell in ready or now >= give_up:
                return outcomes

    def close(self) -> None:
        """Ends every simulator; safe to call twice."""
        if not self._closed:
            self._closed = True
            for slot in self._slots:
                slot.close()
