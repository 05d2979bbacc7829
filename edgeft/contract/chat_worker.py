"""The process that a chat template runs in: `python -I -S chat_worker.py MOST_CHARACTERS PLACES_OF_PACKAGES...`.

It reads lines of JSON and answers each with one: first {"template", "tokens"}, then any number of {"messages", "add"}.
Started by path, so that nothing else of this project is imported here.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib
import json
import sys
from datetime import datetime
from typing import Any

ROOM = 192 << 20  # bytes of memory beyond what the interpreter takes; JSON and text of 8 MiB take a third of it
# what jinja2 imports when it first needs it, which is too late behind `confine`
MODULES = ("jinja2.compiler", "jinja2.constants", "jinja2.debug", "jinja2.ext", "jinja2.loaders", "jinja2.optimizer",
           "jinja2.sandbox", "linecache", "tokenize", "traceback", "unicodedata", "random", "pprint", "urllib.parse")
NOTHING = ("RLIMIT_FSIZE", "RLIMIT_NPROC", "RLIMIT_CORE")


def main() -> None:
    """Answer until there is no more to answer."""
    most, *places = sys.argv[1:]
    sys.path += places
    for name in MODULES:
        importlib.import_module(name)
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    datetime.now().strftime("%Y")  # what it imports lazily is imported while that can still be done
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=["jinja2.ext.loopcontrols"])
    environment.intercepted_binops = frozenset(environment.binop_table)  # computed when rendered, not when it is read

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment.globals.update(raise_exception=refuse, strftime_now=lambda pattern: datetime.now().strftime(pattern))
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    for codec in ("unicode_escape", "ascii", "latin-1", "utf-8"):  # Jinja reads its strings with them
        codecs.lookup(codec)
    for warm in ("{{ 'a\\n' | nothing }}", "{{ refuse() }}{% for m in [1] %}{{ m | trim }}{% endfor %}"):
        with contextlib.suppress(Exception):  # also what is imported only for an error
            environment.from_string(warm).render()
    job = json.loads(sys.stdin.readline())
    confine()
    try:
        template = environment.from_string(job["template"])
    except Exception as error:  # whatever a broken template raises, MemoryError and RecursionError too
        say({"error": f"cannot be read ({error})"[:1000]})
        return
    say({})
    for line in sys.stdin:
        say(rendered(template, json.loads(line), job["tokens"], int(most)))


def rendered(template: Any, asked: dict[str, Any], tokens: dict[str, str], most: int) -> dict[str, str]:
    """The text, or why there is none."""
    parts, size = [], 0
    try:
        for part in template.generate(messages=asked["messages"], add_generation_prompt=asked["add"], **tokens):
            size += len(part)
            if size > most:
                return {"error": f"produced more than {most} characters, at most {most} are taken"}
            parts.append(part)
        return {"text": "".join(parts)}
    except Exception as error:  # a template can raise anything; all of it is the template's fault
        return {"error": f"refused these messages ({error})"[:1000]}


def confine() -> None:
    """From now on: no file is opened, no process started, and memory ends."""
    try:
        import resource
    except ImportError:  # not on Windows; the time limit holds there all the same
        return
    limits = {"RLIMIT_NOFILE": 3, **dict.fromkeys(NOTHING, 0)}
    with contextlib.suppress(OSError), open("/proc/self/statm") as stream:
        limits["RLIMIT_AS"] = int(stream.read().split()[0]) * resource.getpagesize() + ROOM
    for name, most in limits.items():
        kind = getattr(resource, name, None)
        if kind is not None:
            with contextlib.suppress(ValueError, OSError):  # a system without this limit
                resource.setrlimit(kind, (most, most))


def say(value: dict[str, str]) -> None:
    """One line."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
