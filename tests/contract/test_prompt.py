"""Prompt formats: what a run records is what the runner applies, and a template is filled in by replacement alone."""

import json

import pytest

from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.prompt import PromptFormat, check_template, fill

TWO = PromptFormat("pair", "\n", (("facts", "Say: {prompt}"), ("commands", "{prompt} as JSON")))


def render(messages, add):
    return "".join(f"{message['role'][0]}:{message['content']}." for message in messages) + ("a:" if add else "")


def test_prompt_format():
    assert PromptFormat("raw").apply("p", None) == "p"
    assert PromptFormat("pair", "\n").apply("p", None) == "p\n"
    assert PromptFormat("chat").apply("p", render) == "u:p.a:"
    with pytest.raises(EdgeftError, match="no chat template"):
        PromptFormat("chat").apply("p", None)
    for kept in (PromptFormat("pair", " -> "), PromptFormat("chat"), PromptFormat()):
        assert PromptFormat.from_json(json.loads(json.dumps(kept.to_json()))) == kept
    assert PromptFormat.from_json(None) == PromptFormat("raw", "")
    for wrong in ({"kind": "other"}, {"kind": "pair", "separator": 3}):
        with pytest.raises(EdgeftError, match="prompt format"):
            PromptFormat.from_json(wrong)


@pytest.mark.parametrize("kept", [TWO, PromptFormat("pair", " -> "), PromptFormat("chat"), PromptFormat(),
                                  PromptFormat("pair", "", (("t", "\u00e9\n{prompt}"),))])
def test_records_and_headers_keep_a_format(kept):
    assert PromptFormat.from_json(json.loads(json.dumps(kept.to_json()))) == kept
    header = kept.to_metadata()
    assert all(isinstance(value, str) for value in header.values())
    assert PromptFormat.from_metadata(header) == kept
    assert ("templates" in header) == bool(kept.templates)
    assert PromptFormat.from_metadata({}) == PromptFormat()


def test_the_task_picks_the_template():
    assert TWO.apply("x", None, "facts") == "Say: x\n"
    assert TWO.apply("x", None, "commands") == "x as JSON\n"


def test_one_template_needs_no_task_and_several_do():
    same = PromptFormat("pair", "\n", (("a", "Say: {prompt}"), ("b", "Say: {prompt}")))
    assert same.apply("x", None) == TWO.only("facts").apply("x", None) == "Say: x\n"
    with pytest.raises(UsageError, match=r"facts, commands\. Choose one with --task"):
        TWO.apply("x", None)
    with pytest.raises(UsageError, match=r"There is no task 'fact'\. Did you mean 'facts'"):
        TWO.apply("x", None, "fact")
    with pytest.raises(UsageError, match="without prompt templates"):
        PromptFormat("pair", "\n").apply("x", None, "facts")
    assert TWO.only("other").templates == ()


@pytest.mark.parametrize("text", ["{prompt}", "a {prompt} b", "\u00e9{prompt}\n%s $x"])
def test_templates_that_are_right(text):
    assert check_template(text) == text


@pytest.mark.parametrize(("text", "said"), [
    ("no place", "exactly once, found it 0 times"), ("{prompt} {prompt}", "found it 2 times"), ("{}", "0 times"),
    ("{prompt} {0.__class__}", "no braces but"), ("{{prompt}}", "no braces but"), ("{prompt!r}", "0 times"),
    ("{prompt} }", "no braces but"), ("{pro{prompt}mpt}", "no braces but"), (7, "must be text, found int"),
    ("\udcff {prompt}", "half a character")])
def test_templates_that_are_refused(text, said):
    with pytest.raises(ValueError, match=said):
        check_template(text)
    with pytest.raises(EdgeftError, match=said):
        PromptFormat.from_json({"kind": "pair", "templates": {"t": text}})


@pytest.mark.parametrize("stored", ["[1]", "{", "null", '"x"', '{"t": 3}'])
def test_a_strangers_header_is_checked(stored):
    with pytest.raises(EdgeftError, match="template"):
        PromptFormat.from_metadata({"prompt": "pair", "templates": stored})
    with pytest.raises(EdgeftError, match="prompt format"):
        PromptFormat.from_metadata({"prompt": "other"})


def test_what_is_filled_in_is_never_a_template_itself():
    assert fill("say {prompt}", "{prompt} {0}") == "say {prompt} {0}"
    assert fill("", "{prompt}") == "{prompt}"
