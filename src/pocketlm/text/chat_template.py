"""Messages -> the text of a prompt, by the template that a checkpoint brings, or by a plain one."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pocketlm.errors import InvalidRequest, ModelLoadError
from pocketlm.models.config_file import read_json_object

# For checkpoints that have none: a transcript, which even a model that never saw a chat continues.
PLAIN = """\
{%- for message in messages -%}
{%- if message.role == "system" -%}
{{ message.content }}

{% else -%}
{{ message.role | capitalize }}: {{ message.content }}
{% endif -%}
{%- endfor -%}
Assistant:"""
PLAIN_STOP = ("\nUser:",)  # where the model would begin to speak for the user

# Templates are code of whoever made the checkpoint: they run in Jinja's sandbox, and no further than this.
MAX_RENDERED_CHARS = 1 << 22

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    """The chat template of a checkpoint. Safe to use from several threads.

    Templates find what Transformers gives them: `messages`, `add_generation_prompt`, the names of the
    special tokens, `raise_exception`, `strftime_now`, `tojson`, loop controls and `{% generation %}`.
    """

    def __init__(self, source: str | None, special_tokens: Mapping[str, str], where: str) -> None:
        """`source`: None for the plain template. `where`: names the template in the ModelLoadError."""
        self.is_plain = source is None
        self.stop: tuple[str, ...] = PLAIN_STOP if self.is_plain else ()
        self._special_tokens = dict(special_tokens)
        try:
            self._template = _environment().from_string(PLAIN if source is None else source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ModelLoadError(f"{where} is not a valid chat template: {error}") from error

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTemplate:
        """chat_template.jinja, else tokenizer_config.json's, else the plain one; or a ModelLoadError."""
        config = _optional_json(folder / "tokenizer_config.json")
        legacy = _optional_json(folder / "special_tokens_map.json")
        special_tokens = {}
        for name in SPECIAL_TOKENS:
            token = config.get(name) or legacy.get(name)
            if isinstance(token, dict):  # an AddedToken
                token = token.get("content")
            if isinstance(token, str):
                special_tokens[name] = token
        file = folder / "chat_template.jinja"
        if file.exists():
            return cls(_read(file), special_tokens, str(file))
        where = str(folder / "tokenizer_config.json")
        return cls(_default_of(config.get("chat_template"), where), special_tokens, where)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt after which the assistant speaks. InvalidRequest if the template does not take these."""
        parts, num_chars = [], 0
        try:
            for part in self._template.generate(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            ):
                parts.append(part)
                num_chars += len(part)
                if num_chars > MAX_RENDERED_CHARS:
                    raise InvalidRequest(
                        f"the model's chat template makes more than {MAX_RENDERED_CHARS} characters of "
                        "these messages; send fewer",
                        param="messages",
                    )
        except InvalidRequest:
            raise
        except Exception as error:  # a template can raise anything
            raise InvalidRequest(
                f"the model's chat template does not take these messages: {error!s:.200}", param="messages"
            ) from error
        return "".join(parts)


class _Generation(Extension):
    """{% generation %}: marks the assistant's words for training; here they are just text."""

    tags = {"generation"}  # noqa: RUF012  (an attribute of Jinja's class)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own, without HTML's escapes."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def _default_of(template: object, where: str) -> str | None:
    """The template itself, or the one named "default" of a list of them."""
    if template is None or isinstance(template, str):
        return template
    if isinstance(template, list):
        for entry in template:
            if isinstance(entry, dict) and entry.get("name") == "default":
                return _default_of(entry.get("template"), where)
    raise ModelLoadError(f"{where}: chat_template must be a string, or a list with one named default")


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.exists() else {}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error
