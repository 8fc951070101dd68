"""System messages from templates: Jinja2 files in `templates/`, or a file of the user's own.

A template may use `description`, `actions` (empty where they are free text), `max_actions`, `format`
(the parser's instructions), `observation` ("vision" or "text") and `instruction`. One that leaves
`instruction` out gets it in the first user message instead; one that renders to nothing gives no
system message.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rllib_vlm.errors import RLlibVLMError, UnknownNameError

VARIABLES = ("actions", "description", "format", "instruction", "max_actions", "observation")


def template_names() -> list[str]:
    """Every template that comes with the package."""
    folder = resources.files("rllib_vlm.prompts").joinpath("templates")
    return sorted(f.name.removesuffix(".md") for f in folder.iterdir() if f.name.endswith(".md"))


def uses_instruction(template: str) -> bool:
    """Whether the template places the instruction itself."""
    return "instruction" in _load(template)[1]


def render_system(template: str, **values: Any) -> str:
    """The system message.

    Raises:
        UnknownNameError: no such template, or the template uses a variable there is not.
        RLlibVLMError: the template breaks Jinja2's syntax, or the sandbox's rules.
    """
    try:
        return _load(template)[0].render(**values).strip()
    except jinja2.TemplateError as error:
        raise RLlibVLMError(f"template {template!r}: {error}") from error


@cache
def _load(template: str) -> tuple[jinja2.Template, frozenset[str]]:
    source = _source(template)
    # Prompts are text, not HTML; the sandbox is for templates that came from somebody else.
    environment = ImmutableSandboxedEnvironment(
        autoescape=False, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    try:
        used = frozenset(jinja2.meta.find_undeclared_variables(environment.parse(source)))
        compiled = environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise RLlibVLMError(f"template {template!r}, line {error.lineno}: {error.message}") from error
    unknown = sorted(used - set(VARIABLES))
    if unknown:
        raise UnknownNameError(f"template {template!r}: variables", unknown[0], VARIABLES)
    return compiled, used


def _source(template: str) -> str:
    names = template_names()
    if template in names:
        file = resources.files("rllib_vlm.prompts").joinpath("templates", f"{template}.md")
        return file.read_text(encoding="utf-8")
    path = Path(template)
    if template.endswith(".md") and path.is_file():
        return path.read_text(encoding="utf-8")
    raise UnknownNameError(
        "templates", template, names, hint="The path of a file that ends in '.md' works too."
    )
