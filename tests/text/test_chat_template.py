from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pocketlm.errors import InvalidRequest, ModelLoadError
from pocketlm.hub import BUNDLED
from pocketlm.text.chat_template import MAX_RENDERED_CHARS, ChatTemplate

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER = {"role": "user", "content": "What is a pod?"}


def render(source: str, *messages: dict[str, str], **special_tokens: str) -> str:
    return ChatTemplate(source, special_tokens, "here").render(messages or [USER])


def folder(path: Path, **files: Any) -> Path:
    """A checkpoint's folder with some JSON files, `_` in a name for `.`."""
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def test_the_plain_template() -> None:
    template = ChatTemplate.from_folder(BUNDLED)
    assert template.is_plain
    assert template.stop == ("\nUser:",)
    messages = [
        {"role": "system", "content": "Answer in one sentence."},
        {"role": "user", "content": "What is a pod?"},
        {"role": "assistant", "content": "The smallest unit."},
        {"role": "user", "content": "And a node?"},
    ]
    assert template.render(messages) == (
        "Answer in one sentence.\n\n"
        "User: What is a pod?\n"
        "Assistant: The smallest unit.\n"
        "User: And a node?\n"
        "Assistant:"
    )
    assert template.render([USER]) == "User: What is a pod?\nAssistant:"


def test_text_that_looks_like_a_template_stays_as_it_is() -> None:
    content = "{{ messages }} {% if %} <b>&amp;</b>\n\n "
    plain = ChatTemplate(None, {}, "here").render([{"role": "user", "content": content}])
    assert plain == f"User: {content}\nAssistant:"
    assert content in render(CHATML, {"role": "user", "content": content})


def test_a_template_of_the_checkpoint() -> None:
    template = ChatTemplate(CHATML, {}, "here")
    assert not template.is_plain and template.stop == ()
    assert template.render([USER]) == "<|im_start|>user\nWhat is a pod?<|im_end|>\n<|im_start|>assistant\n"


def test_where_a_template_is_found(tmp_path: Path) -> None:
    assert ChatTemplate.from_folder(tmp_path).is_plain
    folder(tmp_path, tokenizer_config={"chat_template": "from the config"})
    assert ChatTemplate.from_folder(tmp_path).render([USER]) == "from the config"
    (tmp_path / "chat_template.jinja").write_text("its own file")
    assert ChatTemplate.from_folder(tmp_path).render([USER]) == "its own file"


def test_of_several_templates_the_default_one_is_used(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    folder(tmp_path, tokenizer_config={"chat_template": named})
    assert ChatTemplate.from_folder(tmp_path).render([USER]) == "plain"


def test_special_tokens_come_from_either_file_in_either_form(tmp_path: Path) -> None:
    config = {"chat_template": "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ pad_token }}"}
    tokens = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": None}
    legacy = {"bos_token": "<old>", "eos_token": "</s>", "unk_token": {"content": "<unk>"}}
    folder(tmp_path, tokenizer_config={**config, **tokens}, special_tokens_map=legacy)
    assert ChatTemplate.from_folder(tmp_path).render([USER]) == "<s>|</s>|<unk>|"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "What is a pod?"}'),
        ("{{ '<é>' | tojson }}", '"<é>"'),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("{% for m in [1, 2, 3] %}{% if m == 2 %}{% break %}{% endif %}{{ m }}{% endfor %}", "1"),
        ("a {% generation %}b {{ 1 + 1 }}{% endgeneration %} c", "a b 2 c"),
        ("  {% if true %}\nx\n  {% endif %}\n", "x\n"),  # trim_blocks and lstrip_blocks
        ("{{ tools is none }} {{ documents is none }}", "True True"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        (
            "{% set n = namespace(x=0) %}{% for m in messages %}{% set n.x = n.x + 1 %}{% endfor %}{{ n.x }}",
            "1",
        ),
    ],
)
def test_templates_find_what_transformers_gives_them(source: str, expected: str) -> None:
    assert render(source) == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{{ messages[0].content.no.such }}", "has no attribute"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% for i in range(10**9) %}{% endfor %}", "[Rr]ange"),
        (
            "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
            f"more than {MAX_RENDERED_CHARS} characters",
        ),
    ],
)
def test_messages_that_a_template_does_not_take_are_an_invalid_request(source: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        render(source)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ raise_exception.__globals__.os }}",
        "{{ cycler.__init__.__globals__.os }}",
    ],
)
def test_templates_are_kept_in_their_sandbox(source: str) -> None:
    with pytest.raises(InvalidRequest, match=r"unsafe|not safely callable"):
        render(source)


@pytest.mark.parametrize(
    "source", ["{% for %}", "{{ 1", "{% endif %}", "{{ x | no_such_filter }}", "{% tag %}"]
)
def test_a_template_that_does_not_compile_is_a_model_load_error(tmp_path: Path, source: str) -> None:
    (tmp_path / "chat_template.jinja").write_text(source)
    with pytest.raises(ModelLoadError, match=r"chat_template\.jinja is not a valid chat template: "):
        ChatTemplate.from_folder(tmp_path)


@pytest.mark.parametrize(
    "template",
    [5, {"default": "x"}, [], [{"name": "rag", "template": "x"}], [{"name": "default", "template": 5}]],
)
def test_a_template_of_another_type_is_a_model_load_error(tmp_path: Path, template: object) -> None:
    folder(tmp_path, tokenizer_config={"chat_template": template})
    with pytest.raises(
        ModelLoadError, match="chat_template must be a string, or a list with one named default"
    ):
        ChatTemplate.from_folder(tmp_path)


def test_files_that_cannot_be_read_are_a_model_load_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"tokenizer_config\.json is not valid JSON"):
        ChatTemplate.from_folder(tmp_path)
    shutil.copy(BUNDLED / "tokenizer_config.json", tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelLoadError, match=r"chat_template\.jinja cannot be read"):
        ChatTemplate.from_folder(tmp_path)


def test_a_template_does_not_change_the_messages() -> None:
    messages = [dict(USER)]
    ChatTemplate(CHATML, {}, "here").render(messages)
    assert messages == [USER]
