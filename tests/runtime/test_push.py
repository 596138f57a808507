"""`--push`: what is uploaded, held against a small hub on this machine."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hcnr_jax.errors import InputError
from hcnr_jax.runtime.push import check_push


class Hub(BaseHTTPRequestHandler):
    """Answers the requests of huggingface_hub's upload_folder, and keeps the files of the commit."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path, server = self.path.partition("?")[0], self.server
        if server.refuses or self.headers["Authorization"] != "Bearer hf_token":
            return self._send({"error": "no"}, 403)
        if path == "/api/repos/create":
            server.created = json.loads(body)
            return self._send({"url": f"http://{self.headers['Host']}/user/model", "name": "user/model"})
        if path.endswith("/preupload/main"):
            asked = json.loads(body)["files"]
            return self._send(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
            )
        if path == "/api/validate-yaml":
            return self._send({"errors": [], "warnings": []})
        if path.endswith("/commit/main"):
            lines = [json.loads(line) for line in body.splitlines()]
            server.files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            address = f"http://{self.headers['Host']}/user/model/commit/0"
            return self._send({"commitUrl": address, "commitOid": "0" * 40})
        return self._send({"error": f"unknown {path}"}, 404)

    def do_GET(self):
        self._send({"id": "user/model", "sha": "0" * 40, "siblings": []})

    def _send(self, value, code=200):
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        """Write nothing."""


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.refuses, server.files, server.created = False, {}, None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def pushed(hub, folder):
    """Run `push` in a process of its own, because huggingface_hub reads its environment when it is imported."""
    code = (
        "from pathlib import Path; from hcnr_jax.runtime.push import check_push, push; check_push('user/model'); "
        f"print(push(Path({str(folder)!r}), 'user/model'))"
    )
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_token",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        environment.pop(name, None)
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("---\nlicense: mit\n---\n# model\n")
    (tmp_path / "out" / "config.json").write_text("{}")
    return tmp_path / "out"


def test_every_file_arrives_in_a_private_repository(hub, folder):
    ended = pushed(hub, folder)
    assert ended.returncode == 0, ended.stderr
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert hub.created["visibility"] == "private" and hub.created["name"] == "model"
    assert "user/model" in ended.stdout


def test_a_refused_upload_says_that_the_model_is_there(hub, folder):
    hub.refuses = True
    ended = pushed(hub, folder)
    assert ended.returncode != 0
    assert f"the model is complete in {folder}" in ended.stderr and "hf upload user/model" in ended.stderr


@pytest.mark.parametrize("name", ["model", "a/b/c", "user/--bad..name", ""])
def test_a_name_that_the_hub_does_not_have_is_refused(name):
    with pytest.raises(InputError, match="such as user/model"):
        check_push(name)


def test_without_a_login_nothing_begins(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(InputError, match="hf auth login"):
        check_push("user/model")
