"""`rllib data`: makes, converts and checks data sets of street views."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rllib_vlm.errors import ConfigErrors, RLlibVLMError, UnknownNameError

app = typer.Typer(help="Makes, converts and checks data sets of street views.", no_args_is_help=True)


@app.command()
def city(
    directory: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    style: Annotated[str, typer.Option(help="nyc or sf.")] = "nyc",
    routes: Annotated[
        int, typer.Option(min=10, help="Routes; visual OOD has a tenth of as many beside.")
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same files.")] = 0,
    layout: Annotated[
        str, typer.Option(help="equirectangular, or views (four per panorama).")
    ] = "equirectangular",
    width: Annotated[int, typer.Option(min=128, max=4096, help="Columns of a panorama.")] = 512,
) -> None:
    """Writes a synthetic city in V-IRL's layout, with splits for training, held-out and out-of-distribution."""
    from rllib_vlm.sims.streetview.city import CITY_MOST_ROUTES, LAYOUTS, STYLES, write_city

    for what, name, known in (("--style", style, STYLES), ("--layout", layout, LAYOUTS)):
        if name not in known:
            raise UnknownNameError(what, name, known)
    if width % 4:
        raise RLlibVLMError(f"--width {width}: must be a multiple of 4, so that four views divide it")
    if routes > CITY_MOST_ROUTES:
        raise RLlibVLMError(f"--routes {routes}: at most {CITY_MOST_ROUTES}; make two cities of other seeds")
    with _bar("drawing") as progress:
        write_city(
            directory, style=style, routes=routes, seed=seed, layout=layout, width=width, progress=progress
        )
    typer.echo(f"{directory}: {routes} routes. Use it: env: streetview, env_config: {{data: {directory}}}")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="gps_pano_mapping.pkl, or a data set's folder.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file; by default beside the pickle.")
    ] = None,
) -> None:
    """Turns a pickled mapping into JSON, without running anything that the pickle holds."""
    from rllib_vlm.sims.streetview.mapping import PICKLE, read_pickle, write_json

    file = source / PICKLE if source.is_dir() else source
    mapping = read_pickle(file)
    target = output or file.with_suffix(".json")
    if target.exists():
        raise RLlibVLMError(f"{target} exists already; choose another name with --output")
    write_json(target, mapping)
    typer.echo(f"{target}: {len(mapping)} panoramas")


@app.command()
def check(directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a data set.")]) -> None:
    """Lists everything wrong with a data set: missing panoramas, broken blocks, headings out of range."""
    from rllib_vlm.sims.streetview.check import check_folder

    with _bar("checking") as progress:
        problems = check_folder(directory, progress)
    if problems:
        raise ConfigErrors(str(directory), problems)
    typer.echo(f"{directory}: ok")


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
