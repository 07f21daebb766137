"""The command `pocketlm`. Each command is a file of its own, imported when it is run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pocketlm.errors import ConfigError, PocketLMError

PLAIN: dict[str, Any] = {
    "rich_markup_mode": None,  # plain help: panels cut long flags off in a terminal of 80 columns
    "pretty_exceptions_enable": False,
}
# Each with what its file says of it first: to list them, none of the files is read.
SUMMARIES = {
    "serve": "Serve models over HTTP.",
    "generate": "Continue a prompt.",
    "chat": "Talk with a model; /help says what to type.",
    "explore": "Show what the sampling parameters do with a prompt.",
    "verify": "Measure what a number format costs in accuracy.",
    "monitor": "Show what a model costs, or watch a running server.",
    "compare": "Compare the cost of models and what they write.",
    "bench": "Measure the engine, or a running server, under load.",
    "doctor": "Check the installation, and what this machine can do.",
}


class Commands(Mapping[str, Any]):
    """Name -> command: the function of that name in the module of that name."""

    def __iter__(self) -> Iterator[str]:
        return iter(SUMMARIES)

    def __len__(self) -> int:
        return len(SUMMARIES)

    def __getitem__(self, name: str) -> Any:
        if name not in SUMMARIES:
            raise KeyError(name)
        module = importlib.import_module(f"pocketlm.cli.{name}")
        command = typer.Typer(add_completion=False, **PLAIN)
        command.command(name)(getattr(module, name))
        return typer.main.get_command(command)


class Group(TyperGroup):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = Commands()  # type: ignore[assignment]  # it is only read

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([*SUMMARIES.items()])


app = typer.Typer(cls=Group, no_args_is_help=True, **PLAIN)


def show_version(value: bool) -> None:
    if value:
        import pocketlm

        print(f"pocketlm {pocketlm.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Small language models from an ordinary CPU."""


def main() -> None:
    """Run a command; an error that pocketlm raised on purpose is one line on stderr, and an exit code."""
    try:
        app()
    except PocketLMError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
