from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

import pocketlm
from pocketlm.errors import ModelLoadError
from pocketlm.hub import BUNDLED, is_local, resolve, without_folders

COMMIT = "c0ffee" * 6 + "c0ff"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a Hub that nobody answers for."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "hub"


class FakeHub(BaseHTTPRequestHandler):
    """One repository, org/model, that anybody may read; others are gated, unknown or broken."""

    files = {  # noqa: RUF012
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "pytorch_model.bin": b"a pickle",
        "onnx/model.onnx": b"for another program",
        "model.fp16.safetensors": b"for another program",
    }

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/org/gated"):
            self.answer(403, {"X-Error-Code": "GatedRepo"}, b"{}")
        elif path.startswith("/api/models/org/broken"):
            self.answer(418, {}, b"{}")
        elif path == "/api/models/org/model/revision/main":
            self.answer(200, {}, json.dumps({"id": "org/model", "sha": COMMIT}).encode())
        elif path == f"/api/models/org/model/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": f"{i:040}"}
                for i, (name, content) in enumerate(self.files.items())
            ]
            self.answer(200, {}, json.dumps(tree).encode())
        elif path.startswith(f"/org/model/resolve/{COMMIT}/"):
            name = path.rpartition("/")[2]
            headers = {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}
            self.answer(200, headers, self.files[name])
        else:
            self.answer(404, {"X-Error-Code": "RepoNotFound"}, b"{}")

    do_HEAD = do_GET

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        logging.getLogger(__name__).debug(format, *args)


@pytest.fixture
def fake_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Hub on this machine; gives the cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield cache
    server.shutdown()
    server.server_close()
    thread.join()


def fill_cache(cache: Path, repo_id: str) -> Path:
    """The cache's layout, as huggingface_hub documents it, with one snapshot."""
    folder = cache / ("models--" + repo_id.replace("/", "--"))
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return snapshot


def test_bundled() -> None:
    assert resolve("bundled") == BUNDLED
    assert (BUNDLED / "model.safetensors").is_file()


def test_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "org" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert resolve(str(folder)) == folder
    assert resolve("~/org/model") == folder
    assert resolve("org/model").resolve() == folder.resolve()  # before the Hub is asked


def test_the_environment_of_the_hubs_library_counts(tmp_path: Path) -> None:
    """In a process of its own, where the library reads it; and there "bundled" does not import it."""
    snapshot = fill_cache(tmp_path / "hub", "org/model")
    code = (
        "import sys; from pocketlm.hub import resolve; resolve('bundled'); "
        "assert 'huggingface_hub' not in sys.modules; print(resolve('org/model'))"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(pocketlm.__file__).parents[1]),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(snapshot)


@pytest.mark.parametrize("name", ["./model", "../model", "/model/model", "~/model", "."])
def test_a_folder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    message = "has no config.json" if name == "." else "does not exist"
    with pytest.raises(ModelLoadError, match=message):
        resolve(name)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelLoadError, match="is a file; give the folder"):
        resolve(str(tmp_path / "model.safetensors"))


def test_an_empty_name() -> None:
    with pytest.raises(ModelLoadError, match="the model name is empty"):
        resolve("")


@pytest.mark.parametrize(
    "name", ["a/b/c", "bad name", "org/", "name--x", "a..b", "x" * 5000, "nul\0byte", "C:\\models\\x", "é"]
)
def test_neither_a_folder_nor_an_id(cache: Path, name: str) -> None:
    with pytest.raises(ModelLoadError, match="is not a local folder, and it cannot be the id of"):
        resolve(name)


@pytest.mark.parametrize("name", ["gpt2", "org/model"])
def test_offline_names_the_folder(cache: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelLoadError) as error:
        resolve(name)
    folder = cache / ("models--" + name.replace("/", "--"))
    assert str(error.value) == (
        f"{name} is not a local folder and cannot be fetched from the Hugging Face Hub: "
        "HF_HUB_OFFLINE is set; "
        f"its files would be in {folder}"
    )


def test_no_network_names_the_folder(cache: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"there is no network; .*models--org--model$"):
        resolve("org/model")


@pytest.mark.parametrize("offline", [True, False])
def test_a_cached_repository_needs_no_network(
    cache: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    snapshot = fill_cache(cache, "org/model")
    assert resolve("org/model") == snapshot


def test_fetching_takes_what_is_needed_and_nothing_else(
    fake_hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = resolve("org/model")
    assert sorted(path.name for path in folder.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve("org/model") == folder


def test_an_unknown_repository(fake_hub: Path) -> None:
    with pytest.raises(
        ModelLoadError, match=r"org/other is not a local folder, and the .* Hub has no such model"
    ):
        resolve("org/other")


def test_a_gated_repository(fake_hub: Path) -> None:
    with pytest.raises(ModelLoadError, match="gives org/gated only to those who accepted its terms"):
        resolve("org/gated")


def test_a_hub_that_fails(fake_hub: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"org/broken .* it answers with status 418; its files would be"):
        resolve("org/broken")


def test_what_is_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert is_local("bundled") and is_local(str(tmp_path / "model")) and is_local("~/model")
    assert not is_local("gpt2") and not is_local(str(tmp_path / "other"))


def test_messages_for_users_name_the_model_and_not_its_folder(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert without_folders("bundled", f"{BUNDLED}/config.json is odd") == "bundled/config.json is odd"
    assert without_folders("~/model", f"{tmp_path}/model has no x") == "~/model has no x"
    snapshot = fill_cache(cache, "org/model")
    assert without_folders("org/model", f"{snapshot} has no x") == "org/model has no x"
    assert without_folders("org/model", f"{snapshot}/a.json has no x") == "org/model/a.json has no x"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelLoadError) as error:
        resolve("org/other")
    message = without_folders("org/other", str(error.value))
    assert str(tmp_path) not in message and message.endswith("would be in the Hugging Face cache")
