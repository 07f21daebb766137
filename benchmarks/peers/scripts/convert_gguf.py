"""llama.cpp's converter, told what it cannot know: python convert_gguf.py SOURCE MODEL FLAGS...

It recognizes a tokenizer by how it splits a text, which depends on the vocabulary too. Ours splits words
as GPT-2's does.
"""

import runpy
import sys

source = sys.argv.pop(1)
sys.path[:0] = [source, f"{source}/gguf-py"]

from conversion.base import TextModel  # noqa: E402

TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
runpy.run_path(f"{source}/convert_hf_to_gguf.py", run_name="__main__")
