"""A request's fields -> SamplingParams, and how an answer shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pocketlm.errors import InvalidRequest
from pocketlm.generation import check_text
from pocketlm.sampling import SamplingParams
from pocketlm.server.protocol.fields import SAMPLING, TOKEN_ID


def sampling_params(values: Mapping[str, Any]) -> SamplingParams:
    """The SamplingParams of a request's fields; InvalidRequest names the one that is wrong."""
    values = dict(values)
    if "logit_bias" in values:
        values["logit_bias"] = _with_token_ids(values["logit_bias"])
    params = SamplingParams(**values)
    for string in params.stop:
        check_text("stop", string)
    return params


def _with_token_ids(logit_bias: object) -> object:
    """The keys of a JSON object are strings; SamplingParams takes token ids."""
    if not isinstance(logit_bias, dict):
        return logit_bias
    for key in logit_bias:
        if not TOKEN_ID.fullmatch(key):
            raise InvalidRequest(
                f'the keys of logit_bias must be token ids, like "42", got {key!r:.60}', param="logit_bias"
            )
    return {int(key): bias for key, bias in logit_bias.items()}


_DEFAULTS = SamplingParams()


def shown_parameters(params: SamplingParams, always: tuple[str, ...]) -> dict[str, Any]:
    """What an answer says about its parameters: some always, others where they change anything."""
    names = dict.fromkeys(
        (*always, *(name for name in SAMPLING if getattr(params, name) != getattr(_DEFAULTS, name)))
    )
    shown = {name: getattr(params, name) for name in names}
    if "logit_bias" in shown:
        shown["logit_bias"] = {str(token_id): bias for token_id, bias in params.logit_bias.items()}
    return shown
