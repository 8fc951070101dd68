"""An experiment file (YAML, or Python with a top-level `config`) -> experiments; all its mistakes at once."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rllib_vlm.config.document import Document, Mark, read_yaml
from rllib_vlm.config.experiment import Experiment, build_experiment
from rllib_vlm.config.overrides import parse_overrides, parse_stop
from rllib_vlm.config.resources import fragment, fragments, shipped
from rllib_vlm.config.sections import apply_sections
from rllib_vlm.errors import ConfigErrors, RLlibVLMError, did_you_mean


def load(
    file: str | Path,
    *,
    overrides: Sequence[str] = (),
    stop: Sequence[str] = (),
    num_samples: int | None = None,
) -> list[Experiment]:
    """Every experiment of `file`, with the command line's wishes on top.

    Raises:
        ConfigErrors: everything that is wrong, each with its file, line and nearest valid choice.
    """
    path = Path(file)
    errors: list[str] = []
    wishes = parse_overrides(overrides, errors)
    stops = parse_stop(stop, errors)
    if path.suffix == ".py":
        experiments = _load_python(path, wishes, errors)
    elif path.suffix in (".yaml", ".yml"):
        experiments = _load_yaml(path, wishes, errors)
    else:
        raise ConfigErrors(str(path), [f"{path}: an experiment file ends in .yaml, .yml or .py"])
    if errors:
        raise ConfigErrors(str(path), list(dict.fromkeys(errors)))
    for experiment in experiments:
        experiment.stop.update(stops)
        experiment.num_samples = num_samples or experiment.num_samples
    return experiments


def from_names(
    run: str,
    env: str,
    *,
    overrides: Sequence[str] = (),
    stop: Sequence[str] = (),
    num_samples: int | None = None,
) -> Experiment:
    """The experiment of `rllib train --run RUN --env ENV`: the algorithm's defaults on that environment.

    Raises:
        ConfigErrors: everything that is wrong.
    """
    errors: list[str] = []
    mark = Mark("command line")
    document = Document({"run": run, "env": env, "config": {}}, {(): mark})
    document = document.overlay(parse_overrides(overrides, errors))
    stops = parse_stop(stop, errors)
    experiment = build_experiment(f"{run}_{env}", document, errors, source="command line")
    if errors or experiment is None:
        raise ConfigErrors("command line", list(dict.fromkeys(errors)))
    experiment.stop.update(stops)
    experiment.num_samples = num_samples or experiment.num_samples
    return experiment


def validate(file: str | Path, *, overrides: Sequence[str] = ()) -> list[str]:
    """The names of the experiments in `file`; a fragment of `configs/` has none, and its keys are checked.

    Raises:
        ConfigErrors: everything that is wrong.
    """
    path = Path(file)
    if path.suffix != ".py" and path.is_file() and _is_fragment(path):
        errors: list[str] = []
        _check_fragment(path, errors)
        if errors:
            raise ConfigErrors(str(path), errors)
        return []
    return [experiment.name for experiment in load(path, overrides=overrides)]


def _load_yaml(path: Path, wishes: Document, errors: list[str]) -> list[Experiment]:
    document = read_yaml(path)
    errors += document.errors
    if document.data is None and document.errors:
        return []
    if not isinstance(document.data, dict) or not document.data:
        found = "is empty" if document.data in (None, {}) else f"holds {_short(document.data)}"
        errors.append(
            f"{path}: {found}; an experiment file maps experiment names to {{run: ..., env: ..., config: ...}}"
        )
        return []
    if "run" in document.data and not isinstance(document.data["run"], dict):
        errors.append(
            f"{document.mark(('run',))}: the experiment's name is missing above `run:`; indent everything below one"
        )
        return []
    experiments = []
    for name in document.data:
        body = document.child(name)
        if not isinstance(body.data, dict):
            errors.append(
                f"{document.mark((name,))}: experiment {name!r} must be a mapping, not {_short(body.data)}"
            )
            continue
        body = _include(body, path.parent, errors).overlay(wishes)
        experiment = build_experiment(name, body, errors, source=str(path))
        if experiment:
            experiments.append(experiment)
    return experiments


def _include(body: Document, folder: Path, errors: list[str]) -> Document:
    """`body` on top of the fragments it includes; a later fragment is on top of an earlier one."""
    names = body.data.get("include") or []
    names = [names] if isinstance(names, str) else names
    merged = Document({}, {})
    before = len(errors)
    for i, name in enumerate(names if isinstance(names, list) else []):
        if not isinstance(name, str):
            continue  # the frame's check says so
        mark = body.mark(("include", i))
        file = fragment(name, folder)
        if file is None:
            known = fragments()
            hint = did_you_mean(name, known)
            errors.append(
                f"{mark}: include: no fragment {name!r} beside the file or in {shipped('configs')}.{hint}"
                f" Known: {', '.join(known) or '(none)'}."
            )
            continue
        part = read_yaml(file)
        errors += part.errors
        if not isinstance(part.data, dict):
            if not part.errors:
                errors.append(f"{file}: a fragment is a mapping of an experiment's keys, such as `config:`")
            continue
        if any(isinstance(value, dict) and "run" in value for value in part.data.values()):
            errors.append(f"{mark}: include: {name!r} is an experiment file, not a fragment of one ({file})")
            continue
        if "include" in part.data:
            errors.append(f"{part.mark(('include',))}: a fragment includes nothing itself: list it at {mark}")
        merged = merged.overlay(part)
    whole = merged.overlay(body)
    whole.marks[()] = body.mark(())
    whole.errors = errors[before:]
    return whole


def _load_python(path: Path, wishes: Document, errors: list[str]) -> list[Experiment]:
    if not path.is_file():
        errors.append(f"{path}: no such file")
        return []
    try:
        module = runpy.run_path(str(path), run_name="rllib_vlm_experiment")
    except (Exception, SystemExit) as error:  # noqa: BLE001  (whatever the user's file raises is a mistake in it)
        errors.append(f"{path}:{_line_of(error, path)}: {type(error).__name__}: {error}")
        return []
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    config: Any = module.get("config")
    if not isinstance(config, AlgorithmConfig):
        errors.append(
            f"{path}: must define `config`, an AlgorithmConfig, at top level (and may define `stop`)"
        )
        return []
    if config.algo_class is None:
        errors.append(f"{path}: `config` names no algorithm; use a class such as VLMPPOConfig")
        return []
    stop = module.get("stop") or {}
    if not isinstance(stop, dict) or not all(isinstance(value, int | float) for value in stop.values()):
        errors.append(f"{path}: `stop` must be a dict of metric to number, not {stop!r}")
        return []
    num_samples = wishes.data.get("num_samples", module.get("num_samples", 1))
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        errors.append(f"{path}: `num_samples` must be a whole number above 0, not {num_samples!r}")
    if wishes.data.get("config"):
        apply_sections(config, wishes, ("config",), errors)
    for key in wishes.data:
        if key not in ("config", "stop", "num_samples"):
            errors.append(
                f"--set {key}: a Python file decides this itself; `--set` reaches its sections only"
            )
    experiment = Experiment(
        name=path.stem,
        algorithm=config.algo_class,
        config=config,
        env=config.env if isinstance(config.env, str) else None,
        stop={**stop, **wishes.data.get("stop", {})},
        num_samples=num_samples,
        metric=module.get("metric"),
        mode=module.get("mode"),
        source=str(path),
    )
    return [experiment]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _line_of(error: BaseException, path: Path) -> int:
    if isinstance(error, SyntaxError) and error.lineno:
        return error.lineno
    line, trace = 1, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _is_fragment(path: Path) -> bool:
    """A file without a `run:` anywhere, whose top-level keys are an experiment's own."""
    data = read_yaml(path).data
    return isinstance(data, dict) and "config" in data and "run" not in data


def _check_fragment(path: Path, errors: list[str]) -> None:
    """Every section and keyword must belong to at least one of our algorithms."""
    from rllib_vlm.config.experiment import algorithm_class
    from rllib_vlm.registry import names

    body = read_yaml(path)
    errors += body.errors
    least: list[str] | None = None
    for run in names("algorithms"):
        found: list[str] = []
        document = Document({"run": run}, {(): Mark(str(path))}).overlay(body)
        try:
            config = algorithm_class(run).get_default_config()  # type: ignore[attr-defined]
        except RLlibVLMError as error:
            found.append(f"{path}: {error}")
        else:
            from rllib_vlm.config.schema import check_frame

            check_frame(document, found)
            if isinstance(document.data.get("config"), dict):
                apply_sections(config, document, ("config",), found)
        least = found if least is None or len(found) < len(least) else least
    errors += least or []
