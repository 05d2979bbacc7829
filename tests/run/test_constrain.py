"""Structured output: what a schema or grammar allows comes out, nothing else does; what cannot be held is refused."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from edgeft import cli
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.run import Model, load
from edgeft.run.constrain import Constraint, Grammar
from edgeft.run.request import Request
from edgeft.run.sampling import Sampler
from edgeft.starter import MODEL
from tests.conftest import export_bundle

PROMPT = "set a timer for ten minutes"
SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["size", "count", "code", "tags", "at"],
    "properties": {
        "size": {"enum": ["small", "large"]},
        "count": {"type": "integer", "minimum": 3, "maximum": 117},
        "code": {"type": "string", "pattern": "^[A-F]{2}-[0-9]{3}$"},
        "tags": {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 6}, "minItems": 2,
                 "maxItems": 3},
        "at": {"type": "object", "additionalProperties": False, "required": ["room"],
               "properties": {"room": {"type": ["string", "null"], "maxLength": 8}, "now": {"type": "boolean"}}}}}
GRAMMAR = 'start: "turn " ("on" | "off") " " /[a-z]{3,9}/ | "wait"'


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter model as a bundle, fp32."""
    return export_bundle(tmp_path_factory.mktemp("starter") / "bundle", MODEL, "--quant", "fp32")


@pytest.fixture(scope="module")
def model(starter: Path) -> Model:
    return load(starter)


def fits(text: str) -> bool:
    """Whether a text is what SCHEMA describes, by hand."""
    try:
        value = json.loads(text)
        tags, place = value["tags"], value["at"]
        return (set(value) == {"size", "count", "code", "tags", "at"} and value["size"] in ("small", "large")
                and type(value["count"]) is int and 3 <= value["count"] <= 117
                and re.fullmatch(r"[A-F]{2}-[0-9]{3}", value["code"]) is not None
                and 2 <= len(tags) <= 3 and all(isinstance(tag, str) and 1 <= len(tag) <= 6 for tag in tags)
                and {"room"} <= set(place) <= {"room", "now"} and type(place.get("now", True)) is bool
                and (place["room"] is None or len(place["room"]) <= 8))
    except (ValueError, KeyError, TypeError):
        return False


@pytest.mark.parametrize("change", [
    {"size": "medium"}, {"count": 2}, {"count": 118}, {"count": 3.5}, {"code": "AG-123"}, {"tags": ["a"]},
    {"tags": ["a", ""]}, {"at": {}}, {"at": {"room": 3}}, {"more": 1}], ids=str)
def test_the_check_by_hand_sees_what_is_wrong(change: dict[str, Any]) -> None:
    right = {"size": "small", "count": 3, "code": "AF-123", "tags": ["a", "b"], "at": {"room": None}}
    assert fits(json.dumps(right))
    assert not fits(json.dumps({**right, **change}))


def spread(model: Model, **options: Any) -> list[Any]:
    """Answers, greedy and drawn with several seeds."""
    return [model.generate(PROMPT, max_tokens=200, **options),
            *(model.generate(PROMPT, max_tokens=200, temperature=1.0, seed=seed, **options) for seed in range(6))]


def test_every_answer_fits_the_schema_and_without_it_none_does(model: Model) -> None:
    held = spread(model, json_schema=SCHEMA)
    assert {answer.finish for answer in held} == {"eos"}
    assert [answer for answer in held if not fits(answer)] == []
    assert len(set(held)) > 3
    assert not any(map(fits, spread(model)))


def test_a_schema_as_text_is_the_schema(model: Model) -> None:
    text, value = (model.generate(PROMPT, json_schema=item, max_tokens=200) for item in (json.dumps(SCHEMA), SCHEMA))
    assert text == value


def test_a_grammar_holds_and_without_it_nothing_does(model: Model) -> None:
    wanted = re.compile(r"turn (on|off) [a-z]{3,9}|wait")
    held = spread(model, grammar=GRAMMAR)
    assert all(wanted.fullmatch(answer) for answer in held), held
    assert not any(wanted.fullmatch(answer) for answer in spread(model))


def test_an_answer_that_is_cut_says_so(model: Model) -> None:
    cut = model.generate(PROMPT, json_schema=SCHEMA, max_tokens=5)
    whole = model.generate(PROMPT, json_schema=SCHEMA, max_tokens=200)
    assert (cut.finish, len(cut.tokens)) == ("length", 5)
    assert cut.tokens == whole.tokens[:5]
    assert not fits(cut)
    exact = model.generate(PROMPT, json_schema=SCHEMA, max_tokens=len(whole.tokens))
    assert (exact.finish, exact.text) == ("eos", whole.text)


