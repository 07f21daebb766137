"""Command line flags made from the fields of the config classes, so that each is described once."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo


def config_flags(*models: type[BaseModel]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a flag for each field of the models.

    The command gets them as its argument `flags`: field name -> value, None where the flag is absent.
    pydantic checks the values, so a wrong one is a ConfigError wherever it came from.
    """
    fields = {name: field for model in models for name, field in model.model_fields.items()}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def wrapper(**values: Any) -> None:
            flags = {name: values.pop(name) for name in fields}
            command(**values, flags=flags)

        signature = inspect.signature(command, eval_str=True)
        own = [parameter for name, parameter in signature.parameters.items() if name != "flags"]
        made = [_parameter(name, field) for name, field in fields.items()]
        wrapper.__signature__ = signature.replace(parameters=[*own, *made])  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in (*own, *made)} | {"return": None}
        return wrapper

    return decorate


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    flag = name.replace("_", "-")
    kind = _without_none(field.annotation)
    default = "" if field.default in (None, ()) else f" Default: {_shown(field.default)}."
    option = typer.Option(
        f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}",
        help=f"{field.description}{default}",
        metavar=None if kind is bool else _metavar(kind),
    )
    value = bool if kind is bool else list[str] if get_origin(kind) is tuple else str
    annotation = Annotated[value | None, option]  # type: ignore[valid-type]  # the type is made here
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        [annotation] = [kind for kind in get_args(annotation) if kind is not type(None)]
    return annotation


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if get_origin(kind) is tuple:
        return "TEXT"
    return {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "FILE", ByteSize: "SIZE"}[kind]


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return default.human_readable() if isinstance(default, ByteSize) else str(default)
