"""The command `pocketlm`. Each command is a file of its own and imports what is heavy when it runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pocketlm.cli.bench import bench
from pocketlm.cli.chat import chat
from pocketlm.cli.compare import compare
from pocketlm.cli.doctor import doctor
from pocketlm.cli.explore import explore
from pocketlm.cli.generate import generate
from pocketlm.cli.monitor import monitor
from pocketlm.cli.serve import serve
from pocketlm.cli.verify import verify
from pocketlm.errors import ConfigError, PocketLMError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: panels cut long flags off in a terminal of 80 columns
    pretty_exceptions_enable=False,
)
for command in (serve, generate, chat, explore, verify, monitor, compare, bench, doctor):
    app.command()(command)


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
