"""Runs one benchmark by name: a table for people, and with `--json` one last line for programs.

With `--keep` the result is written to `benchmarks/results/NAME.json`; `plot` runs nothing and draws what is kept.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import pkgutil
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

import benchmarks
from benchmarks import _results
from rllib_vlm.errors import RLlibVLMError, UnknownNameError

_PLOT = "plot"


def names() -> list[str]:
    """All benchmarks: the modules beside this one."""
    return sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if not m.name.startswith("_"))


def measure(name: str, *arguments: str) -> dict[str, Any]:
    """Runs a benchmark, with its own arguments if it has any, and returns its `name`, `value`, `unit` and `details`.

    Raises:
        UnknownNameError: no benchmark of this name.
        RLlibVLMError: arguments that it does not take.
    """
    if name not in names():
        raise UnknownNameError("python -m benchmarks", name, names())
    run = importlib.import_module(f"benchmarks.{name}").run
    try:
        inspect.signature(run).bind(*arguments)
    except TypeError as error:
        takes = ", ".join(inspect.signature(run).parameters) or "no arguments"
        raise RLlibVLMError(f"{name} {' '.join(arguments)}: {name} takes {takes} ({error})") from error
    return dict(run(*arguments))


def show(result: dict[str, Any], console: Console) -> None:
    """Prints a result as a table."""
    table = Table(title=f"{result['name']}: {result['value']:.4g} {result['unit']}", title_justify="left")
    table.add_column("detail")
    table.add_column("value", justify="right")
    for key, value in result.get("details", {}).items():
        table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=benchmarks.__doc__)
    parser.add_argument("name", nargs="?", help=", ".join([*names(), _PLOT]))
    parser.add_argument("arguments", nargs="*", help="of the benchmark itself: `seeing` takes a checkpoint")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--keep", action="store_true", help="write the result to benchmarks/results/")
    options = parser.parse_intermixed_args(arguments)
    if options.name is None:
        parser.error(f"which one? {', '.join([*names(), _PLOT])}")
    try:
        if options.name == _PLOT:
            if options.arguments:
                raise RLlibVLMError(f"plot {' '.join(options.arguments)}: plot takes no arguments")
            for path in _results.publish():
                print(path.relative_to(_results.ROOT))
            return 0
        result = measure(options.name, *options.arguments)
    except RLlibVLMError as error:
        print(error, file=sys.stderr)
        return 2
    show(result, Console())
    if options.keep:
        print(f"kept in {_results.keep(result).relative_to(_results.ROOT)}")
    if options.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
