"""What clients hear when the server itself is at fault: no more than they should."""

from __future__ import annotations

import pytest
from fake_decoder import FakeDecoder
from served import fake_model, is_idle, running_server

ASK = {"prompt": "!", "max_tokens": 20}  # "!" is token 1: the fake decoder knows the first 97 ids only


def test_one_failed_step_is_one_500_and_the_next_request_works() -> None:
    model = fake_model(FakeDecoder(errors=[RuntimeError("secret")]))
    with running_server(model) as server:
        response = server.client.post("/generate", json=ASK)
        assert response.status_code == 500 and response.json().keys() == {"error"}
        assert "secret" not in response.text
        assert server.client.post("/generate", json=ASK).status_code == 200
        assert server.client.get("/health").status_code == 200
    assert is_idle(model)


def test_logits_that_are_not_finite_are_named() -> None:
    model = fake_model(FakeDecoder(nan_token_id=model_id("!")))
    with running_server(model) as server:
        response = server.client.post("/generate", json=ASK)
        assert response.status_code == 500
        assert "not finite" in response.json()["error"]


def test_a_dead_engine_is_503_everywhere(caplog: pytest.LogCaptureFixture) -> None:
    model = fake_model(FakeDecoder(errors=[RuntimeError("secret")] * 2))
    with running_server(model) as server:
        server.client.post("/generate", json=ASK)
        for _ in range(2):
            response = server.client.post("/generate", json=ASK)
            assert response.status_code == 503
            assert "restart" in response.json()["error"] and "secret" not in response.text
        response = server.client.get("/health")
        assert response.status_code == 503
        assert (response.json()["status"], response.json()["model"]) == ("unhealthy", "bundled")
    assert "secret" in caplog.text


def test_a_bug_is_logged_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(*_: object) -> None:
        raise KeyError("secret")

    model = fake_model(FakeDecoder())
    with running_server(model) as server:
        monkeypatch.setattr("pocketlm.server.protocol.GenerateRequest.answer", bug)
        response = server.client.post("/generate", json=ASK)
        assert response.status_code == 500
        assert response.json() == {"error": "internal error; the server's log has the details"}
        monkeypatch.undo()
        assert server.client.post("/generate", json=ASK).status_code == 200
    assert "Traceback" in caplog.text and "secret" in caplog.text


def model_id(text: str) -> int:
    [token_id] = fake_model(FakeDecoder()).tokenizer.encode(text)
    return token_id
