"""Who may ask, over what, and what nobody gets to see."""

from __future__ import annotations

import logging
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from command import COMMAND, pocketlm
from fake_decoder import FakeDecoder
from served import RunningServer, bundled_model, fake_model, running_server, wait_until
from starlette.routing import Route

import pocketlm as package
from pocketlm.server import api_keys
from pocketlm.server.app import ROUTERS
from pocketlm.server.middleware import OPEN_PATHS

ALICE, BOB = "alice-secret-1", "bob-secret-2"
ASK = {"prompt": "!", "max_tokens": 2}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def guarded() -> Iterator[RunningServer]:
    with running_server(fake_model(FakeDecoder()), api_key=(f"alice:{ALICE}", f"bob:{BOB}")) as server:
        yield server


class TestKeys:
    def test_every_route_but_health_asks_for_one(self, guarded: RunningServer) -> None:
        routes: list[Any] = [route for module in ROUTERS for route in module.router.routes]
        routes += [route for route in guarded.app.routes if isinstance(route, Route)]  # /docs and the like
        calls = {(method, re.sub(r"{.*}", "x", route.path)) for route in routes for method in route.methods}
        for method, path in {*calls, ("GET", "/no/such/path"), ("PUT", "/generate"), ("POST", "/health/x")}:
            if path in OPEN_PATHS:
                assert guarded.client.request(method, path).status_code in (200, 405)
                continue
            for headers in (
                {},
                bearer("wrong-secret-3"),
                {"X-API-Key": ALICE[:-1]},
                {"Authorization": "Bearer"},
            ):
                response = guarded.client.request(method, path, headers=headers)
                assert response.status_code == 401, (method, path)
                assert response.headers["www-authenticate"] == "Bearer"
        assert {path for _, path in calls} >= {
            "/docs",
            "/openapi.json",
            "/metrics",
            "/cache/clear",
            *OPEN_PATHS,
        }

    def test_both_headers_and_every_key_work(self, guarded: RunningServer) -> None:
        for headers in (bearer(ALICE), bearer(BOB), {"X-API-Key": BOB}):
            assert guarded.client.post("/generate", json=ASK, headers=headers).status_code == 200

    def test_the_file_is_read_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(api_keys, "FILE_CHECK_S", 0.05)
        file = tmp_path / "keys"
        file.write_text(ALICE)
        with running_server(fake_model(FakeDecoder()), api_key_file=file) as server:

            def status(key: str) -> int:
                return server.client.get("/models", headers=bearer(key)).status_code

            assert (status(ALICE), status(BOB)) == (200, 401)
            file.write_text(f"# changed\n{BOB}\n")
            wait_until(lambda: (status(ALICE), status(BOB)) == (401, 200))
            file.unlink()
            assert status(BOB) == 200

    def test_each_key_has_limits_of_its_own(self) -> None:
        keys = (f"alice:{ALICE}", f"bob:{BOB}")
        with running_server(fake_model(FakeDecoder()), api_key=keys, rate_limit_requests=2) as server:
            statuses = [
                server.client.post("/generate", json=ASK, headers=bearer(key)).status_code
                for key in (ALICE, ALICE, ALICE, BOB)
            ]
            assert statuses == [200, 200, 429, 200]

    def test_no_key_is_logged_or_answered(
        self, guarded: RunningServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        texts = []
        for key in (ALICE, "wrong-secret-3"):
            for headers in (bearer(key), {"X-API-Key": key}, {"Authorization": f"Basic {key}"}):
                for path in ("/generate", "/v1/completions", "/nowhere"):
                    response = guarded.client.post(path, json=ASK, headers=headers)
                    texts.append(response.text + str(response.headers))
        texts += [guarded.client.get("/metrics", headers=bearer(BOB)).text, logged(caplog)]
        assert "key" in texts[-1] and "alice" in texts[-1]  # the name of the key is
        assert not [text for text in texts if "secret" in text]


def logged(caplog: pytest.LogCaptureFixture) -> str:
    """Every message with all that was logged beside it."""
    return "\n".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)


PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "Authorization"}


class TestCors:
    def test_nobody_is_allowed_by_default(self) -> None:
        with running_server(fake_model(FakeDecoder())) as server:
            for method in ("OPTIONS", "POST"):
                headers = {"Origin": "https://a.example", **PREFLIGHT}
                response = server.client.request(method, "/generate", json=ASK, headers=headers)
                assert not [name for name in response.headers if name.startswith("access-control")]
                assert response.status_code == (405 if method == "OPTIONS" else 200)

    def test_an_origin_that_is_allowed(self) -> None:
        settings: dict[str, Any] = {"cors_origin": ("https://a.example",), "api_key": (ALICE,)}
        with running_server(fake_model(FakeDecoder()), **settings) as server:
            for origin, allowed in [("https://a.example", "https://a.example"), ("https://b.example", None)]:
                headers = {"Origin": origin, **PREFLIGHT}  # a browser sends no key with it
                preflight = server.client.options("/v1/completions", headers=headers)
                assert preflight.headers.get("access-control-allow-origin") == allowed
                assert preflight.status_code == (200 if allowed else 400)
                headers = {"Origin": origin, **bearer(ALICE)}
                response = server.client.post("/generate", json=ASK, headers=headers)
                assert response.status_code == 200
                assert response.headers.get("access-control-allow-origin") == allowed
                refused = server.client.post("/generate", json=ASK, headers={"Origin": origin})
                assert refused.status_code == 401  # and the page can read why
                assert refused.headers.get("access-control-allow-origin") == allowed


