"""The collapse guard: vital signs of a run, the states it can go back to, and the callback that takes it there."""
