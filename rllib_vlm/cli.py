"""The `rllib` command.

rllib train file tuned_examples/spoc.yaml --set training.lr=1e-6
rllib train --run VLMPPO --env spoc --stop training_iteration=3
rllib evaluate results/spoc_2026-01-31_12-00-00 --episodes 200
rllib export results/spoc_2026-01-31_12-00-00 exported/spoc
rllib diagnose results/spoc_2026-01-31_12-00-00
rllib validate tuned_examples/*.yaml
rllib example list

torch and ray are loaded inside the commands that need them, so help and refusals come at once.
"""

from __future__ import annotations

import json
import operator
import re
import sys
from collections.abc import Sequence
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

from rllib_vlm import __version__, registry
from rllib_vlm.config.quiet import quiet
from rllib_vlm.errors import ConfigErrors, RLlibVLMError

if TYPE_CHECKING:
    from rllib_vlm.config.experiment import Experiment

app = typer.Typer(
    name="rllib",
    help="Trains and evaluates vision-language agents in simulators, on Ray RLlib.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
train_app = typer.Typer(help="Runs an experiment file, or an algorithm's defaults on an environment.")
example_app = typer.Typer(help="The tuned examples that ship with the package.", no_args_is_help=True)
app.add_typer(train_app, name="train")
app.add_typer(example_app, name="example")

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Overrides a value: training.lr=1e-6. Repeatable."),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="METRIC=NUMBER", help="Ends a trial there: training_iteration=3, or a JSON mapping."
    ),
]
NumSamples = Annotated[int | None, typer.Option(min=1, help="Trials to draw from the search space.")]
Storage = Annotated[str, typer.Option(help="Folder (or cloud URI) in which run folders are made.")]
Name = Annotated[str | None, typer.Option(help="Name of the run folder; by default experiment and time.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run --name and all that is in it.")]
Address = Annotated[
    str | None, typer.Option("--ray-address", help="Cluster to join: auto, HOST:PORT or ray://HOST:PORT.")
]
Cpus = Annotated[int | None, typer.Option(min=1, help="CPUs Ray may count on this machine.")]
Dashboard = Annotated[bool, typer.Option("--dashboard", help="Also start Ray's dashboard on this machine.")]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point: a mistake of the user is one clean message and exit code 2."""
    # `my_package.corridor:Corridor` is found where the command is given, as with `python -m`; Ray passes that on.
    # Last, so that no file there takes the place of an installed package.
    sys.path.append(str(Path.cwd()))
    try:
        app(args=list(sys.argv[1:] if argv is None else argv), prog_name="rllib")
    except RLlibVLMError as error:
        _refuse(error)
    except OSError as error:  # a full disk, a folder that may not be written: no fault in here
        if error.errno is None:
            raise
        _refuse(RLlibVLMError(": ".join(map(str, filter(None, (error.filename, error.strerror))))))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        typer.echo(f"rllib_vlm {__version__}")
        raise typer.Exit


@train_app.callback(invoke_without_command=True)
def train(
    context: typer.Context,
    run: Annotated[str | None, typer.Option(help="Algorithm: VLMPPO, VLMGRPO, ... (see rllib list).")] = None,
    env: Annotated[str | None, typer.Option(help="Simulator, Gymnasium id or package.module:Class.")] = None,
    overrides: Set = None,
    stop: Stop = None,
    num_samples: NumSamples = None,
    storage: Storage = "results",
    name: Name = None,
    overwrite: Overwrite = False,
    ray_address: Address = None,
    num_cpus: Cpus = None,
    dashboard: Dashboard = False,
) -> None:
    """Runs an experiment file (train file X.yaml), or an algorithm on an environment (--run, --env)."""
    if context.invoked_subcommand is not None:
        if run or env:
            raise typer.BadParameter("--run and --env are not for `train file`: the file says both")
        return
    if not run or not env:
        raise typer.BadParameter("give --run and --env, or an experiment file: rllib train file X.yaml")
    from rllib_vlm.config.loader import from_names

    quiet()
    experiment = from_names(run, env, overrides=overrides or (), stop=stop or (), num_samples=num_samples)
    _run(
        [experiment],
        storage=storage,
        name=name,
        overwrite=overwrite,
        cluster=(ray_address, num_cpus, dashboard),
    )


@train_app.command("file")
def train_file(
    file: Annotated[Path, typer.Argument(help="Experiments in YAML, or Python with a top-level `config`.")],
    overrides: Set = None,
    stop: Stop = None,
    resume: Annotated[str | None, typer.Option(metavar="DIR", help="Run folder to go on with.")] = None,
    num_samples: NumSamples = None,
    storage: Storage = "results",
    name: Name = None,
    overwrite: Overwrite = False,
    ray_address: Address = None,
    num_cpus: Cpus = None,
    dashboard: Dashboard = False,
) -> None:
    """Runs every experiment of a file, one after the other."""
    if resume is not None and overwrite:
        raise typer.BadParameter("a run is resumed (--resume) or replaced (--overwrite), not both")
    if resume is not None and (num_samples or name):
        raise typer.BadParameter("a resumed run keeps its --num-samples and --name")
    from rllib_vlm.config.loader import load

    quiet()
    experiments = load(_existing(file), overrides=overrides or (), stop=stop or (), num_samples=num_samples)
    if resume is not None and len(experiments) > 1:
        from rllib_vlm.config.runner import safe_name

        folder = Path(resume).name
        named = [e for e in experiments if folder.startswith(safe_name(e.name))]
        if not named:
            raise RLlibVLMError(
                f"{folder} has the name of none of the experiments in {file}; give --resume a file with the one "
                "that it was started by alone"
            )
        experiments = [max(named, key=lambda e: len(safe_name(e.name)))]  # a name may begin with another
    _run(
        experiments,
        storage=storage,
        name=name,
        overwrite=overwrite,
        resume=resume,
        longer=(stop or (), overrides or ()),
        cluster=(ray_address, num_cpus, dashboard),
    )


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a trial's or run's folder.")],
    episodes: Annotated[int | None, typer.Option(min=1, help="Episodes to play.")] = None,
    split: Annotated[str | None, typer.Option(help="train, heldout, or another of the simulator's.")] = None,
    overrides: Set = None,
    output: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
    suite: Annotated[
        str | None, typer.Option(help="Play a suite of tests instead (see rllib list suites).")
    ] = None,
    part: Annotated[list[str] | None, typer.Option(help="Of the suite; by default all. Repeatable.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The suite's folder; by default beside the checkpoint.")
    ] = None,
    ray_address: Address = None,
    num_cpus: Cpus = None,
) -> None:
    """Plays episodes with a checkpoint's policy; prints a table, and JSON as the last line.

    With --suite, each test's episodes are written step by step, and the last line is the path of the table.
    """
    if suite is not None and (split or output):
        raise typer.BadParameter("a suite has its own splits, and --out DIR in place of --output")
    if suite is None and (part or out):
        raise typer.BadParameter("--part and --out are for --suite")
    quiet()
    if suite is not None:
        registry.resolve("suites", suite)
    from rllib_vlm.config import evaluation, runner
    from rllib_vlm.config.checkpoints import find_checkpoint

    folder = find_checkpoint(checkpoint)
    if suite is not None:
        from rllib_vlm.config.suite_command import evaluate_suite

        table_file = evaluate_suite(
            folder,
            suite,
            parts=part or (),
            episodes=episodes,
            overrides=overrides or (),
            out=out,
            ray_address=ray_address,
            num_cpus=num_cpus,
        )
        typer.echo(str(table_file))
        return
    if output is not None:  # what cannot be written is told before minutes are played
        output.parent.mkdir(parents=True, exist_ok=True)
        output.open("a").close()
    prepared = evaluation.prepare(folder, episodes=episodes, split=split, overrides=overrides or ())
    config = prepared.config
    what = f"{config.evaluation_duration} {config.evaluation_duration_unit}"
    typer.echo(f"checkpoint: {folder}\nplaying {what}; this may take minutes", err=True)
    runner.start_ray(address=ray_address, num_cpus=num_cpus, dashboard=False)
    metrics = prepared.run()
    table = Table("metric", "value")
    for key, value in metrics.items():
        table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console().print(table)
    typer.echo(f"checkpoint: {folder}")
    text = json.dumps({"checkpoint": str(folder), **metrics})
    typer.echo(text)
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")


@app.command()
def diagnose(
    run_dir: Annotated[Path, typer.Argument(help="A run's folder, or a trial's folder in it.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The picture's file, or a folder; by default diagnosis.png beside the results."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON too, as the last line.")
    ] = False,
) -> None:
    """Says what went wrong in a run and what to change, and draws its curves."""
    from rllib_vlm.diagnosis.report import report

    told = report(run_dir, out=out, console=Console())
    if as_json:
        typer.echo(json.dumps(told))


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a trial's or run's folder.")],
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Folder to make.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DIR and everything in it.")] = False,
) -> None:
    """Writes a checkpoint's policy as a Hugging Face directory, with a model card and its prompts' settings."""
    from rllib_vlm.config import export as exporting

    quiet()
    done = exporting.export(checkpoint, directory, overwrite=overwrite)
    for note in done.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"checkpoint: {done.checkpoint}")
    typer.echo(f"{done.directory}: {done.model.parameters:,} parameters, {done.model.dtype}")


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(help="Experiment files or fragments.")],
    overrides: Set = None,
) -> None:
    """Checks files without running them, and reports every mistake in all of them."""
    from rllib_vlm.config.loader import validate as check

    quiet()
    problems: list[str] = []
    for file in files:
        try:
            experiments = check(_existing(file), overrides=overrides or ())
        except ConfigErrors as error:
            problems += error.errors
        except RLlibVLMError as error:
            problems.append(str(error))
        else:
            typer.echo(_spelt_out(f"{file}: ok ({', '.join(experiments) or 'fragment'})"))
    if problems:
        raise ConfigErrors("validate", problems)


@example_app.command("list")
def example_list() -> None:
    """Names every tuned example, with the first sentence of its header."""
    from rllib_vlm.config.resources import examples

    table = Table(_whole("name"), _whole("what it is"), box=None)
    for name, file in examples().items():
        table.add_row(name, _headline(file))
    Console().print(table)


@example_app.command("get")
def example_get(
    name: Annotated[str, typer.Argument(help="As `rllib example list` shows it.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write there instead of printing.")
    ] = None,
) -> None:
    """Prints one tuned example, to copy and edit."""
    from rllib_vlm.config.resources import example

    text = example(name).read_text(encoding="utf-8")
    if output is None:
        typer.echo(text, nl=False)
    elif output.exists():
        raise RLlibVLMError(f"{output} exists already; choose another name")
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
        typer.echo(f"wrote {output}")


@app.command("list")
def list_names(
    table: Annotated[str | None, typer.Argument(help="One table only: simulators, credit, ...")] = None,
) -> None:
    """Shows every name an experiment file may use, and the code behind it."""
    shown = Table(_whole("table"), _whole("name"), _whole("code"), box=None)
    for each in [table] if table else registry.TABLES:
        for name in registry.names(each):
            shown.add_row(each, name, registry.TABLES[each].get(name, "(plugin)"))
    Console().print(shown)


@app.command()
def demos(
    simulator: Annotated[str, typer.Argument(help="Simulator, or package.module:Class.")],
    directory: Annotated[
        Path,
        typer.Argument(help="Folder to fill; an interrupted one is continued. Or the JSON file of llava."),
    ],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes the folder is to hold.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the first episode; each next one counts up.")] = 0,
    split: Annotated[str, typer.Option(help="train, heldout, or another of the simulator's.")] = "train",
    max_actions: Annotated[int, typer.Option(min=1, help="Actions the expert may give per turn.")] = 1,
    processes: Annotated[int, typer.Option(min=1, help="Processes that play.")] = 1,
    form: Annotated[
        str, typer.Option("--format", help="folder, or llava: conversations in one JSON file.")
    ] = "folder",
    prompting: Annotated[
        list[str] | None,
        typer.Option("--prompting", metavar="KEY=VALUE", help="What llava's humans say: template=short."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A keyword of the simulator. Repeatable."),
    ] = None,
) -> None:
    """Has a simulator's expert write demonstrations to disk."""
    from functools import partial

    from rllib_vlm.algorithms.validation import check_simulator, check_split
    from rllib_vlm.data.demos import collect

    if form not in ("folder", "llava"):
        raise RLlibVLMError(f"--format {form}: must be folder or llava")
    if prompting and form != "llava":
        raise RLlibVLMError("--prompting is for --format llava: a folder holds no prompts")
    if form == "folder" and directory.exists() and not directory.is_dir():
        raise RLlibVLMError(f"{directory} is a file; give a folder")
    env_config, problems = _assignments("--set", settings)
    problems = problems or list(check_simulator(simulator, env_config))
    if problems:
        raise ConfigErrors("demos", problems)
    check_split(simulator, split)
    make = partial(registry.resolve("simulators", simulator), **env_config)
    if form == "llava":
        from rllib_vlm.config.conversations import write_conversations

        values, problems = _assignments("--prompting", prompting)
        if problems:
            raise ConfigErrors("demos", problems)
        written = write_conversations(
            make, directory, values, episodes=episodes, seed=seed, split=split, max_actions=max_actions
        )
        typer.echo(f"{directory}: {written} conversations of {episodes} episodes")
        return
    manifest = collect(
        make,
        directory,
        simulator=simulator,
        episodes=episodes,
        seeds=seed,
        max_actions=max_actions,
        split=split,
        env_config=env_config,
        processes=processes,
        console=Console(stderr=True),
    )
    typer.echo(
        f"{directory}: {manifest.episodes} episodes, {manifest.turns} turns, {manifest.successes} solved"
    )


