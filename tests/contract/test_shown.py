"""A chat template that drops a message, or who said it, is refused; one that shows all is not."""

import pytest

from edgeft.contract.chat import chat_renderer
from edgeft.contract.errors import EdgeftError
from edgeft.contract.shown import faithful

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>hm</think>\n  yes "}, {"role": "user", "content": "go on"}]
PLAIN = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
# As they are in the wild: how a llama 2, a gemma, a qwen3 and a mistral template put things.
FAIR = {
    "trimmed": "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}",
    "names of its own": "{% for m in messages %}<{{ 'model' if m.role == 'assistant' else m.role }}>"
                        "{{ m.content }}{% endfor %}",
    "past thoughts left out": "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] | trim }}"
                              "{% endfor %}",
    "system before the first user": "{% if messages[0].role == 'system' %}{% set s = messages[0].content + '\n' %}"
                                    "{% set rest = messages[1:] %}{% else %}{% set s = '' %}{% set rest = messages %}"
                                    "{% endif %}{% for m in rest %}"
                                    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
                                    "{{ raise_exception('turns must alternate') }}{% endif %}"
                                    "{% if m.role == 'user' %}[INST] {{ s if loop.first }}{{ m.content }} [/INST]"
                                    "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}",
    "as JSON": "{{ messages | tojson }}",
}
DROPS = {
    "system ignored": ("{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}",
                       "drops message 1 of 4, the system's"),
    "only the last": ("<{{ messages[-1].role }}>{{ messages[-1].content }}", "drops message 1 of 4"),
    "past answers ignored": ("{% for m in messages if m.role != 'assistant' %}<{{ m.role }}>{{ m.content }}"
                             "{% endfor %}", "drops message 3 of 4, the assistant's"),
    "no roles": ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "does not tell 'system' from 'user'"),
    "system as user": ("{% for m in messages %}<{{ 'assistant' if m.role == 'assistant' else 'user' }}>{{ m.content }}"
                       "{% endfor %}", "does not tell 'system' from 'user'"),
    "cut": ("{% for m in messages %}<{{ m.role }}>{{ m.content[:13] }}{% endfor %}", "changes or drops what message"),
}


@pytest.mark.parametrize("name", FAIR)
def test_templates_that_show_all_are_left_alone(name: str) -> None:
    render = chat_renderer(FAIR[name], {})
    for count in range(1, 5):
        if (messages := TALK[:count])[-1]["role"] == "user":
            assert faithful(render)(messages, True) == render(messages, True)


@pytest.mark.parametrize("name", DROPS)
def test_what_does_not_show_is_refused(name: str) -> None:
    template, words = DROPS[name]
    render = chat_renderer(template, {})
    talk = [dict(message) for message in TALK]
    if name == "cut":
        talk[3]["content"] = "what is longer than thirteen letters"
    assert render(talk, True)
    with pytest.raises(EdgeftError, match=words):
        faithful(render)(talk, True)


def test_a_role_nobody_knows_is_refused_where_it_reads_as_another() -> None:
    template = "{% for m in messages %}{% if m.role == 'user' %}U {% else %}A {% endif %}{{ m.content }}{% endfor %}"
    talk = [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]
    with pytest.raises(EdgeftError, match="does not tell 'tool' from 'assistant'"):
        faithful(chat_renderer(template, {}))(talk, True)
    assert "[tool] b" in faithful(chat_renderer(PLAIN, {}))(talk, True)


def test_one_message_needs_no_role() -> None:
    """A template that only puts a mark before the answer."""
    render = faithful(chat_renderer("{% for m in messages %}Q: {{ m.content }}\n{% endfor %}A:", {}))
    assert render([{"role": "user", "content": "a"}], True) == "Q: a\nA:"
