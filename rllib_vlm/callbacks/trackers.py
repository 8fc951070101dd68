"""Ray's Weights & Biases callback, made to keep the end of short runs."""

from __future__ import annotations

from ray.air.integrations.wandb import WandbLoggerCallback, _WandbLoggingActor


class WandbLogger(WandbLoggerCallback):
    """Ray's own callback; its actor also waits until wandb's background process has written everything.

    Ray ends the actor as soon as `wandb.finish()` returns, and with it wandb's background process. For
    an offline run `finish()` may return before that process has flushed its file: seen with ray 2.60 and
    wandb 0.31, where a loaded machine lost all but the first 32 kB, every metric of a short run.
    """

    class _PatientActor(_WandbLoggingActor):
        def run(self) -> None:
            super().run()
            self._wandb.teardown()

    _logger_actor_cls = _PatientActor
