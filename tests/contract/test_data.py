"""Data lines: what is read, what is refused by file and line, and which tokens carry loss."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from edgeft.contract.data import (
    Example,
    encode,
    kind_of,
    read_records,
    record_digest,
    segments,
    task_names,
    windows,
)
from edgeft.contract.errors import EdgeftError, UsageError

EOS = 0


def bpe(*merges, bos=False):
    """A byte-level BPE over a to z, space and newline, with the given merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<eos>", "<bos>", *alphabet, *(first + second for first, second in merges)]
    made = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=list(merges)))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<eos>", "<bos>"])
    if bos:
        made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return made


def write(path, *lines):
    path = path / "d.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() if isinstance(line, str)
                                else json.dumps(line).encode() for line in lines) + b"\n")
    return path


def refusal(path):
    with pytest.raises(EdgeftError) as caught:
        read_records(path)
    return str(caught.value)


PAIR = {"prompt": "p", "completion": "c"}
CHAT = {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}
TEXT = {"text": "t"}
LABEL = {"text": "t", "label": "l"}


@pytest.mark.parametrize(("record", "kind"), [(PAIR, "pair"), (CHAT, "chat"), (TEXT, "text"), (LABEL, "label"),
                                              ({**PAIR, "id": 7}, "pair")])
def test_each_kind_reads(tmp_path, record, kind):
    assert kind_of(record) == kind
    assert read_records(write(tmp_path, record, "", record)) == [record, record]


@pytest.mark.parametrize(("line", "reason"), [
    ("{", "is not JSON"), ("{'a': 1}", "column 2"), (b'{"text": "\xff"}', "codec can't decode"),
    ("[1]", "must be a JSON object, found list"), ("null", "found NoneType"), ("{}", "has no keys but no 'prompt'"),
    ({"prompt": "p"}, "has 'prompt' but no 'completion'"), ({"completion": "c"}, "no 'prompt'"),
    ({"x": 1}, "has 'x' but no 'prompt'"), ({"prompt": 3, "completion": "c"}, "'prompt' must be a string, found int"),
    ({"prompt": "p", "completion": None}, "'completion' must be a string, found NoneType"),
    ({"prompt": "p", "completion": " \n"}, "'completion' is empty"), ({"text": ""}, "'text' is empty"),
    ({"text": ["t"]}, "'text' must be a string, found list"), ({"text": "t", "label": 1}, "'label' must be a string"),
    ({"label": "l"}, "no 'prompt'"),
    ({"messages": []}, "at least one message"), ({"messages": "hello"}, "must be a list"),
    ({"messages": ["hello"]}, "each message needs"), ({"messages": [{"role": "user"}]}, "each message needs"),
    ({"messages": [{"role": "assistant", "content": ["a"]}]}, "each message needs"),
    ({"messages": [{"role": "robot", "content": "a"}]}, "each message needs"),
    ({"messages": [{"role": "user", "content": "a"}]}, "no assistant turn"),
    ("[" * 100_000, "line 2"), ('{"text": ' + "9" * 5000 + "}", "line 2")], ids=lambda value: str(value)[:30])
def test_broken_line_is_named_with_its_reason(tmp_path, line, reason):
    path = write(tmp_path, PAIR, line)
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    assert "line 2: " in message
    assert "line 1" not in message
    assert reason in message


def test_every_broken_line_is_listed_and_a_flood_is_cut(tmp_path):
    message = refusal(write(tmp_path, TEXT, "{", TEXT, "[]"))
    assert "line 2" in message
    assert "line 4" in message
    assert "... and 88 more" in refusal(write(tmp_path, *["{"] * 100))


def test_kinds_are_not_mixed_in_one_file(tmp_path):
    message = refusal(write(tmp_path, TEXT, TEXT, PAIR, CHAT))
    assert "text (line 1), pair (line 3), chat (line 4)" in message


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_file_without_lines(tmp_path, text):
    (tmp_path / "d.jsonl").write_text(text)
    assert refusal(tmp_path / "d.jsonl").endswith("holds no lines.")