def _assignments(option: str, given: Sequence[str] | None) -> tuple[dict[str, Any], list[str]]:
    """The values of `KEY=VALUE`s, in YAML, and what is wrong with them."""
    from rllib_vlm.config.document import parse_yaml

    values: dict[str, Any] = {}
    problems: list[str] = []
    for each in given or ():
        key, separator, text = each.partition("=")
        if not separator:
            raise RLlibVLMError(f"{option} {each}: write it as key=value")
        value = parse_yaml(text, f"{option} {key}")
        problems += value.errors
        values[key] = value.data
    return values, problems


def _run(
    experiments: list[Experiment],
    *,
    storage: str,
    name: str | None,
    overwrite: bool = False,
    resume: str | None = None,
    longer: tuple[Sequence[str], Sequence[str]] = ((), ()),
    cluster: tuple[str | None, int | None, bool],
) -> None:
    from rllib_vlm.config import resuming, runner

    names = [
        name if name is None or len(experiments) == 1 else f"{name}_{i}" for i in range(len(experiments))
    ]
    changes = None
    if resume is not None:  # what is to be refused is, before Ray takes its seconds to start
        changes = resuming.changes_of(*longer)
        runner.resumable(resume)
    else:
        for own_name in names:
            runner.claim(storage, own_name, overwrite=overwrite)
    address, num_cpus, dashboard = cluster
    typer.echo("starting Ray" if address is None else f"joining {address}", err=True)
    runner.start_ray(address=address, num_cpus=num_cpus, dashboard=dashboard)
    results: list[Path] = []
    failed = False
    for experiment, own_name in zip(experiments, names, strict=True):
        outcome = runner.run(
            experiment, storage=storage, name=own_name, resume=resume, overwrite=overwrite, changes=changes
        )
        for failure in outcome.failures:
            typer.echo(f"trial failed: {failure}", err=True)
        failed = failed or bool(outcome.failures)
        results += outcome.results_files
        if outcome.interrupted:
            typer.echo(
                f"interrupted; to go on: rllib train file {experiment.source} --resume {outcome.folder}"
            )
            raise typer.Exit(130)
        typer.echo(f"run folder: {outcome.folder}")
    for file in results:
        typer.echo(str(file))
    if failed:
        raise typer.Exit(1)


