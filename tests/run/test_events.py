"""What the runner says: a line of JSON an event on request, and what a person should know always."""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeft.contract import events
from edgeft.contract.errors import EdgeftError, UsageError
from tests.conftest import edgeft
from tests.run.conftest import PROMPTS, open_model


@pytest.fixture
def log() -> Iterator[Any]:
    """A log of JSON; called, it gives the events so far."""
    stream = io.StringIO()
    events.log_json(stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    events.LOG.handlers.clear()
    events.LOG.setLevel(logging.NOTSET)
    events.LOG.propagate = True


def named(lines: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == name]


def test_every_event_is_a_line(bundle: Path, kinds: dict[str, Path], tmp_path: Path, log: Any) -> None:
    model = open_model(bundle, kinds, keep_prompts=0)
    answer = model.generate("the", adapters={"low": 1.0}, raw=True, max_tokens=3)
    with pytest.raises(EdgeftError, match="nobody"):
        model.generate("a", adapters={"nobody": 1.0})
    (tmp_path / "cut.safetensors").write_bytes(kinds["low"].read_bytes()[:-7])
    with pytest.raises(EdgeftError, match="claims bytes"):
        model.load_adapter("cut", tmp_path / "cut.safetensors")
    model.generate("the", adapters={}, raw=True, max_tokens=3)
    model.budget._shrink(0)
    lines = log()
    assert [line["event"] for line in lines] == [
        "load", "adapter_opened", "request_begun", "request_ended", "refusal", "adapter_refused", "request_begun",
        "request_ended", "eviction"]
    load, begun, ended = lines[0], named(lines, "request_begun")[0], named(lines, "request_ended")[0]
    assert load["bundle"] == str(bundle)
    assert load["limit_mib"] == model.budget.limit >> 20
    assert begun["request"] == ended["request"] != named(lines, "request_begun")[1]["request"]
    assert (ended["adapters"], ended["tokens"], ended["finish"]) == ({"low": 1.0}, len(answer.tokens), answer.finish)
    assert "nobody" in named(lines, "refusal")[0]["reason"]
    assert "claims bytes" in named(lines, "adapter_refused")[0]["reason"]
    assert all(line["time"].endswith("+00:00") and line["level"] == "info" for line in lines)


def test_a_request_that_fails_is_told(bundle: Path, kinds: dict[str, Path], log: Any) -> None:
    model = open_model(bundle, kinds, keep_prompts=0)
    limit, model.budget.limit = model.budget.limit, model.budget.fixed + 1000
    with pytest.raises(EdgeftError, match="--memory"):
        model.generate("a", adapters={"low": 1.0}, raw=True)
    assert "--memory" in named(log(), "request_failed")[0]["reason"]
    model.budget.limit = limit


def test_no_text_breaks_out_of_its_line(log: Any) -> None:
    events.event("refusal", reason='a\n{"event": "load"}\u2028\x00"')
    (line,) = log()
    assert line["reason"] == 'a\n{"event": "load"}\u2028\x00"'


def test_without_a_log_nothing_is_written_but_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    events.event("load", bundle="x")
    assert capsys.readouterr() == ("", "")
    events.warn("fallback", "it falls back", to="there")
    assert capsys.readouterr() == ("", "it falls back\n")


def test_a_warning_in_the_log_is_a_line_too(log: Any, capsys: pytest.CaptureFixture[str]) -> None:
    events.warn("fallback", "it falls back", to="there")
    (line,) = log()
    assert (line["event"], line["level"], line["message"], line["to"]) == (
        "fallback", "warning", "it falls back", "there")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("way", ["option", "variable"])
def test_the_command_logs(bundle: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[object] = ["run", bundle, "--prompt", PROMPTS[0], "--max-tokens", 3]
    plain = edgeft(*words)
    assert plain.stderr == ""
    if way == "variable":
        monkeypatch.setenv("EDGEFT_LOG", "json")
    else:
        words += ["--log", "json"]
    done = edgeft(*words)
    assert done.stdout == plain.stdout
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {"load", "request_begun", "request_ended"} <= {line["event"] for line in lines}
    failed = edgeft(*words, "--adapter", "nobody", check=False)
    last = json.loads(failed.stderr.splitlines()[-1])
    assert (failed.returncode, last["event"], last["exit_code"], last["level"]) == (2, "failed", 2, "error")
    assert "nobody" in last["reason"]
    failed = edgeft(*words, "--max-tokens", "many", check=False)
    assert failed.returncode == 2
    if way == "variable":  # an option that is not read yet cannot say how its own command's words are told
        assert "many" in json.loads(failed.stderr.splitlines()[-1])["reason"]


def test_a_log_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="text or json, found 'xml'"):
        events.log_as("xml")
    monkeypatch.setenv("EDGEFT_LOG", "xml")
    done = edgeft("devices", check=False)
    assert done.returncode == 2
    assert "EDGEFT_LOG must be text or json" in done.stderr


# Never silent

def test_a_tokenizer_that_remembers_a_truncation_cuts_no_prompt(bundle: Path, tmp_path: Path) -> None:
    from edgeft.contract.files import sha256
    from edgeft.run import load

    mine = Path(shutil.copytree(bundle, tmp_path / "mine"))
    tokenizer = json.loads((mine / "tokenizer.json").read_text())
    tokenizer["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    (mine / "tokenizer.json").write_text(json.dumps(tokenizer))
    manifest = json.loads((mine / "bundle.json").read_text())
    entry = manifest["files"]["tokenizer.json"]
    entry["size"], entry["sha256"] = (mine / "tokenizer.json").stat().st_size, sha256(mine / "tokenizer.json")
    (mine / "bundle.json").write_text(json.dumps(manifest))
    from tokenizers import Tokenizer

    assert len(Tokenizer.from_file(str(mine / "tokenizer.json")).encode(PROMPTS[2]).ids) == 3
    found, wanted = (load(folder).generate(PROMPTS[2], adapters={}, max_tokens=1).prompt_tokens
                     for folder in (mine, bundle))
    assert found == wanted
    assert len(found) > 3


def test_a_template_that_drops_a_message_is_refused(bundle: Path, kinds: dict[str, Path]) -> None:
    from edgeft.contract.chat import chat_renderer
    from edgeft.contract.shown import faithful

    model = open_model(bundle, kinds)
    talk = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a"}]
    assert model.generate(talk, adapters={}, max_tokens=2).prompt_tokens
    model.render = faithful(chat_renderer("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
                                          {}))
    with pytest.raises(EdgeftError, match="drops message 1 of 2, the system's"):
        model.generate(talk, adapters={}, max_tokens=2)
    assert model.generate(talk[1:], adapters={}, max_tokens=2).prompt_tokens


def test_a_bundle_is_opened_with_a_template_that_is_watched(bundle: Path, tmp_path: Path) -> None:
    """End to end, by the command: the template of the bundle itself ignores the system's message."""
    from edgeft.contract.files import sha256

    mine = Path(shutil.copytree(bundle, tmp_path / "mine"))
    (mine / "chat_template.jinja").write_text(
        "{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>")
    manifest = json.loads((mine / "bundle.json").read_text())
    manifest["files"]["chat_template.jinja"] = {**manifest["files"]["chat_template.jinja"],
                                                "size": (mine / "chat_template.jinja").stat().st_size,
                                                "sha256": sha256(mine / "chat_template.jinja")}
    (mine / "bundle.json").write_text(json.dumps(manifest))
    words = ("chat", mine, "--adapter", "none", "--max-tokens", 2)
    assert "drops message 1 of 2, the system's" in edgeft(*words, "--system", "be brief", input="a\n").stderr
    assert "drops" not in edgeft(*words, input="a\n").stderr


def test_a_full_context_is_said(bundle: Path) -> None:
    done = edgeft("run", bundle, "--prompt", "cat " * 60, "--adapter", "none", "--max-tokens", 9999, "--json")
    assert (json.loads(done.stdout)["finish"] == "context") == ("context of" in done.stderr)
    assert json.loads(done.stdout)["finish"] == "context"


def test_a_provider_that_is_not_there_is_refused(bundle: Path, kinds: dict[str, Path],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime as ort

    assert open_model(bundle, kinds)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["AzureExecutionProvider"])
    with pytest.raises(EdgeftError, match="CPUExecutionProvider"):
        open_model(bundle, kinds)


def test_turns_that_no_longer_fit_are_said(bundle: Path) -> None:
    done = edgeft("chat", bundle, "--adapter", "none", "--max-tokens", 4,
                  input="the red cat runs a tree and sees a dog\n" * 25)
    assert "oldest turns no longer fit" in done.stderr
    assert "oldest" not in edgeft("chat", bundle, "--adapter", "none", "--max-tokens", 4, input="a\n").stderr