def test_a_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            read_records(path)


@pytest.mark.parametrize("record", [{"text": "HALF"}, {"prompt": "HALF", "completion": "c"},
                                    {"messages": [{"role": "assistant", "content": "HALF"}]}], ids=list)
def test_text_that_no_tokenizer_takes(tmp_path, record):
    assert "line 2" in refusal(write(tmp_path, record, json.dumps(record).replace("HALF", "\\ud800")))


def test_digest_of_a_line_is_of_its_content():
    assert record_digest({"a": "1", "b": "2"}) == record_digest({"b": "2", "a": "1"})
    assert record_digest({"a": "1"}) != record_digest({"a": "2"})


# --- from parts to ids and mask


def ids_of(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=True).ids


@pytest.mark.parametrize("bos", [False, True])
def test_prompt_ids_are_those_of_the_prompt_alone(bos):
    tokenizer = bpe(("a", "b"), bos=bos)
    example = encode(tokenizer, [("cab", False), ("abc", True)], EOS)
    prompt = ids_of(tokenizer, "cab")
    assert example.prompt == example.ids[: len(prompt)] == prompt
    assert example.ids == [*ids_of(tokenizer, "cababc"), EOS]
    assert example.mask == [False] * len(prompt) + [True] * (len(example.ids) - len(prompt))
    assert example.ids.count(1) == bos


@pytest.mark.parametrize("bos", [False, True])
def test_a_merge_across_the_boundary_is_not_made(bos):
    tokenizer = bpe(("a", "b"), ("c", "ab"), bos=bos)
    prompt, whole = ids_of(tokenizer, "ca"), ids_of(tokenizer, "cab")
    assert whole[: len(prompt)] != prompt, "the case must be one where the boundary merges"
    example = encode(tokenizer, [("ca", False), ("b", True)], EOS)
    assert example.ids == [*prompt, *tokenizer.encode("b", add_special_tokens=False).ids, EOS]
    assert example.mask == [False] * len(prompt) + [True, True]
    assert tokenizer.decode(example.ids) == "cab"


def test_a_merge_across_a_later_boundary():
    tokenizer = bpe(("a", "b"))
    example = encode(tokenizer, [("xa", False), ("b", True), ("a", False), ("b", True)], EOS)
    assert tokenizer.decode(example.ids[:-1], skip_special_tokens=False) == "xabab"
    assert example.mask == [False, False, True, False, True, True]


def test_end_of_text_is_appended_once():
    tokenizer = bpe()
    assert encode(tokenizer, [("a", False), ("b", True)], EOS).ids.count(EOS) == 1
    assert encode(tokenizer, [("a", False), ("b<eos>", True)], EOS).ids.count(EOS) == 1
    assert encode(tokenizer, [("a", False), ("b", True)], None).ids.count(EOS) == 0
    assert encode(tokenizer, [("a", True), ("b", False)], EOS).ids.count(EOS) == 0
    assert encode(tokenizer, [], EOS) == Example([], [])


def test_nothing_predicts_the_first_token():
    example = encode(bpe(), [("ab", True)], EOS)
    assert example.mask == [False, True, True]
    assert encode(bpe(bos=True), [("ab", True)], EOS).mask == [False, True, True, True]


def test_prompt_of_an_example_without_loss_is_all_of_it():
    assert Example([5, 6], [False, False]).prompt == [5, 6]


def test_segments_of_pairs_and_texts():
    assert segments(PAIR, "\n", None) == [("p\n", False), ("c", True)]
    assert segments(PAIR, "", None) == [("p", False), ("c", True)]
    assert segments(TEXT, "\n", None) == [("t", True)]


def render(messages, add_generation_prompt):
    text = "".join(f"{message['role'][0]}:{message['content']}." for message in messages)
    return text + ("a:" if add_generation_prompt else "")


TALK = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"},
                     {"role": "assistant", "content": "yes"}, {"role": "user", "content": "why"},
                     {"role": "assistant", "content": "so"}]}


