"""Measurements: `python -m benchmarks NAME --json`. One module per benchmark, each with `run() -> dict`."""
