"""What /openapi.json says is so: Schemathesis sends what fits its schemas and what does not."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from served import RunningServer, bundled_model, running_server

from pocketlm.config import EngineConfig
from pocketlm.loading import load_model

KEY = "a-key-of-the-test"
OPEN_ROUTES = ("/health", "/health/live", "/health/ready")


def test_every_operation_is_as_documented(tmp_path: Path) -> None:
    # A small context window, so that the answers are short; a short-lived cache, so that they are computed.
    model = load_model("bundled", EngineConfig(dtype="float32", max_model_len=64))
    with running_server(model, api_key=[KEY], max_n=4, cache_ttl=0.05) as server:
        server.client.headers["Authorization"] = f"Bearer {KEY}"
        operations = documented_operations(server)
        check_with_schemathesis(server, tmp_path)
        counts = answers(server)
        assert [key for key in counts if key[2] >= 500] == []
        for method, path in operations:
            # Else little would be known of the answers themselves.
            assert counts[method, path, 200] >= (10 if method == "POST" and path != "/cache/clear" else 1)
        num_refused = sum(count for key, count in counts.items() if key[2] == 401)
        assert num_refused >= len(operations) - len(OPEN_ROUTES)  # it asked without the key, too


def check_with_schemathesis(server: RunningServer, folder: Path) -> None:
    """Fail with its report if it finds anything."""
    result = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
            *("--header", f"Authorization: Bearer {KEY}"),
            # All but one: a body can fit its schema and not the model, whose ids and window it does not know.
            *("--checks", "all", "--exclude-checks", "positive_data_acceptance"),
            *("--max-examples", "40", "--generation-deterministic"),
            *("--continue-on-failure", "--no-color", "--output-truncate", "false"),
            *("--request-timeout", "60"),
        ],
        cwd=folder,  # where it leaves its files
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-20_000:] + result.stderr


def documented_operations(server: RunningServer) -> list[tuple[str, str]]:
    document = server.client.get("/openapi.json").json()
    return [(method.upper(), path) for path, item in document["paths"].items() for method in item]


def answers(server: RunningServer) -> Counter[tuple[str, str, int]]:
    """How often each route answered with each status."""
    counts: Counter[tuple[str, str, int]] = Counter()
    for family in text_string_to_metric_families(server.client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == "pocketlm:http_requests_total":
                route = sample.labels["route"].replace(":path}", "}")
                counts[sample.labels["method"], route, int(sample.labels["status"])] += int(sample.value)
    return counts


def document(**config: Any) -> dict[str, Any]:
    with running_server(bundled_model(), **config) as server:
        headers = {"X-API-Key": KEY}
        body: dict[str, Any] = server.client.get("/openapi.json", headers=headers).json()
        return body


def test_every_operation_says_what_it_is_and_how_it_fails() -> None:
    paths = document()["paths"]
    assert {"/generate", "/v1/completions", "/v1/chat/completions", "/models", "/v1/models"} <= paths.keys()
    for path, item in paths.items():
        for operation in item.values():
            assert operation["summary"] and operation["tags"]
            error = "OpenAIError" if path.startswith("/v1/") else "Error"
            failures = {status: a for status, a in operation["responses"].items() if status != "200"}
            for status, failure in failures.items():
                assert "X-Request-Id" in failure["headers"]
                if not (path in OPEN_ROUTES and status == "503"):  # these have a body of their own
                    schema = failure["content"]["application/json"]["schema"]
                    assert schema == {"$ref": f"#/components/schemas/{error}"}
            assert ("401" in failures) == (path not in OPEN_ROUTES)
            assert "500" in failures


def test_keys_are_documented_where_they_are_asked_for() -> None:
    closed = document(api_key=[KEY])
    assert closed["security"] == [{"bearer": []}, {"key": []}]
    assert closed["components"]["securitySchemes"].keys() == {"bearer", "key"}
    for path, item in closed["paths"].items():
        for operation in item.values():
            assert operation.get("security") == ([] if path in OPEN_ROUTES else None)
    assert "security" not in document()