def test_chat_learns_the_assistants_turns_only():
    parts = segments(TALK, "\n", render)
    assert parts == [("s:s.u:hi.a:", False), ("yes.", True), ("u:why.a:", False), ("so.", True)]
    tokenizer = bpe()
    example = encode(tokenizer, parts, EOS)
    learned = tokenizer.decode([token for token, learn in zip(example.ids, example.mask, strict=True) if learn])
    assert learned == "yes.so."
    assert tokenizer.decode(example.prompt) == render(TALK["messages"][:2], True)


def test_chat_after_the_last_answer_is_left_out():
    more = {"messages": [*TALK["messages"], {"role": "user", "content": "bye"}]}
    assert segments(more, "", render) == segments(TALK, "", render)


def test_chat_without_a_template_and_with_one_that_rewrites():
    with pytest.raises(EdgeftError, match="need a chat template"):
        segments(CHAT, "", None)
    with pytest.raises(EdgeftError, match="rewrites earlier turns"):
        segments(TALK, "", lambda messages, add: f"{len(messages)} {render(messages, add)}")


def test_a_template_phrases_the_prompt_of_a_pair_alone():
    record = {"prompt": "a {prompt} b", "completion": "{prompt}"}
    assert segments(record, " ", None, "say: {prompt}!") == [("say: a {prompt} b! ", False), ("{prompt}", True)]
    assert segments(record, " ", None) == [("a {prompt} b ", False), ("{prompt}", True)]
    assert segments(TEXT, " ", None, "say: {prompt}!") == segments(TEXT, " ", None)


# --- windows


def test_a_short_example_is_one_window():
    example = Example([1, 2, 3], [False, True, True])
    assert list(windows(example, 3)) == [example]


@pytest.mark.parametrize("length", [2, 3, 4, 7, 19])
def test_every_token_with_loss_stays_in_one_window(length):
    example = Example(list(range(20)), [False] * 3 + [True] * 17)
    cut = list(windows(example, length))
    assert all(len(part.ids) == len(part.mask) <= length and not part.mask[0] for part in cut)
    learned = [token for part in cut for token, learn in zip(part.ids, part.mask, strict=True) if learn]
    assert learned == list(range(3, 20))


def test_a_window_without_loss_is_dropped():
    example = Example(list(range(20)), [False] * 15 + [True] * 5)
    assert [part.ids[0] for part in windows(example, 5)] == [12, 16]


# --- names of tasks


@pytest.mark.parametrize(("paths", "names"), [
    (["a/x.jsonl"], ["x"]), (["a/x.jsonl", "a/y.jsonl"], ["x", "y"]),
    (["a/train.jsonl", "b/train.jsonl"], ["a/train", "b/train"]),
    (["a/c/train.jsonl", "b/c/train.jsonl"], ["a/c/train", "b/c/train"]),
    (["a/x.v1.jsonl", "a/x.v2.jsonl"], ["x.v1", "x.v2"])])
def test_task_names_are_as_long_as_they_must_be(tmp_path, paths, names):
    assert task_names([tmp_path / path for path in paths]) == names


def test_one_file_twice_has_no_name(tmp_path):
    with pytest.raises(UsageError, match="names one file twice"):
        task_names([tmp_path / "x.jsonl", tmp_path / "a" / ".." / "x.jsonl"])


def test_files_that_differ_in_their_ending(tmp_path):
    assert len(set(task_names([tmp_path / "x.jsonl", tmp_path / "x.txt"]))) == 2


def test_a_template_that_writes_the_first_token_itself_gets_one():
    """Chat templates often begin with <s>, and the tokenizer puts one in front as well."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    from edgeft.contract.data import encode_text

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "a": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    assert encode_text(tokenizer, "<s> a") == [1, 2]
    assert encode_text(tokenizer, "a") == [1, 2]
    assert encode_text(tokenizer, "a a") == [1, 2, 2]
    assert tokenizer.encode("<s> a").ids == [1, 1, 2]
