"""Chat templates, rendered by sandboxed Jinja: a template is a stranger's program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .data import Render
from .errors import EdgeftError
from .files import read_json

MAX_TEMPLATE = 256 << 10
MAX_TEXT = 8 << 20


def chat_renderer(template: str, special_tokens: dict[str, str]) -> Render:
    """A function (messages, add_generation_prompt) -> text; EdgeftError when the template is broken or refuses."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if len(template) > MAX_TEMPLATE:
        raise EdgeftError(f"chat template: {len(template)} characters, at most {MAX_TEMPLATE} are read")

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=["jinja2.ext.loopcontrols"])
    environment.globals.update(raise_exception=refuse, strftime_now=_strftime_now)
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    try:
        compiled = environment.from_string(template)
    except (TemplateError, RecursionError, MemoryError, SyntaxError) as error:
        raise EdgeftError(f"chat template: cannot be read ({error})") from None

    def render(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        try:
            text = compiled.render(messages=messages, add_generation_prompt=add_generation_prompt,
                                   **special_tokens)
        except Exception as error:  # a template can raise anything; all of it is the template's fault
            raise EdgeftError(f"chat template: refused these messages ({error})") from None
        if len(text) > MAX_TEXT:
            raise EdgeftError(f"chat template: produced {len(text)} characters, at most {MAX_TEXT} are taken")
        return text

    return render


def _strftime_now(pattern: str) -> str:
    from datetime import datetime

    return datetime.now().strftime(pattern)


def read_chat_template(folder: Path) -> Render | None:
    """The renderer of a model folder or bundle; None where it has no chat template."""
    config_path = Path(folder) / "tokenizer_config.json"
    config: dict[str, Any] = read_json(config_path) if config_path.is_file() else {}
    path = Path(folder) / "chat_template.jinja"
    template = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
    if not isinstance(template, str):
        return None
    tokens = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = config.get(name)
        text = token.get("content") if isinstance(token, dict) else token or ""
        if not isinstance(text, str):
            raise EdgeftError(f"{config_path}: {name} must be text, found {token!r}")
        tokens[name] = text
    return chat_renderer(template, tokens)
