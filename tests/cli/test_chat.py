"""pocketlm chat: what is said, what the model sees of it, and how it is stopped."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
from checkpoints import write_checkpoint
from command import COMMAND, pocketlm
from terminal import CTRL_C, CTRL_D, Terminal, terminal

from pocketlm import LLM, SamplingParams
from pocketlm.cli.conversation import Conversation
from pocketlm.errors import ContextLengthExceeded, InvalidRequest
from pocketlm.server.protocol.chat import prompt_of

PROMPT = r"(?m)^>$"  # the screen's last line
PARAMS = SamplingParams(max_tokens=8, seed=1, temperature=0.7)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM()


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that could talk for minutes."""
    folder = tmp_path_factory.mktemp("models") / "endless"
    return str(write_checkpoint(folder, seed=1, n_positions=1 << 17, eos_token_id=None))


def say(conversation: Conversation, text: str) -> str:
    return "".join(conversation.answer(text))


def expected(llm: LLM, *messages: tuple[str, str]) -> str:
    """What the model answers to these messages."""
    prompt = prompt_of(llm.model, [{"role": role, "content": text} for role, text in messages])
    [output] = llm.generate([prompt], SamplingParams(max_tokens=8, seed=1, temperature=0.7, stop=["\nUser:"]))
    return output.outputs[0].text.removeprefix(" ")


def test_the_model_sees_the_system_text_and_all_that_was_said(llm: LLM) -> None:
    conversation = Conversation(llm, PARAMS, "Be brief.")
    system, first_question = ("system", "Be brief."), ("user", "What is a pod?")
    first = say(conversation, "What is a pod?")
    assert first == expected(llm, system, first_question)
    assert conversation.last.num_tokens == 8 and conversation.last.seed == 1
    second = say(conversation, "And a node?")
    assert second == expected(llm, system, first_question, ("assistant", first), ("user", "And a node?"))
    conversation.reset()
    assert say(conversation, "What is a pod?") == first
    conversation.reset()
    conversation.set_system("")
    assert say(conversation, "What is a pod?") == expected(llm, first_question)


def test_what_no_longer_fits_is_left_out_and_counted() -> None:
    llm = LLM(max_model_len=48)
    conversation = Conversation(llm, PARAMS, "Be brief.")
    for _ in range(4):
        say(conversation, "What is a pod?")
    assert conversation.num_forgotten > 0 and conversation.num_forgotten % 2 == 0
    assert len(conversation.messages) == 8  # nothing is lost for /save
    before = [(message["role"], message["content"]) for message in conversation.messages]
    answer = say(conversation, "And a node?")
    seen = before[conversation.num_forgotten :]
    assert answer == expected(llm, ("system", "Be brief."), *seen, ("user", "And a node?"))


def test_a_message_that_cannot_fit_is_refused_and_forgotten() -> None:
    conversation = Conversation(LLM(max_model_len=48), PARAMS)
    say(conversation, "What is a pod?")
    with pytest.raises(ContextLengthExceeded, match=r"of the context window of 48, 40 are for them"):
        say(conversation, "word " * 50)
    assert len(conversation.messages) == 2 and conversation.num_forgotten == 0
    with pytest.raises(InvalidRequest, match="NUL"):
        say(conversation, "a\x00b")
    with pytest.raises(InvalidRequest, match="max_tokens is 100"):
        Conversation(LLM(max_model_len=48), SamplingParams(max_tokens=100))


def test_a_stopped_answer_stays_and_frees_its_blocks(llm: LLM) -> None:
    conversation = Conversation(llm, SamplingParams(max_tokens=100, seed=1))
    free = llm.model.engine.stats().num_free_blocks
    said = ""
    for piece in conversation.answer("What is a pod?"):
        said += piece
        if len(said) > 10:
            conversation.stop()
    assert conversation.messages[-1] == {"role": "assistant", "content": said}
    assert conversation.last.num_tokens < 100 and conversation.last.ending == "stopped; "
    assert llm.model.engine.stats().num_free_blocks == free
    assert not llm.model.engine.has_work
    assert say(conversation, "Go on") and conversation.last.ending != "stopped; "


def test_a_pipe_gives_one_answer_a_line_and_stdout_has_nothing_else() -> None:
    options = ("--seed", "1", "--max-tokens", "8")
    result = pocketlm("chat", *options, stdin="What is a pod?\n\nAnd a node?\n")
    assert result.returncode == 0
    report = json.loads(pocketlm("chat", *options, "--json", stdin="What is a pod?\nAnd a node?").stdout)
    assert [message["role"] for message in report["messages"]] == 2 * ["user", "assistant"]
    answers = [message["content"] for message in report["messages"] if message["role"] == "assistant"]
    assert result.stdout == "".join(answer + "\n" for answer in answers)
    assert "bundled is a base model and no assistant" in result.stderr
    assert "8 tokens in" in result.stderr and "seed 1, context" in result.stderr


def test_a_full_context_is_told() -> None:
    options = ("--max-tokens", "8", "--max-model-len", "48")
    result = pocketlm("chat", *options, stdin="What is a pod?\n" * 5)
    assert result.returncode == 0
    assert "the context window of 48 tokens is full: the model no longer sees the first" in result.stderr


def test_a_model_with_a_template_of_its_own_is_not_called_a_base_model(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "taught", seed=1)
    (folder / "chat_template.jinja").write_text("{{ messages[-1].content }}!")
    result = pocketlm("chat", str(folder), "--max-tokens", "4", stdin="hello\n")
    assert result.returncode == 0
    assert "base model" not in result.stderr


