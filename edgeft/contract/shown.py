"""That a chat template shows all that it was given: one that drops a message, or who said it, is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache

from .data import Render
from .errors import EdgeftError

KNOWN = ("system", "user", "assistant")
ADVICE = "Leave it out, say it in a user's message, or give the model a template that knows it."


def faithful(render: Render) -> Render:
    """A renderer that raises EdgeftError where a message or its role would not show in the text.

    Each sequence of roles is tried once with words of our own for contents; then each content is looked for.
    """
    @lru_cache(maxsize=256)
    def fault(roles: tuple[str, ...], add_generation_prompt: bool) -> str:
        return _dropped(render, roles, add_generation_prompt) or _confused(render, roles, add_generation_prompt)

    def checked(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        text = render(messages, add_generation_prompt)
        wrong = fault(tuple(str(message.get("role")) for message in messages), add_generation_prompt) \
            or _missing(messages, text)
        if wrong:
            raise EdgeftError(f"chat template: {wrong}. {ADVICE}")
        return text

    return checked


def _dropped(render: Render, roles: Sequence[str], add: bool) -> str:
    """The first message that such a conversation loses, in words; "" if all show."""
    text = _tried(render, roles, add)
    for index, role in enumerate(roles):
        if text is not None and _word(index) not in text.lower():
            return f"drops message {index + 1} of {len(roles)}, the {role}'s: it does not show in the text"
    return ""


def _confused(render: Render, roles: Sequence[str], add: bool) -> str:
    """A role that reads exactly as another one of this conversation, in words; "" if who speaks shows."""
    text = _tried(render, roles, add)
    for role in dict.fromkeys(roles):
        others = dict.fromkeys(roles) if role in KNOWN else dict.fromkeys([*roles, "user", "assistant"])
        for other in others:  # but system: where one stands among turns, templates do as they like
            swapped = [other if name == role else name for name in roles]
            if text is not None and other not in (role, "system") and _tried(render, swapped, add) == text:
                return f"does not tell {role!r} from {other!r}: the role does not show in the text"
    return ""


def _tried(render: Render, roles: Sequence[str], add: bool) -> str | None:
    """The text of words of our own under these roles; None where the template refuses them."""
    try:
        return render([{"role": role, "content": _word(index)} for index, role in enumerate(roles)], add)
    except EdgeftError:
        return None


def _word(index: int) -> str:
    return f"edgeft{index}word"


def _missing(messages: Sequence[dict[str, str]], text: str) -> str:
    """The first message whose own content does not show; templates may trim it and leave out past thoughts."""
    flat = " ".join(text.split())
    for index, message in enumerate(messages):
        content = message.get("content")
        if not isinstance(content, str):
            continue
        forms = (content, content.rpartition("</think>")[2], json.dumps(content)[1:-1],
                 json.dumps(content, ensure_ascii=False)[1:-1])
        if not any(" ".join(form.split()) in flat for form in forms):
            return f"changes or drops what message {index + 1} of {len(messages)} says: {content[:40]!r} does not show"
    return ""
