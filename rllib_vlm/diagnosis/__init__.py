"""`rllib diagnose`: what a run's records say about what happened to it, and what to change."""