def _existing(file: Path) -> Path:
    """`file`, or the shipped example of that name when only the package is installed."""
    from rllib_vlm.config.resources import examples

    try:
        if file.exists():
            return file
    except OSError as error:  # such as a name too long for the file system
        raise RLlibVLMError(f"{str(file)[:80]}...: {error.strerror}") from error
    shipped = examples().get(str(file.with_suffix("")).removeprefix("tuned_examples/"))
    if shipped is not None:
        return shipped
    raise RLlibVLMError(
        f"{file}: no such file. `rllib example list` names the ones that ship with the package."
    )


def _whole(header: str) -> Column:
    """A column that breaks what is too long for it, and cuts nothing."""
    return Column(header, overflow="fold")


def _headline(file: Path) -> str:
    """The first sentence of a file, over as many lines as it has."""
    lines = [line.strip().strip('#"').strip() for line in file.read_text(encoding="utf-8").splitlines()]
    text = " ".join(takewhile(bool, dropwhile(operator.not_, lines)))
    return re.split(r"(?<=[.]) ", text, maxsplit=1)[0]


def _refuse(error: RLlibVLMError) -> NoReturn:
    message = _spelt_out(str(error))
    console = Console(stderr=True)
    if console.is_terminal:
        console.print(Panel(Text(message), title="error", title_align="left", border_style="red"))
    else:  # one line per problem, whole, for logs and editors
        print(f"error: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(2)


def _add_groups() -> None:
    """The registry's subcommands. One of an installed package that cannot be had is named and left out."""
    taken = typer.main.get_group(app).commands
    try:
        names = registry.names("commands")
    except Exception as error:  # noqa: BLE001 a list of entry points that is torn, of any installed package
        _say(f"Subcommands of installed packages are left out. {type(error).__name__}: {error}")
        names = sorted(registry.TABLES["commands"])
    for name in names:
        try:
            if name in taken:
                raise RLlibVLMError("There is a command of this name.")
            group = registry.resolve("commands", name)
            if not isinstance(group, typer.Typer) or group is app:
                raise RLlibVLMError(f"It is {group!r}, and has to be a typer.Typer of its own.")
            typer.main.get_group(group)  # now: it would fail at any command of ours otherwise
        except (Exception, SystemExit) as error:  # noqa: BLE001 whatever a module of theirs raises or does
            said = str(error) if isinstance(error, RLlibVLMError) else f"{type(error).__name__}: {error}"
            _say(f"rllib {name} is left out. {said}")
        else:
            app.add_typer(group, name=name)


def _spelt_out(text: str) -> str:
    """Names out of files of others may hold what a terminal takes for commands."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _say(line: str) -> None:
    Console(stderr=True).print(_spelt_out(line), highlight=False, markup=False, soft_wrap=True)


_add_groups()
