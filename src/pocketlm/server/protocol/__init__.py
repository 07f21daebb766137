"""The JSON of the generation routes: each body's fields in, answers and events out. No IO, no engine."""

from pocketlm.server.protocol.api_request import ApiRequest
from pocketlm.server.protocol.asked import Asked
from pocketlm.server.protocol.chat import ChatRequest
from pocketlm.server.protocol.completions import CompletionRequest
from pocketlm.server.protocol.generate import GenerateRequest
from pocketlm.server.protocol.reading import Limits
from pocketlm.server.protocol.result import Head, Result
from pocketlm.server.protocol.tokens import DetokenizeRequest, TokenizeRequest

__all__ = [
    "ApiRequest",
    "Asked",
    "ChatRequest",
    "CompletionRequest",
    "DetokenizeRequest",
    "GenerateRequest",
    "Head",
    "Limits",
    "Result",
    "TokenizeRequest",
]