@pytest.mark.parametrize(("trusted", "statuses"), [((), [200, 429]), (("127.0.0.1",), [200, 200])])
def test_a_forwarded_address_is_believed_only_of_known_proxies(
    trusted: tuple[str, ...], statuses: list[int]
) -> None:
    settings: dict[str, Any] = {"rate_limit_requests": 1, "forwarded_allow_ips": trusted}
    with running_server(fake_model(FakeDecoder()), **settings) as server:
        found = [
            server.client.post("/generate", json=ASK, headers={"X-Forwarded-For": address}).status_code
            for address in ("10.0.0.1", "10.0.0.2")
        ]
        assert found == statuses


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed one for 127.0.0.1, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return certificate, key


class TestTls:
    def test_https(self, certificate: tuple[Path, Path]) -> None:
        files = {"ssl_certfile": certificate[0], "ssl_keyfile": certificate[1]}
        with running_server(fake_model(FakeDecoder()), **files) as server:
            assert server.url.startswith("https://127.0.0.1:")
            trust = ssl.create_default_context(cafile=str(certificate[0]))
            with httpx.Client(base_url=server.url, verify=trust) as client:
                assert client.post("/generate", json=ASK).status_code == 200
            with pytest.raises(httpx.TransportError):
                httpx.get(server.url.replace("https", "http") + "/health")

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (("missing", "key"), "No such file or directory"),
            (("certificate", "missing"), "No such file or directory"),
            (("key", "key"), "cannot be used"),
            (("certificate", "certificate"), "cannot be used"),
            ((None, "key"), "ssl_keyfile is set, but not ssl_certfile"),
        ],
    )
    def test_files_that_do_not_serve(
        self, certificate: tuple[Path, Path], names: tuple[str | None, str], message: str
    ) -> None:
        folder = certificate[0].parent
        flags = []
        for flag, name in zip(("--ssl-certfile", "--ssl-keyfile"), names, strict=True):
            flags += [flag, str(folder / f"{name}.pem")] if name else []
        result = pocketlm("serve", "--port", "0", *flags)
        assert result.returncode == 2
        assert message in result.stderr.splitlines()[-1] and result.stderr.startswith("error: ssl_")
        assert "Traceback" not in result.stderr


class TestSecrets:
    def test_no_error_shows_the_inside(self, caplog: pytest.LogCaptureFixture) -> None:
        """Neither a traceback nor a path of the installation."""
        inside = str(Path(package.__file__).parent)
        with running_server(fake_model(FakeDecoder(errors=[RuntimeError(inside)] * 2))) as server:
            bodies: list[Any] = [ASK, {**ASK, "model": "x"}, {**ASK, "n": 0}, {"messages": []}, [], "x", None]
            for body in bodies:
                for path in ("/generate", "/v1/completions", "/v1/chat/completions", "/tokenize", "/nowhere"):
                    response = server.client.post(path, json=body)
                    assert response.status_code >= 400 or body == ASK
                    assert inside not in response.text and "Traceback" not in response.text
                    assert "site-packages" not in response.text and ".py" not in response.text
        assert inside in caplog.text

    @pytest.mark.parametrize("log_prompts", [False, True])
    @pytest.mark.parametrize("stream", [False, True])
    def test_prompts_and_answers_are_logged_only_if_asked_for(
        self, log_prompts: bool, stream: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        body = {"prompt": "Kubernetes is a", "max_tokens": 20, "seed": 1}
        with running_server(bundled_model(), log_prompts=log_prompts) as server:
            server.client.post("/v1/completions", json={**body, "stream": stream})
            answer = server.client.post("/v1/completions", json=body).json()["choices"][0]["text"]
            refused = server.client.post("/v1/completions", json={**body, "temperature": 99})
            assert refused.status_code == 400
        assert ("Kubernetes is a" in logged(caplog)) == log_prompts
        assert (repr(answer)[1:-1] in logged(caplog)) == log_prompts


@pytest.mark.parametrize("flags", [[], ["--api-key", ALICE]])
def test_a_server_that_others_can_reach_without_a_key_says_so_loudly(flags: list[str]) -> None:
    command = [*COMMAND, "serve", "--host", "0.0.0.0", "--port", "0", *flags]
    lines = ""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                lines += line
                if line.startswith("curl "):
                    process.terminate()
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
    assert ("WARNING: other machines can reach this server" in lines) == (not flags)
    assert ("Authorization: Bearer YOUR_KEY" in lines) == bool(flags)
    assert ALICE not in lines
