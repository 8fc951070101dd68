"""Errors travel between Ray's processes whole."""

import inspect
import pickle

import pytest

from rllib_vlm import errors

EXAMPLES = {
    errors.UnknownNameError: errors.UnknownNameError(
        "models", "qwn", ["qwen2_5_vl", "llama"], hint="Look again."
    ),
    errors.ConfigErrors: errors.ConfigErrors("a.yaml", ["one", "two"]),
    errors.MissingExtraError: errors.MissingExtraError("lora", "lora"),
}
CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.RLlibVLMError)]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_survives_pickling(kind: type[errors.RLlibVLMError]) -> None:
    error = EXAMPLES[kind] if kind in EXAMPLES else kind("what was wrong")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again) == vars(error)
