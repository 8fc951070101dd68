"""Simulators: Gymnasium environments that know their actions by name.

Importing this package (or installing it, through Gymnasium's plugin entry point) makes
`gymnasium.make("rllib_vlm/Household-v0")` work; no simulator is loaded before it is made.
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
