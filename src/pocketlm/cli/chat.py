"""pocketlm chat: a conversation in the terminal."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from pocketlm.cli.flags import config_flags
from pocketlm.cli.output import configure_logging, note, print_json
from pocketlm.cli.visible import visible
from pocketlm.config import EngineConfig, load_config
from pocketlm.errors import EngineDead, InvalidRequest, PocketLMError

if TYPE_CHECKING:
    from pocketlm.cli.conversation import Conversation

BASE_MODEL = (
    "{model} is a base model and no assistant: it was never taught to answer. It is shown a transcript and "
    "writes what might stand there next, which may be wrong or make no sense."
)

HELP = """\
/system TEXT  say how the assistant should behave; without a text: no longer
/reset        forget the conversation, but not the system text
/save FILE    write the conversation to a new file, as JSON
/help         this list
/quit         end, as Ctrl-D does
Ctrl-C        stop the answer"""

GREETING = "Type a message; /help lists the commands, Ctrl-D ends."


@config_flags(EngineConfig)
def chat(
    model: Annotated[
        str | None, typer.Argument(help="bundled, a local folder, a Hugging Face Hub id or shape:NAME.")
    ] = None,
    *,
    system: Annotated[str | None, typer.Option(help="How the assistant should behave.")] = None,
    temperature: Annotated[float, typer.Option(help="0 = always the likeliest token.")] = 0.7,
    top_k: Annotated[int, typer.Option(help="Draw from the k likeliest tokens; 0 = all.")] = 50,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer; default: a quarter of the context window.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of every answer; drawn for each if absent.")] = None,
    json: Annotated[
        bool, typer.Option("--json", help="At the end, print the conversation as one JSON object.")
    ] = False,
    flags: dict[str, Any],
) -> None:
    """Talk with a model; /help says what to type. A pipe into stdin gives one message a line."""
    configure_logging(logging.WARNING)
    [name, *_], engine_config, _ = load_config({"model": model and [model], **flags})

    from pocketlm.cli.conversation import Conversation
    from pocketlm.llm import LLM
    from pocketlm.sampling import SamplingParams

    params = SamplingParams(temperature=temperature, top_k=top_k, max_tokens=max_tokens, seed=seed)
    note(f"loading {name} ...")
    conversation = Conversation(LLM(name, **engine_config.model_dump()), params, system)
    if conversation.is_base_model:
        _say(BASE_MODEL.format(model=name))
    answers = sys.stderr if json else sys.stdout
    if sys.stdin.isatty():
        _say(GREETING)
        _talk(conversation, answers)
    else:
        for line in _lines():
            if not _take(conversation, line, answers):
                break
    if json:
        print_json(conversation.as_json())


def _talk(conversation: Conversation, answers: TextIO) -> None:
    """Read messages from the terminal until its user ends it; what fails is said, and the talk goes on."""
    goes_on = True
    while goes_on:
        try:
            line = _ask()
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            _say("\nCtrl-D ends")
            continue
        except UnicodeDecodeError:
            _say("error: that was not UTF-8")
            continue
        try:
            with _ctrl_c_stops(conversation):
                goes_on = _take(conversation, line, answers)
        except EngineDead:
            raise
        except PocketLMError as error:
            _say(f"error: {error}")


def _say(text: str) -> None:
    """Something that is no answer: on stderr, dim in a terminal and wrapped to it."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    console.print(text, style="dim", soft_wrap=not console.is_terminal)


def _ask() -> str:
    """One line from the terminal; where the C library has it, with line editing and the lines before."""
    try:
        import readline  # noqa: F401  (input() uses it when it is there)
    except ImportError:
        pass
    if sys.stdout.isatty():
        return input("> ")
    print("> ", end="", file=sys.stderr, flush=True)  # stdout is for the answers alone
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def _lines() -> Iterator[str]:
    try:
        yield from (line.decode() for line in sys.stdin.buffer)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"stdin is not UTF-8: {error}", param="message") from None


def _take(conversation: Conversation, line: str, answers: TextIO) -> bool:
    """Do what a line says; False if it says to end."""
    line = line.strip()
    command, _, argument = line.partition(" ")
    argument = argument.strip()
    if not line:
        pass
    elif not line.startswith("/"):
        _answer(conversation, line, answers)
    elif command == "/quit":
        return False
    elif command == "/help":
        _say(HELP)
    elif command == "/reset":
        conversation.reset()
        _say("the conversation is forgotten")
    elif command == "/system":
        conversation.set_system(argument)
        _say("the system text is set" if argument else "there is no system text any more")
    elif command == "/save":
        _save(conversation, argument)
    else:
        raise InvalidRequest(f"there is no command {command}; /help lists them", param="message")
    return True


def _answer(conversation: Conversation, text: str, answers: TextIO) -> None:
    start = time.perf_counter()
    num_forgotten = conversation.num_forgotten
    for piece in conversation.answer(text):
        if conversation.num_forgotten > num_forgotten:
            _say(
                f"[the context window of {conversation.window} tokens is full: the model no longer sees the "
                f"first {conversation.num_forgotten} messages]"
            )
            num_forgotten = conversation.num_forgotten
        print(visible(piece) if answers.isatty() else piece, end="", file=answers, flush=True)
    print(file=answers, flush=True)
    turn = conversation.last
    _say(
        f"[{turn.ending}{turn.num_tokens} tokens in {time.perf_counter() - start:.1f} s, seed {turn.seed}, "
        f"context {turn.context_tokens} of {conversation.window}]"
    )


def _save(conversation: Conversation, name: str) -> None:
    if not name:
        raise InvalidRequest("/save needs the name of a file", param="message")
    file = Path(name).expanduser()
    try:
        conversation.save(file)
    except FileExistsError:
        raise InvalidRequest(f"{file} is there already; give another name", param="message") from None
    except OSError as error:
        raise InvalidRequest(f"cannot write {file}: {error.strerror}", param="message") from None
    _say(f"saved to {file}")


@contextmanager
def _ctrl_c_stops(conversation: Conversation) -> Iterator[None]:
    """Ctrl-C ends the answer after its next token, so that the engine is never cut in the middle of a step.

    A second one, before that token has come, ends the program.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if conversation.is_stopping:
            raise KeyboardInterrupt
        conversation.stop()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