def test_save_writes_a_body_for_the_server_and_never_over_a_file(tmp_path: Path) -> None:
    talk = "/system Be brief.\nWhat is a pod?\n/save talk.json\n"
    result = pocketlm("chat", "--max-tokens", "4", stdin=talk, folder=tmp_path)
    assert result.returncode == 0
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert saved["model"] == "bundled"
    assert saved["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is a pod?"},
        {"role": "assistant", "content": result.stdout.removesuffix("\n")},
    ]
    again = pocketlm("chat", stdin="/save talk.json\n", folder=tmp_path)
    assert again.returncode == 1 and "error: talk.json is there already" in again.stderr
    nowhere = pocketlm("chat", stdin="/save no/such/folder/talk.json\n", folder=tmp_path)
    assert nowhere.returncode == 1 and "error: cannot write no/such/folder/talk.json" in nowhere.stderr


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "message"),
    [
        (["no/such/folder"], "", 1, "error: "),
        (["--temperature", "3"], "", 1, "error: temperature must be a number between 0.0 and 2.0"),
        (["--max-tokens", "0"], "", 2, "--max-tokens"),
        (["--max-tokens", "300"], "", 1, "error: max_tokens is 300, but at most half of the context window"),
        (["--dtype", "int3"], "", 2, "error: dtype: "),
        ([], "/sing\n", 1, "error: there is no command /sing; /help lists them"),
        ([], "/save\n", 1, "error: /save needs the name of a file"),
        ([], "word " * 600 + "\n", 1, "error: the message and the system text have"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(
    arguments: list[str], stdin: str, code: int, message: str
) -> None:
    result = pocketlm("chat", *arguments, stdin=stdin)
    assert (result.returncode, result.stdout) == (code, "")
    assert message in result.stderr and "Traceback" not in result.stderr


def test_text_that_is_not_utf_8_is_refused() -> None:
    result = subprocess.run([*COMMAND, "chat"], input=b"\xff\xfe\n", capture_output=True, timeout=60)
    assert result.returncode == 1 and b"error: stdin is not UTF-8" in result.stderr


def test_ctrl_c_ends_a_chat_that_reads_a_pipe(endless: str) -> None:
    with subprocess.Popen(
        [*COMMAND, "chat", endless, "--max-tokens", "60000"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(b"hello\n")
        process.stdin.close()
        assert process.stdout.read(5)  # it answers
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert b"Traceback" not in process.stderr.read()


def begun(shown: Terminal) -> None:
    shown.wait_for("Ctrl-D ends")
    shown.wait_for(PROMPT)


@pytest.mark.parametrize("columns", [80, 40])
def test_a_talk_in_a_terminal(columns: int, tmp_path: Path) -> None:
    with terminal("chat", "--max-tokens", "4", columns=columns, lines=60, folder=tmp_path) as shown:
        begun(shown)
        for line, reply in (
            ("What is a pod?", r"4\s+tokens\s+in"),
            ("/system Be brief.", "system text is set"),
            ("/reset", "conversation is forgotten"),
            ("/save talk.json", r"saved to talk\.json"),
            ("/save talk.json", "error: talk.json is there already"),
            ("/sing", "error: there is no command"),
            ("/help", "stop the answer"),
        ):
            shown.send_line(line)
            shown.wait_for(reply)
        shown.send_line("/quit")
        assert shown.wait() == 0
    assert json.loads((tmp_path / "talk.json").read_text())["messages"] == [
        {"role": "system", "content": "Be brief."}
    ]


def test_lines_can_be_edited_and_come_back() -> None:
    with terminal("chat", "--max-tokens", "4", lines=60) as shown:
        begun(shown)
        shown.send("/sinX\x7fg\r")  # backspace
        shown.wait_for("no command /sing")
        shown.send("\x1b[A")  # up
        shown.wait_for(r"(?m)^> /sing$(?s:.)*^> /sing$")
        shown.send("\x15" + CTRL_D)  # empty the line, end
        assert shown.wait() == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(endless: str) -> None:
    with terminal("chat", endless, "--max-tokens", "60000", lines=60) as shown:
        begun(shown)
        for word in ("hello", "again"):
            shown.send_line(word)
            shown.wait_for_more(len(word) + 200)  # what was typed, and the beginning of the answer
            shown.send(CTRL_C)
            shown.wait_for(r"(?s)\[stopped; \d+\s+tokens.*\n>$")
        shown.send(CTRL_C)
        shown.wait_for(r"(?s)Ctrl-D ends\n>$")
        shown.send(CTRL_D)
        assert shown.wait() == 0
    assert "Traceback" not in shown.written


def test_a_terminal_does_not_obey_what_the_model_writes(endless: str) -> None:
    options = "--max-tokens 2000 --temperature 2 --top-k 0 --seed 1".split()
    with terminal("chat", endless, *options) as shown:
        begun(shown)
        start = len(shown.written)
        shown.send_line("hello")
        shown.wait_for(r"(?s)2000 tokens.*\n>$")
        answer = shown.written[start:].split("\x1b[2m[")[0]
        assert "\\x1b" in answer and "\x07" not in answer
        shown.send(CTRL_D)
        assert shown.wait() == 0


def test_a_message_that_is_too_long_does_not_end_the_talk() -> None:
    with terminal("chat", "--max-model-len", "48", "--max-tokens", "8") as shown:
        begun(shown)
        shown.send_line("word " * 50)
        shown.wait_for(r"(?s)shorten them.*\n>$")
        shown.send_line("hello")
        shown.wait_for(r"(?s)tokens in.*\n>$")  # at the prompt: before, Ctrl-D would go to nobody
        shown.send(CTRL_D)
        assert shown.wait() == 0
