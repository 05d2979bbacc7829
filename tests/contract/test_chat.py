"""A chat template is a stranger's program: it gets the messages and nothing else."""

import json
import re

import pytest

from edgeft.contract.chat import MAX_TEMPLATE, MAX_TEXT, chat_renderer, read_chat_template
from edgeft.contract.errors import EdgeftError

HELLO = [{"role": "user", "content": "hello"}]
PLAIN = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m['content'] }}\n{% endfor %}" \
        "{% if add_generation_prompt %}[assistant] {% endif %}"


def rendered(template, messages=HELLO, add=False, **tokens):
    return chat_renderer(template, tokens)(messages, add)


def test_a_plain_template():
    assert rendered(PLAIN, add=True, bos_token="<s>") == "<s>[user] hello\n[assistant] "
    assert rendered(PLAIN, add=False, bos_token="<s>") == "<s>[user] hello\n"


def test_what_hugging_face_templates_rely_on():
    assert rendered("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}x{% endfor %}") == ""
    assert rendered("{{ messages | tojson }}") == json.dumps(HELLO)
    assert rendered("{{ 'ü' | tojson }}") == '"ü"'
    assert re.fullmatch(r"\d{4}", rendered("{{ strftime_now('%Y') }}"))
    assert rendered("a\n{% if true %}\nb\n{% endif %}\n") == "a\nb\n"  # trim_blocks, lstrip_blocks


ESCAPES = [
    "{{ ''.__class__.__mro__ }}", "{{ ''['__class__']['__mro__'] }}", "{{ (''|attr('__class__')).__mro__ }}",
    "{{ messages.__class__.__base__.__subclasses__() }}", "{{ raise_exception.__globals__['os'] }}",
    "{{ strftime_now.__code__.co_consts }}", "{{ self.__init__.__globals__ }}", "{{ cycler.__init__.__globals__.os }}",
    "{{ '{0.__class__.__mro__}'.format(1) }}", "{{ messages.append(1) }}", "{{ messages[0].update(role='x') }}",
    "{% include '/etc/passwd' %}", "{% import 'os' as os %}", "{{ range(999999999) | list }}"]


@pytest.mark.parametrize("template", ESCAPES)
def test_the_sandbox_holds(template):
    messages = [dict(HELLO[0])]
    with pytest.raises(EdgeftError, match="refused these messages"):
        rendered(template, messages)
    assert messages == HELLO


@pytest.mark.parametrize("template", ["{{ ''.__class__ }}", "{{ messages.__class__ }}", "{{ ''|attr('__class__') }}",
                                      "{{ strftime_now.__globals__ }}"])
def test_a_hidden_attribute_shows_nothing(template):
    try:
        assert rendered(template) == ""
    except EdgeftError as error:
        assert "refused" in str(error)  # noqa: PT017


def test_raise_exception_comes_through():
    template = "{% if messages[0].role != 'system' %}{{ raise_exception('System first!') }}{% endif %}ok"
    with pytest.raises(EdgeftError, match="System first!") as caught:
        rendered(template)
    assert caught.value.__suppress_context__
    assert rendered(template, [{"role": "system", "content": "s"}]) == "ok"


@pytest.mark.parametrize("template", ["{{ messages[3].content }}", "{{ 1 / 0 }}", "{{ undefined_thing.x }}",
                                      "{{ nothing() }}"])
def test_an_error_at_work(template):
    with pytest.raises(EdgeftError, match="refused these messages"):
        rendered(template)


@pytest.mark.parametrize("template", ["{% for m in messages %}", "{{ ", "{% nosuch %}", "{{ x | nosuch }}",
                                      "{% endif %}"])
def test_broken_syntax(template):
    with pytest.raises(EdgeftError, match="cannot be read"):
        chat_renderer(template, {})


def test_a_template_that_is_too_deep():
    with pytest.raises(EdgeftError, match="chat template"):
        rendered("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}")


def test_a_template_that_is_too_long():
    with pytest.raises(EdgeftError, match="are read"):
        chat_renderer("x" * (MAX_TEMPLATE + 1), {})
    assert rendered("x" * MAX_TEMPLATE) == "x" * MAX_TEMPLATE


def test_output_that_is_too_long():
    with pytest.raises(EdgeftError, match="are taken"):
        rendered(f"{{{{ messages[0].content * {MAX_TEXT // 5 + 1} }}}}")
    assert len(rendered(f"{{{{ messages[0].content * {MAX_TEXT // 5} }}}}")) == MAX_TEXT // 5 * 5


def test_a_folder_without_a_template(tmp_path):
    assert read_chat_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert read_chat_template(tmp_path) is None


def test_template_of_a_folder(tmp_path):
    config = {"chat_template": "old {{ eos_token }}", "eos_token": {"content": "</s>", "lstrip": False},
              "bos_token": "<s>", "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert read_chat_template(tmp_path)(HELLO, True) == "old </s>"
    (tmp_path / "chat_template.jinja").write_text("new {{ bos_token }}{{ pad_token }}{{ unk_token }}")
    assert read_chat_template(tmp_path)(HELLO, True) == "new <s>"


@pytest.mark.parametrize("text", ["{", "[]", '{"eos_token": {}, "chat_template": "x"}'])
def test_a_broken_tokenizer_config(tmp_path, text):
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(EdgeftError, match=r"tokenizer_config.json"):
        read_chat_template(tmp_path)