def test_each_row_of_a_batch_keeps_to_it_by_itself(model: Model) -> None:
    prompts = [PROMPT, "play something", "the weather in Vienna, please, and tomorrow too"]
    rows = model.batch(prompts, json_schema=SCHEMA, max_tokens=200)
    assert [row for row in rows if not fits(row)] == []
    assert [row.text for row in rows] == [model.generate(prompt, json_schema=SCHEMA, max_tokens=200).text
                                          for prompt in prompts]


def test_the_stream_is_the_answer(model: Model) -> None:
    pieces = list(model.stream(PROMPT, json_schema=SCHEMA, max_tokens=200))
    assert len(pieces) > 5
    assert fits("".join(pieces))


def test_the_logits_of_the_caller_stay_as_they_are(model: Model) -> None:
    """A batch's rows share one buffer, and one row's mask is not another's."""
    constraint = Grammar.from_lark('start: "wait"', model.tokenizer, model.eos, model.graphs.vocabulary).start()
    row = Request([1], {}, Sampler(), model.tokenizer, model.eos, 64, constraint=constraint)
    logits = np.zeros(model.graphs.vocabulary, np.float32)
    row.take(logits)
    assert np.isfinite(logits).all()


# --- the parts: mask, forced, take, try_tokens, done


def tokenizers() -> list[Any]:
    """Byte-level BPE, and BPE with byte fallback as sentencepiece makes it, where there is one."""
    shared = Path(__file__).resolve().parents[3] / "shared" / "models"
    return [pytest.param(path, id=path.name, marks=() if path.is_dir() else pytest.mark.skip(f"no {path}"))
            for path in (MODEL, shared / "stories3m", shared / "stories260k")]


def allowed(constraint: Constraint, width: int) -> list[int]:
    """Tokens that the mask leaves alone."""
    logits = np.zeros(width, np.float32)
    constraint.mask(logits)
    assert set(np.unique(logits).tolist()) <= {0.0, -np.inf}
    return np.flatnonzero(logits == 0).tolist()


@pytest.mark.parametrize("folder", tokenizers())
def test_forced_tokens_are_those_that_the_mask_leaves_alone(folder: Path) -> None:
    """Any walk through the mask ends in an answer that fits; a mask of one token is forced, and no other is."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    width = tokenizer.get_vocab_size() + 24  # a model's vocabulary is often padded
    grammar = Grammar.from_json_schema(SCHEMA, tokenizer, frozenset([2]), width)
    forced_steps = free_steps = 0
    for seed in range(5):
        rng, constraint, tokens = np.random.default_rng(seed), grammar.start(), []
        while not constraint.done:
            forced, left = constraint.forced(), allowed(constraint, width)
            assert (len(left) == 1) == bool(forced)
            assert forced[:1] == (left if forced else [])
            assert constraint.try_tokens(forced) == len(forced)
            forced_steps, free_steps = forced_steps + bool(forced), free_steps + (not forced)
            tokens.append(int(rng.choice(left)))
            constraint.take(tokens[-1])
        assert max(tokens) < tokenizer.get_vocab_size()
        assert fits(tokenizer.decode(tokens)), tokenizer.decode(tokens)
    assert min(forced_steps, free_steps) > 20


@pytest.fixture(scope="module")
def start() -> Callable[..., Constraint]:
    """start(grammar, eos) -> a constraint over the starter's tokenizer."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    return lambda text, eos=(2,): Grammar.from_lark(text, tokenizer, frozenset(eos), 2048).start()


