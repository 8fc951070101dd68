"""What `environment.env` may name, as something that makes simulators in any process."""

from __future__ import annotations

from typing import Any

from ray.tune.registry import ENV_CREATOR, _global_registry

from rllib_vlm import registry
from rllib_vlm.env.simulator_process import SimulatorFactory


def simulator_factory(env: Any, env_config: Any) -> SimulatorFactory:
    """For a name of the table `simulators`, a dotted path, a class, or a name registered with Tune."""
    known = not isinstance(env, str) or env in registry.names("simulators")
    if not known and _global_registry.contains(ENV_CREATOR, env):
        env = FromCreator(env)
    return SimulatorFactory(env, dict(env_config))


class FromCreator:
    """A simulator registered with `ray.tune.register_env`, made from keyword arguments."""

    def __init__(self, name: str) -> None:
        self._creator = _global_registry.get(ENV_CREATOR, name)

    def __call__(self, **config: Any) -> Any:
        return self._creator(config)
