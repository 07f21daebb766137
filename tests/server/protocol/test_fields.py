"""What holds for the fields of every generation route."""

from __future__ import annotations

import math
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketlm.config import ServerConfig
from pocketlm.errors import InvalidRequest
from pocketlm.sampling import SamplingParams
from pocketlm.server.protocol import (
    ApiRequest,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    GenerateRequest,
    TokenizeRequest,
)
from pocketlm.server.protocol.fields import SAMPLING, SERVING

ROUTES: list[type[ApiRequest]] = [GenerateRequest, CompletionRequest, ChatRequest]
LEAST: dict[type[ApiRequest], dict[str, Any]] = {
    GenerateRequest: {"prompt": "a"},
    CompletionRequest: {"prompt": "a"},
    ChatRequest: {"messages": [{"role": "user", "content": "a"}]},
}


def make(route: type[ApiRequest], **fields: Any) -> ApiRequest:
    return route.from_json({**LEAST[route], **fields}, ServerConfig())


def refused(route: type[ApiRequest], **fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        make(route, **fields)
    return caught.value


def params(request: ApiRequest) -> SamplingParams:
    assert isinstance(request, GenerateRequest | CompletionRequest | ChatRequest)
    return request.params


@pytest.mark.parametrize("route", ROUTES)
def test_what_is_not_given_has_its_default(route: type[ApiRequest]) -> None:
    asked = make(route).asked
    assert (asked.model, asked.timeout_s, asked.use_cache, asked.user) == (None, None, None, None)
    assert not (asked.stream or asked.include_usage or asked.include_timing or asked.ignored)
    nothing = {name: None for name in route.FIELDS if name not in LEAST[route]}
    assert params(make(route, **nothing)) == params(make(route))


@pytest.mark.parametrize("route", ROUTES)
def test_how_it_is_served(route: type[ApiRequest]) -> None:
    asked = make(route, model="m", stream=True, timeout=2, cache=False, include_timing=True, user="Ann").asked
    assert (asked.model, asked.stream, asked.timeout_s) == ("m", True, 2)
    assert (asked.use_cache, asked.include_timing, asked.user) == (False, True, "Ann")
    assert {"model", "stream", "timeout", "cache", "include_timing", "user"} <= asked.given


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("model", 5, "a string"),
        ("model", "a\0", "NUL"),
        ("stream", 1, "true or false"),
        ("stream", "true", "true or false"),
        ("timeout", 0, "a number above 0 and at most 86400"),
        ("timeout", 86401, "a number above 0 and at most 86400"),
        ("timeout", math.nan, "a number above 0"),
        ("timeout", math.inf, "a number above 0"),
        ("timeout", True, "a number above 0"),
        ("cache", "no", "true or false"),
        ("include_timing", 0, "true or false"),
        ("user", "x" * 513, "a string of at most 512 characters"),
        ("user", ["Ann"], "a string"),
        ("temperature", 2.1, "between 0.0 and 2.0"),
        ("seed", -1, "between 0 and"),
        ("stop", "\ud800", "surrogate"),
        ("logit_bias", {"x": 1}, "token ids"),
    ],
)
def test_a_wrong_value_is_refused_with_the_fields_name(
    route: type[ApiRequest], name: str, value: Any, allowed: str
) -> None:
    error = refused(route, **{name: value})
    assert error.param == name
    assert name in str(error) and allowed in str(error) and len(str(error)) < 300


@pytest.mark.parametrize("route", ROUTES)
def test_an_unknown_field_is_refused_by_name(route: type[ApiRequest]) -> None:
    error = refused(route, guided_json={}, zebra=None)
    assert str(error).startswith("unknown field 'guided_json', 'zebra'; allowed are ")
    assert error.param == "guided_json"
    assert all(f"{name}" in str(error) for name in route.FIELDS)
    assert len(refused(route, **{"x" * 100_000: 1}).param or "") <= 60
    strange = refused(route, **{"\ud800\n": 1})
    assert (str(strange) + str(strange.param)).encode()  # whatever the name is, it can be sent


