"""Chat templates: the helpers they may use, the sandbox around them, errors that end one request."""

from typing import Any

import pytest

from oarlock_runtime.errors import RequestError
from oarlock_runtime.models.chat_template import ChatTemplate

HI = [{"role": "user", "content": "Hi"}]


def render(source: str, messages: list[dict[str, Any]] = HI, **variables: Any) -> str:
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}).render(messages, **variables)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m['content'] | trim }}{% endfor %}", "<s>[user] Hi"),
        ("{% if add_generation_prompt %}yes{% endif %}", "yes"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "Hi"}'),
        ("{{ {'a': '\u00e9<'} | tojson(indent=1) }}", '{\n "a": "\u00e9<"\n}'),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% generation %}kept{% endgeneration %}", "kept"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
        ("{{ tools is none }} {{ undefined_name }}|", "True |"),
        ("  {% if true %}\n  x\n  {% endif %}\n", "  x\n"),
    ],
)
def test_templates_have_what_they_use(source: str, text: str) -> None:
    assert render(source) == text


def test_variables_of_the_request_reach_the_template() -> None:
    assert render("{{ enable_thinking }} {{ add_generation_prompt }}", enable_thinking=False) == "False True"
    assert render("{{ add_generation_prompt }}", add_generation_prompt=False) == "False"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses the messages: roles must alternate"),
        ("{{ messages[0].content.nothing.more }}", "can't render the messages"),
        ("{{ messages[0]['content'] + 1 }}", "can't render the messages: TypeError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% for %}", "can't render"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "can't render"),
        ("{% for i in range(100000000) %}{% endfor %}", "Range too big"),
        ("{{ 'x' * 100000000 }}", "renders to 100000000 characters"),
    ],
)
def test_whatever_goes_wrong_is_an_error_of_messages(source: str, problem: str) -> None:
    with pytest.raises(RequestError, match=problem) as caught:
        render(source)
    assert (caught.value.field, caught.value.status) == ("messages", 400)
