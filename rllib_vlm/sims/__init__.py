"""Simulators: Gymnasium environments that know their actions by name.

`gymnasium.make("rllib_vlm.sims:rllib_vlm/Household-v0")` needs nothing else; once this package is imported,
`gymnasium.make("rllib_vlm/Household-v0")` works too. Gymnasium itself imports no installed package (its
plugin entry points are gone since 1.0). No simulator is loaded before it is made.
"""

import gymnasium as gym

ENVIRONMENTS = {
    "rllib_vlm/Household-v0": "rllib_vlm.sims.household.env:Household",
}


def register() -> None:
    """Makes our environments known to Gymnasium; again does nothing."""
    for name, entry_point in ENVIRONMENTS.items():
        if name not in gym.registry:
            gym.register(id=name, entry_point=entry_point)


register()
