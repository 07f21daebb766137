"""Messages -> the text of a prompt, by the template that a checkpoint brings, or by a plain one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketlm.errors import InvalidRequest, ModelLoadError
from pocketlm.models.config_file import read_json_object

if TYPE_CHECKING:
    import jinja2

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
        self._source = PLAIN if source is None else source
        self._where = where
        if not self.is_plain:
            _ = self._template  # say now what is wrong with it

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

    @cached_property
    def _template(self) -> jinja2.Template:
        # Imported here because it takes a while, and who continues a prompt does not need it.
        from pocketlm.text.template_language import compile_template

        return compile_template(self._source, self._where)

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
