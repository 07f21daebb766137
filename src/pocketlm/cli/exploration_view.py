"""An exploration as a page of the terminal: coloured tokens, bars, and answers in columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.bar import Bar
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pocketlm.cli.exploration import Answer, Context, Distribution, Experiment, Exploration, Token
from pocketlm.cli.visible import visible

TITLES = {"temperature": "temperature", "max_tokens": "new tokens", "top_k": "top-k", "top_p": "top-p"}

PIECE_STYLES = ("black on cyan", "black on yellow", "black on green", "black on magenta")
MIN_ANSWER_COLUMN = 18
NAME_COLUMN, PERCENT_COLUMN = 12, 6
MIN_BAR, MAX_BAR = 6, 20
GAP = 2


def print_exploration(exploration: Exploration) -> None:
    """Print it on stdout, as wide as the terminal."""
    console = Console(highlight=False, markup=False, emoji=False)
    _print_tokens(console, exploration.prompt_tokens)
    _print_context(console, exploration.context)
    _print_distributions(console, exploration.distributions)
    for experiment in exploration.experiments:
        _print_experiment(console, experiment, exploration.seed)
    console.print("\ncandidates: how many tokens the first one was drawn from")


def _print_tokens(console: Console, tokens: list[Token]) -> None:
    """The pieces of the prompt, coloured, their ids below them, as many on a line as there is room for."""
    _heading(console, f"The prompt is {_counted(len(tokens), 'token')}")
    pieces, ids = Text(), Text()
    for i, token in enumerate(tokens):
        piece = visible(token.text, spaces=True)
        width = max(cell_len(piece), len(str(token.id)))
        if pieces and pieces.cell_len + 1 + width > console.width:
            console.print(pieces, ids, sep="\n")
            pieces, ids = Text(), Text()
        if pieces:
            pieces.append(" ")
            ids.append(" ")
        pieces.append(piece, style=PIECE_STYLES[i % len(PIECE_STYLES)])
        pieces.append(" " * (width - cell_len(piece)))
        ids.append(str(token.id).ljust(width), style="dim")
    console.print(pieces, ids, sep="\n")


def _print_context(console: Console, context: Context) -> None:
    _heading(console, "The context window")
    console.print(Bar(context.window, 0, context.longest_tokens, width=min(console.width, 60), color="green"))
    longest = context.longest_tokens - context.prompt_tokens
    console.print(
        f"{_counted(context.prompt_tokens, 'token')} of prompt and {longest} of the longest answer: "
        f"{context.used_percent} % of {context.window}"
    )


def _print_distributions(console: Console, distributions: list[Distribution]) -> None:
    """A row a token, a column a temperature, as many as there is room for, then the next ones below."""
    _heading(console, "The next token, at each temperature")
    room = console.width - NAME_COLUMN
    beside_bar = PERCENT_COLUMN + GAP
    per_row = max(1, min(len(distributions), room // (MIN_BAR + beside_bar)))
    bar = max(MIN_BAR, min(MAX_BAR, room // per_row - beside_bar))
    for some in _chunks(distributions, per_row):
        table = Table.grid(padding=(0, 1), pad_edge=False)
        table.add_column(no_wrap=True, overflow="ellipsis", max_width=NAME_COLUMN)
        for _ in some:
            table.add_column(width=bar)
            table.add_column(width=PERCENT_COLUMN, justify="right")
        table.add_row("", *(cell for each in some for cell in ("", f"{each.temperature:g}")), style="bold")
        for i, token in enumerate(some[0].tokens):
            cells: list[Any] = []
            for each in some:
                share = each.tokens[i].probability
                cells += [Bar(1, 0, share, color="cyan"), f"{share:.1%}"]
            table.add_row(visible(token.text, spaces=True), *cells)
        others = [
            cell
            for each in some
            for cell in (Bar(1, 0, each.other_probability, color="white"), f"{each.other_probability:.1%}")
        ]
        table.add_row("all others", *others, style="dim")
        console.print(table)


def _print_experiment(console: Console, experiment: Experiment, seed: int) -> None:
    """Answers in columns, as many as there is room for, then the next ones below."""
    fixed = ", ".join(f"{TITLES[name]} {value:g}" for name, value in experiment.fixed.items())
    title = TITLES[experiment.parameter]
    _heading(console, f"{title[0].upper()}{title[1:]}", f"the rest: {fixed}, seed {seed}")
    per_row = max(1, (console.width + GAP) // (MIN_ANSWER_COLUMN + GAP))
    for i, answers in enumerate(_chunks(experiment.answers, per_row)):
        if i > 0:
            console.print()
        table = Table.grid(padding=(0, GAP, 0, 0), expand=True, pad_edge=False)
        for _ in range(min(per_row, len(experiment.answers))):
            table.add_column(ratio=1, overflow="fold")
        table.add_row(*(Text(f"{title} {answer.value:g}", style="bold") for answer in answers))
        table.add_row(*(Text(visible(answer.text.removeprefix(" "))) for answer in answers))
        table.add_row(*(Text(_details(answer), style="dim") for answer in answers))
        console.print(table)


def _details(answer: Answer) -> str:
    return f"{_counted(answer.num_tokens, 'token')}\n{_counted(answer.num_candidates, 'candidate')}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _heading(console: Console, title: str, details: str = "") -> None:
    console.print()
    console.print(Text(title, style="bold underline"))
    if details:
        console.print(Text(details, style="dim"))


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
