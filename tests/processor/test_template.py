"""Chat templates: rendered as transformers renders them, with a clear sentence where they refuse."""

from typing import Any

import pytest

from actors.processor.files import FilesError
from actors.processor.refusal import RefusalError
from actors.processor.template import Template
from actors.processor.tokenizer import Tokenizer
from tests.harness import ROOT


def render(text: str, messages: list[dict[str, Any]], **extra: Any) -> str:
    return Template(text, {"bos_token": "<s>", "eos_token": "</s>"}).render(messages, extra=extra)


USER = [{"role": "user", "content": "<b>&\u00e9"}]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}", "<s><b>&\u00e9"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "<b>&\u00e9"}]'),
        ("{{ messages[0] | tojson(indent=1) }}", '{\n "role": "user",\n "content": "<b>&\u00e9"\n}'),
        ("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),
        ("{% for i in range(5) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}x{{ 1 + 1 }}{% endgeneration %}", "x2"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ 'go' if add_generation_prompt }}{{ tools is none }}", "goTrue"),
        ("{{ enable_thinking }}", "False"),
    ],
)
def test_it_renders_as_transformers_does(text: str, wanted: str) -> None:
    assert render(text, USER, enable_thinking=False) == wanted


def test_the_template_of_the_tiny_model() -> None:
    tokenizer = Tokenizer(str(ROOT / "models" / "tiny"))
    template = Template.load(tokenizer.folder, tokenizer.settings, tokenizer.special, None)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    wanted = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert template.render(messages) == wanted
    assert tokenizer.encode(wanted, special=False)[0] == tokenizer.id_of("<|im_start|>")


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", 400, "roles must alternate"),
        ("{{ messages[0].content + 1 }}", 400, "cannot render this: TypeError"),
        ("{{ messages.append(1) }}", 500, "what it must not"),
        ("{{ ''.__class__.__mro__ }}", 500, "what it must not"),
    ],
)
def test_what_a_template_refuses_is_told(text: str, code: int, said: str) -> None:
    with pytest.raises(RefusalError, match=said) as caught:
        render(text, USER)
    assert caught.value.code == code


def test_a_template_that_is_none_is_told_when_loading() -> None:
    with pytest.raises(FilesError, match="not valid jinja"):
        Template("{% for %}", {})


def test_a_model_without_a_template_says_so() -> None:
    with pytest.raises(RefusalError, match="no chat template"):
        Template(None, {}).render(USER)
