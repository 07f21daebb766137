"""Chat templates of well-known families against Transformers' own rendering."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from pocketlm.hub import BUNDLED
from pocketlm.text.chat_template import PLAIN, ChatTemplate
from pocketlm.text.tokenizer import Tokenizer

# In the ways in which published checkpoints are written: whitespace control, macros, namespaces, filters.
TEMPLATES = {
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "llama-2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "llama-3": "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
    "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + "
    "'<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    "zephyr": "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\\n' + "
    "message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\\n' + "
    "message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\\n'  + "
    "message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n"
    "{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    "indented": """\
{%- macro turn(role, content) %}
    {%- if content is string %}
        {{- "<" ~ role ~ ">" ~ content ~ "</" ~ role ~ ">" }}
    {%- endif %}
{%- endmacro %}
{%- set state = namespace(last=none) %}
{%- if tools is not none and tools %}
    {{- tools | tojson(indent=2) }}
{%- endif %}
{%- if date_string is not defined %}
    {%- set date_string = strftime_now("%Y") %}
{%- endif %}
Year: {{ date_string }}
  {% for message in messages %}
    {% if message.content == "skip me" %}{% continue %}{% endif %}
    {%- set state.last = message.role %}
    {{- turn(message.role, message.content) }}
    {% if message.role == "assistant" %}{% generation %}{{ message | tojson }}{% endgeneration %}{% endif %}
  {%- endfor %}
{{ state.last }}|{{ bos_token }}|{{ pad_token }}|{{ unk_token }}
""",
    "plain": PLAIN,
}
SYSTEM = {"role": "system", "content": "Answer <b>shortly</b> & well.\n"}
USER = {"role": "user", "content": "  Wie groß ist ein Pod? 🙂 {{ no }}\n\n"}
ASSISTANT = {"role": "assistant", "content": 'It "depends".'}
CONVERSATIONS = [
    [USER],
    [SYSTEM, USER],
    [USER, ASSISTANT, USER],
    [SYSTEM, USER, ASSISTANT, {"role": "user", "content": "skip me"}],
]


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=len)
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
def test_templates(tmp_path: Path, file: str, name: str, messages: list[dict[str, str]]) -> None:
    for source in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED / source, tmp_path)
    if file == "chat_template.jinja":
        (tmp_path / file).write_text(TEMPLATES[name])
    else:
        config = json.loads((tmp_path / file).read_text())
        (tmp_path / file).write_text(json.dumps({**config, "chat_template": TEMPLATES[name]}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    text = ChatTemplate.from_folder(tmp_path).render(messages)
    assert text == expected
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert Tokenizer.from_folder(tmp_path).encode(text, add_special_tokens=False) == ids
