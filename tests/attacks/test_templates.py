"""Chat templates that run for ever, grow, or try to get out: each ends in an error, and the next one is answered."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from edgeft.contract.chat import Renderer, chat_renderer
from edgeft.contract.errors import EdgeftError

from .conftest import Refusal
from .forge import put

HELLO = [{"role": "user", "content": "hello"}]
LONG = "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}"
DOUBLE = "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"
NEST = "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
ENDLESS = {
    "loops": LONG,
    "one operation": "{{ (9 ** 9) ** (9 ** 9) }}",
    "doubled text": DOUBLE,
    "a wide text": "{{ 'x'.ljust(10**11) }}",
    "a wide number": "{{ '%99999999999d' % 1 }}",
    "format": "{{ '{:99999999999}'.format(1) }}",
    "a replacement": "{% set x = 'a' * 99999 %}{{ x.replace('a', x) | length }}",
    "centred": "{{ 'x' | center(10**11) }}",
    "lists in lists": NEST + "{{ ns.x }}",
    "lists as JSON": NEST + "{{ ns.x | tojson }}",
    "lists compared": NEST + "{% set a = ns.x %}" + NEST + "{{ a == ns.x }}",
    "lorem": "{{ lipsum(n=999999) }}",
    "macros": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(99) }}",
    "at reading": "{{ 'x' * 10**11 }}",
    "a long answer": "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_end(name: str) -> None:
    started = time.monotonic()
    with pytest.raises(EdgeftError, match="chat template: "):
        chat_renderer(ENDLESS[name], {}, seconds=0.5)(HELLO, True)
    assert time.monotonic() - started < 20


def test_after_a_template_that_was_stopped_the_next_messages_are_answered() -> None:
    render = chat_renderer("{% if messages[0].content == 'evil' %}" + LONG + "{% endif %}ok", {}, seconds=0.5)
    assert render(HELLO, True) == "ok"
    with pytest.raises(EdgeftError, match=r"took more than 0.5 s"):
        render([{"role": "user", "content": "evil"}], True)
    assert render(HELLO, True) == "ok"


def test_the_process_can_open_nothing_and_start_nothing(tmp_path: Path) -> None:
    """Even a template that gets out of the sandbox: here the process is asked to do it itself."""
    import subprocess
    import sys

    from edgeft.contract import chat_worker

    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import chat_worker, os, socket\nchat_worker.confine()\n"
        "for attempt in (lambda: open('/etc/passwd'), lambda: open(sys.argv[2], 'w'), socket.socket, os.pipe,\n"
        "                lambda: bytearray(1 << 30)):\n"
        "    try:\n        attempt()\n        print('done')\n"
        "    except (OSError, MemoryError) as error:\n        print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(Path(chat_worker.__file__).parent), str(tmp_path / "x")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["refused"] * 5
    assert not (tmp_path / "x").exists()


def test_no_process_stays() -> None:
    render: Renderer | None = chat_renderer("ok", {})
    assert render is not None
    process = render._process
    assert process is not None
    assert render(HELLO, True) == "ok"
    render = None
    assert process.poll() is not None
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


@pytest.mark.parametrize(
    ("name", "held", "reason"),
    [
        ("chat_template.jinja", b"{{ 'x' ", "cannot be read"),
        ("chat_template.jinja", b"x" * 300_000, "are read"),
        ("chat_template.jinja", b"x" * 2_000_000, "at most"),
        ("chat_template.jinja", b"\xff\xfe", "no text"),
        ("tokenizer_config.json", b"[" * 100_000, "is not JSON"),
        ("tokenizer_config.json", b"x" * 5_000_000, "at most"),
        ("tokenizer_config.json", b'{"bos_token": [1], "chat_template": "x"}', ""),
    ],
)
def test_a_bundles_template(mine: Path, refused: Refusal, name: str, held: bytes, reason: str) -> None:
    if not reason:  # the template's own file is there, and the token is of no kind
        reason = "bos_token must be text"
    put(mine, name, held)
    refused("load", mine, reason, sessions=1)
