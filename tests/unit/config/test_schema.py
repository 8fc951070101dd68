import pytest

from rllib_vlm.config.document import parse_yaml
from rllib_vlm.config.schema import check_frame


def check(text: str):
    errors: list[str] = []
    return check_frame(parse_yaml(text, "f"), errors), errors


def test_defaults_keep_the_last_checkpoint():
    frame, errors = check("run: VLMPPO")
    assert not errors
    assert frame.num_samples == 1
    assert frame.checkpoint_config.checkpoint_at_end
    assert frame.config == {}


def test_short_forms():
    frame, errors = check("{run: A, scheduler: fifo, include: models/tiny, loggers: wandb, config: }")
    assert not errors
    assert frame.scheduler.type == "fifo"
    assert frame.include == ["models/tiny"]
    assert frame.loggers == ["wandb"]


def test_scheduler_keeps_its_own_keywords():
    frame, _ = check("{run: A, metric: m, mode: max, scheduler: {type: asha, max_t: 9}}")
    assert frame.scheduler.kwargs == {"max_t": 9}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run: A\nnum_sample: 2", "f:2: unknown key 'num_sample'. Did you mean 'num_samples'?"),
        ("run: A\ntraining: {}", "belong under `config:`"),
        ("env: x", "f:1: `run:` is missing"),
        ("run: 3", "f:1: run must be a valid string, not 3"),
        (
            "run: A\nstop: {a: b}",
            "f:2: stop.a must be a valid integer or a valid number or a valid boolean, not 'b'",
        ),
        ("run: A\nnum_samples: 0", "f:2: num_samples must be greater than or equal to 1, not 0"),
        ("run: A\nmode: maxx\nmetric: m", "f:2: mode must be 'max' or 'min', not 'maxx'"),
        ("run: A\nmode: max", "belong together"),
        ("run: A\nscheduler: asha", "needs `metric:` and `mode:`"),
        (
            "run: A\ncheckpoint_config:\n  num_keep: 1",
            "f:3: unknown key 'num_keep'. Did you mean 'num_to_keep'?",
        ),
        ("run: A\nloggers: [{wandb: 3}]", "f:2: loggers.0.wandb must be a valid dictionary, not 3"),
        ("[1]", "f:1: an experiment must be a mapping of keys, not [1]"),
    ],
)
def test_a_mistake_is_one_message_with_its_line(text: str, expected: str):
    frame, errors = check(text)
    assert frame is None
    assert len(errors) == 1
    assert expected in errors[0]


def test_mistakes_come_all_at_once():
    _, errors = check("run: 1\nnum_samples: x\nmod: max\nmax_failures: -2")
    assert len(errors) == 4