@pytest.mark.parametrize("route", ROUTES)
def test_a_lenient_server_drops_what_it_does_not_know_and_says_so(route: type[ApiRequest]) -> None:
    body = {**LEAST[route], "zebra": 1, "tools": [{}], "suffix": "x", "no header\r\n": 1, "\ud800": 1}
    request = route.from_json(body, ServerConfig(lenient=True))
    assert request.asked.ignored == ("zebra", "tools", "suffix", r"'no header\r\n'", r"'\ud800'")
    assert params(request) == params(make(route))
    many = {f"field-{i}": 1 for i in range(10_000)}
    assert len(route.from_json({**LEAST[route], **many}, ServerConfig(lenient=True)).asked.ignored) == 20
    with pytest.raises(InvalidRequest, match="temperature"):  # what is known is checked all the same
        route.from_json({**LEAST[route], "temperature": -1}, ServerConfig(lenient=True))


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        (CompletionRequest, {"suffix": ""}),
        (ChatRequest, {"tools": [], "tool_choice": "none", "functions": [], "function_call": "none"}),
        (ChatRequest, {"response_format": {"type": "text"}, "modalities": ["text"], "audio": None}),
        (ChatRequest, {"parallel_tool_calls": True, "store": False, "metadata": {}, "service_tier": "auto"}),
    ],
)
def test_an_unsupported_field_that_asks_for_nothing_is_accepted(
    route: type[ApiRequest], fields: dict[str, Any]
) -> None:
    assert params(make(route, **fields)) == params(make(route))


@pytest.mark.parametrize(
    ("route", "name", "value"),
    [
        (CompletionRequest, "suffix", "the end"),
        (ChatRequest, "tools", [{"type": "function", "function": {"name": "f"}}]),
        (ChatRequest, "tool_choice", "required"),
        (ChatRequest, "response_format", {"type": "json_object"}),
        (ChatRequest, "modalities", ["text", "audio"]),
        (ChatRequest, "store", True),
        (ChatRequest, "metadata", {"a": "b"}),
        (ChatRequest, "reasoning_effort", "high"),
    ],
)
def test_an_unsupported_field_is_refused_by_name(route: type[ApiRequest], name: str, value: Any) -> None:
    error = refused(route, **{name: value})
    assert str(error) == f"{name} is not supported by this server; leave it out"
    assert error.param == name


@pytest.mark.parametrize("route", ROUTES)
def test_the_number_of_answers_is_bounded(route: type[ApiRequest]) -> None:
    name = "num_return_sequences" if route is GenerateRequest else "n"
    assert params(make(route, **{name: 16})).n == 16
    assert f"{name} must be an integer between 1 and 16, got 17" in str(refused(route, **{name: 17}))
    assert params(route.from_json({**LEAST[route], name: 20}, ServerConfig(max_n=20))).n == 20


@pytest.mark.parametrize("route", ROUTES)
def test_every_sampling_field_reaches_the_parameters(route: type[ApiRequest]) -> None:
    fields: dict[str, Any] = {
        "max_tokens": 12,
        "min_tokens": 2,
        "temperature": 1.1,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.01,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.1,
        "seed": 3,
        "stop": ["zzz", "qqq"],
        "stop_token_ids": [5],
        "ignore_eos": True,
    }
    assert {*fields, "logit_bias"} == SAMPLING.keys()
    found = params(make(route, logit_bias={"7": -100}, **fields))
    assert {name: getattr(found, name) for name in fields} == fields
    assert found.logit_bias == {7: -100}


# A JSON schema takes 1.0 for an integer; we do not.
FRACTIONS = st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: not x.is_integer())
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | FRACTIONS | st.text() | st.integers(-3, 130),
    lambda values: (
        st.lists(values, max_size=3) | st.dictionaries(st.sampled_from("05axé"), values, max_size=2)
    ),
    max_leaves=4,
)
# What else a value depends on: other fields, the server's limits.
BOUND_OTHERWISE = {
    "n",
    "best_of",
    "num_return_sequences",
    "max_length",
    "min_tokens",
    "top_logprobs",
    "stream_options",
}


@pytest.mark.parametrize(
    ("route", "name"), [(route, name) for route in ROUTES for name in [*route.FIELDS, "zebra"]]
)
def test_the_schema_allows_what_the_server_does(route: type[ApiRequest], name: str) -> None:
    schema = jsonschema_rs.validator_for(route.SCHEMA)

    @settings(max_examples=30, deadline=None)
    @given(JSON_VALUES)
    def holds(value: Any) -> None:
        body = {**LEAST[route], name: value}
        try:
            route.from_json(body, ServerConfig())
            is_accepted = True
        except InvalidRequest:
            is_accepted = False
        is_valid = schema.is_valid(body)
        if is_accepted:
            assert is_valid
        elif is_valid and name not in BOUND_OTHERWISE:
            assert "\\x00" in repr(value)  # of a schema's strings, all but this one are text

    holds()


def test_every_field_has_a_description_in_the_schema() -> None:
    for route in (*ROUTES, TokenizeRequest, DetokenizeRequest):
        schema = route.SCHEMA
        assert schema["properties"].keys() == route.FIELDS.keys()
        assert all(field["description"] for field in schema["properties"].values())
    for chat in ROUTES:
        assert SAMPLING.keys() | SERVING.keys() <= chat.FIELDS.keys()