def ids(text: str) -> list[int]:
    """Tokens of a text by the starter's tokenizer."""
    found: list[int] = Tokenizer.from_file(str(MODEL / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    return found


def test_all_ends_are_allowed_where_the_answer_may_end_and_only_there(start: Callable[..., Constraint]) -> None:
    constraint = start('start: "wait" " please"?', (2, 4, 5000))
    for token in ids("wait"):
        assert not {2, 4} & set(allowed(constraint, 2048))
        constraint.take(token)
    assert {2, 4} < set(allowed(constraint, 2048))
    assert not constraint.done
    constraint.take(4)
    assert constraint.done


def test_a_whole_answer_is_done_without_an_end(start: Callable[..., Constraint]) -> None:
    constraint = start('start: "wait"')
    for token in ids("wait"):
        assert not constraint.done
        constraint.take(token)
    assert constraint.done
    assert allowed(constraint, 2048) == [2]


def test_proposed_tokens_are_counted_and_change_nothing(start: Callable[..., Constraint]) -> None:
    constraint = start('start: "turn the light " ("on" | "off")')
    right, wrong = ids("turn the light off"), ids("turn the lamp off")
    shared = sum(1 for left, other in zip(right, wrong, strict=False) if left == other)
    before = allowed(constraint, 2048)
    assert constraint.try_tokens([*right, 2]) == len(right) + 1
    assert constraint.try_tokens([*right, 2, 2]) == len(right) + 1
    assert 0 < constraint.try_tokens(wrong) <= shared + 1 < len(wrong)
    assert constraint.try_tokens([2]) == 0
    assert allowed(constraint, 2048) == before


def test_a_token_that_is_not_allowed_is_refused(start: Callable[..., Constraint]) -> None:
    for token in (2, 7, 5000):
        with pytest.raises(EdgeftError, match=f"token {token} is not allowed"):
            start('start: "wait"').take(token)


def test_two_requests_of_one_grammar_do_not_meet() -> None:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    grammar = Grammar.from_lark(GRAMMAR, tokenizer, frozenset([2]), 2048)
    first, second = grammar.start(), grammar.start()
    before = allowed(second, 2048)
    first.take(before[-1])
    assert allowed(first, 2048) != before
    assert allowed(second, 2048) == before


def test_a_tokenizer_is_prepared_once_for_all_its_grammars() -> None:
    from edgeft.run.constrain import _compiled, _vocabulary

    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    misses = _vocabulary.cache_info().misses, _compiled.cache_info().misses
    for text in ('start: "a"', 'start: "b"', 'start: "a"'):
        Grammar.from_lark(text, tokenizer, frozenset([2]), 2048)
    assert (_vocabulary.cache_info().misses, _compiled.cache_info().misses) == (misses[0] + 1, misses[1] + 2)


def test_spaces_are_those_of_json_dumps_unless_the_schema_says_otherwise(model: Model) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": [2, 3]}}, "required": ["a", "b"],
              "additionalProperties": False}
    assert model.generate(PROMPT, json_schema=schema) == '{"a": 1, "b": [2, 3]}'
    tight = {**schema, "x-guidance": {"item_separator": ",", "key_separator": ":"}}
    assert model.generate(PROMPT, json_schema=tight) == '{"a":1,"b":[2,3]}'


def test_the_page_is_true(model: Model) -> None:
    page = (Path(__file__).parents[2] / "docs" / "structured-output.md").read_text(encoding="utf-8")
    (schema,), (lark,) = (re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("json", "lark"))
    value = json.loads(model.generate(PROMPT, json_schema=schema))
    assert list(value) == ["intent", "minutes", "name"]
    assert 1 <= value["minutes"] <= 600
    assert re.fullmatch(r"turn (on|off) the [a-z]{3,12}( room)?", model.generate(PROMPT, grammar=lark))


# --- what is refused


@pytest.mark.parametrize(("schema", "said"), [
    ({"type": "array", "uniqueItems": True}, r'Unimplemented keys: \["uniqueItems"\]'),
    ({"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}, "Unimplemented keys"),
    ({"type": "object", "propertys": {}}, r"unknown keyword 'propertys'\. Did you mean 'properties'"),
    ({"type": "array", "items": {"anyOf": [{"type": "integer", "minimun": 3}]}}, "#/items/anyOf/0: unknown keyword"),
    ({"type": "integer", "minimum": 2, "exclusiveMinimum": True}, "#/exclusiveMinimum  declared True"),
    ({"type": "strin"}, "Invalid type: strin"),
    ({"type": "string", "format": "nonsense"}, "Unknown format: nonsense"),
    ({"type": "string", "pattern": "("}, "error: unclosed group"),
    ({"$ref": "http://example.invalid/schema.json"}, "does not fetch"),
    ({"enum": []}, "Unsatisfiable"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, "Unsatisfiable"),
    ({"type": "number", "minimum": float("nan")}, "is not JSON"),
    ({"enum": [{1, 2}]}, "is not JSON"),
    ("{", "is not JSON"), ("[" * 100_000, "is not JSON"), ("true", "an object, found bool"),
])
def test_a_schema_that_cannot_be_held_is_refused(model: Model, schema: dict[str, Any] | str, said: str) -> None:
    with pytest.raises(EdgeftError, match=f"(?s)^json_schema: .*{said}"):
        model.generate(PROMPT, json_schema=schema)


def test_notes_and_names_are_no_keywords(model: Model) -> None:
    schema = {"title": "t", "description": "d", "x-mine": 1, "type": "object", "required": ["propertys"],
              "additionalProperties": False, "properties": {"propertys": {"const": 1, "$comment": "c", "default": 1}}}
    assert model.generate(PROMPT, json_schema=schema) == '{"propertys": 1}'


@pytest.mark.parametrize(("text", "said"), [
    ("", "Empty grammar"), ("start: foo", 'unknown name: "foo"'), ("start: /[/", "error: unclosed character class"),
    ('begin: "a"', "no start rule"), ("start: /[^\\s\\S]/", "allows no text"), ('start: ""', "the empty answer alone"),
    ('start: %json {"x-guidance": {"lenient": true}, "uniqueItems": true}', "uniqueItems"),
])
def test_a_grammar_that_cannot_be_held_is_refused(model: Model, text: str, said: str) -> None:
    with pytest.raises(EdgeftError, match=f"^grammar: .*{said}") as caught:
        model.generate(PROMPT, grammar=text)
    assert "\n" not in str(caught.value)


def test_a_dead_end_in_the_middle_is_an_error_and_no_end(start: Callable[..., Constraint]) -> None:
    constraint = start('start: "wait" /[^\\s\\S]/')
    with pytest.raises(EdgeftError, match="allows no text from here on"):
        for token in ids("wait again"):
            assert 2 not in allowed(constraint, 2048)
            constraint.take(token)


def test_a_tokenizer_without_bytes_is_refused() -> None:
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    with pytest.raises(EdgeftError, match=r"^grammar: llguidance cannot take this bundle's tokenizer"):
        Grammar.from_lark('start: "a"', words, frozenset([0]), 2)


def test_a_schema_and_a_grammar_are_one_too_many(model: Model) -> None:
    with pytest.raises(UsageError, match="one of them"):
        model.generate(PROMPT, json_schema=SCHEMA, grammar=GRAMMAR)


def test_without_llguidance_it_says_what_to_install(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(EdgeftError, match=r"pip install 'edgeft\[grammar\]'"):
        model.generate(PROMPT, grammar='start: "not compiled before"')
    assert model.generate(PROMPT, max_tokens=2).tokens


# --- the command line


@pytest.fixture
def run(starter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """run(options, files) -> exit code, stdout, stderr of `edgeft run`."""
    def call(*options: str, **files: str | bytes) -> tuple[int, str, str]:
        for name, held in files.items():
            (tmp_path / name).write_bytes(held if isinstance(held, bytes) else held.encode())
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(["run", str(starter), "--prompt", PROMPT, "--max-tokens", "200",
                      *(str(tmp_path / option) if option in ("s", "g") else option for option in options)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(ended.value.code or 0), out, err

    return call


def test_the_command_line_keeps_to_files(run: Callable[..., tuple[int, str, str]], model: Model) -> None:
    code, out, err = run("--json-schema", "s", s=json.dumps(SCHEMA))
    assert (code, err, out) == (0, "", model.generate(PROMPT, json_schema=SCHEMA, max_tokens=200) + "\n")
    code, out, _ = run("--json-schema", "s", "--json", s=json.dumps(SCHEMA))
    assert fits(json.loads(out)["text"])
    code, out, _ = run("--grammar", "g", g=GRAMMAR)
    assert (code, out) == (0, model.generate(PROMPT, grammar=GRAMMAR) + "\n")


def test_a_chat_keeps_to_a_schema_in_every_turn(starter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s").write_text(json.dumps(SCHEMA))
    for options, kept in ((["--json-schema", str(tmp_path / "s")], True), ([], False)):
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{PROMPT}\nstop it\n"))
        with pytest.raises(SystemExit) as ended:
            cli.main(["chat", str(starter), "--max-tokens", "200", "--temperature", "0", *options])
        answers = capsys.readouterr().out.splitlines()
        assert not ended.value.code
        assert (len(answers) == 2 and all(map(fits, answers))) is kept


@pytest.mark.parametrize(("options", "held", "code", "said"), [
    (["--json-schema", "s"], b"{", 1, r"/s: is not JSON \("),
    (["--json-schema", "s"], b"\xff\xfe{}", 1, "/s: is no text"),
    (["--json-schema", "s"], b"[1]", 1, "/s: must hold a JSON schema, which is an object, found list"),
    (["--json-schema", "s"], b'{"enum": []}', 1, "/s: Unsatisfiable schema"),
    (["--json-schema", "s"], b'{"uniqueItems": true}', 1, "/s: Unimplemented keys"),
    (["--json-schema", "s"], b'{"typ": "string"}', 1, r"/s: holds.*\n  #: unknown keyword 'typ'. Did you mean 'type'"),
    (["--grammar", "s"], b"start: foo", 1, "/s: .*unknown name"),
    (["--json-schema", "s"], None, 2, "/s: cannot be read .*--json-schema takes a file"),
    (["--grammar", "s"], None, 2, "/s: cannot be read .*--grammar takes a file"),
    (["--json-schema", "s", "--grammar", "s"], b"{}", 2, "--json-schema and --grammar both"),
])
def test_files_that_cannot_be_used(run: Callable[..., tuple[int, str, str]], options: list[str], held: bytes | None,
                                   code: int, said: str) -> None:
    ended, out, err = run(*options, **({} if held is None else {"s": held}))
    assert (ended, out) == (code, "")
    assert re.search(said, err), err
