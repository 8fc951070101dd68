"""What is refused of a run with engines before anything starts."""

from __future__ import annotations

import pytest
from tiny import tiny_config

from rllib_vlm.errors import ConfigErrors


def test_the_run_tells_its_engines_what_it_knows():
    config = tiny_config("ppo").generation(backend="vllm", engine={"num_cpus": 0.5})
    config.training(row_tokens=512).rl_module(model_config={**config.model_config, "dtype": "bfloat16"})
    config.validate()
    settings = config.vllm_settings
    assert (settings.max_model_len, settings.dtype, settings.num_cpus) == (512, "bfloat16", 0.5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda c: c.rl_module(model_config={"family": "mllama", "size": "tiny"}),
            "do not know the family 'mllama'",
        ),
        (lambda c: c.generation(engine={"cuont": 2}), "Did you mean 'count'?"),
        (lambda c: c.generation(engine=["count"]), "a mapping of options"),
        (lambda c: c.generation(temperature=2.5), "temperature"),
        (lambda c: c.generation(session_cache_mib=64), "session_cache_mib"),
    ],
)
def test_mistakes_are_told(change, said):
    config = tiny_config("ppo").generation(backend="vllm")
    change(config)
    with pytest.raises(ConfigErrors) as caught:
        config.validate()
    assert said in str(caught.value)
