"""ApiRequest: what the routes have in common, and all that the server knows of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pocketlm.generation import Piece, Prompt
from pocketlm.loading import LoadedModel
from pocketlm.outputs import RequestOutput
from pocketlm.sampling import SamplingParams
from pocketlm.server.protocol.asked import Asked
from pocketlm.server.protocol.fields import Schema
from pocketlm.server.protocol.reading import Limits, NoLimits, read
from pocketlm.server.protocol.result import Head, Result

Request = TypeVar("Request", bound="ApiRequest")


class ApiRequest(ABC):
    """One request of one route: its body checked, and its answer's bodies and events made.

    Streams: `opening`, then `piece` for each piece of the engine, then `closing`; each gives the JSON
    objects to send. An object belongs to one request, and keeps what it has to remember of it.
    """

    FIELDS: ClassVar[Mapping[str, Schema]]
    UNSUPPORTED: ClassVar[Mapping[str, tuple[Any, ...]]] = {}  # see `reading.read`
    SCHEMA: ClassVar[Schema]  # of the body
    RESPONSE: ClassVar[Schema]  # of `whole`
    EVENT: ClassVar[Schema]  # of each event of a stream
    KEEPS_SAMPLED: ClassVar[bool] = False  # whether the response cache keeps answers drawn without a seed

    asked: Asked

    @classmethod
    def from_json(cls: type[Request], body: Mapping[str, Any], config: Limits | None = None) -> Request:
        """Check every field, or raise InvalidRequest that names it. A field that is null was not given."""
        limits = NoLimits() if config is None else config
        values, asked = read(body, cls.FIELDS, cls.UNSUPPORTED, lenient=limits.lenient)
        return cls(values, asked, limits)

    @abstractmethod
    def __init__(self, values: dict[str, Any], asked: Asked, limits: Limits) -> None:
        """`values`: the route's own fields that were given, not checked yet."""

    @abstractmethod
    def prepare(self, model: LoadedModel) -> tuple[list[Prompt], SamplingParams]:
        """What the engine is to do. To be called before any of the methods below, from any thread."""

    @abstractmethod
    def whole(self, result: Result) -> dict[str, Any]:
        """The body of an answer that is not streamed."""

    @abstractmethod
    def opening(self, head: Head) -> list[dict[str, Any]]: ...

    @abstractmethod
    def piece(
        self, head: Head, prompt_index: int, output: RequestOutput, piece: Piece
    ) -> list[dict[str, Any]]:
        """`output`: the answer to this prompt so far, the piece included."""

    @abstractmethod
    def closing(self, result: Result) -> list[dict[str, Any]]: ...
