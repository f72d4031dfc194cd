"""The Hub's protocol over a local server: what is uploaded, and the same files coming back."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import yaml

import cir
from cir import hub
from cir.adapter import Adapter, TokenTable
from cir.errors import InputError
from cir.methods import build, checkpoint, token_table

COMMIT = "1" * 40


class Hub(BaseHTTPRequestHandler):
    """Repositories in memory; every file is small enough to travel inside the commit."""

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.server.repos.setdefault(name, {})
            self.server.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
            return self.answer({"url": f"{self.server.address}/{name}", "name": name})
        if self.path == "/api/validate-yaml":
            self.server.cards.append(json.loads(body)["content"])
            return self.answer({"errors": [], "warnings": []})
        name, action = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path).groups()
        if action == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        for line in map(json.loads, body.decode().splitlines()):
            if line["key"] == "file":
                self.server.repos[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "header":
                self.server.messages.append(line["value"]["summary"])
        url = f"{self.server.address}/{name}/commit/{COMMIT}"
        return self.answer({"commitUrl": url, "commitOid": COMMIT, "success": True})

    def do_GET(self):
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(?:revision/\w+|tree/\w+.*)", self.path.split("?")[0])
        if listing and listing[1] in self.server.repos:
            if "/tree/" in self.path:
                files = self.server.repos[listing[1]].items()
                return self.answer([{"type": "file", "path": n, "size": len(c), "oid": COMMIT} for n, c in files])
            names = [{"rfilename": name} for name in self.server.repos[listing[1]]]
            return self.answer({"id": listing[1], "sha": COMMIT, "siblings": names})
        found = self.file()
        if found is None:
            return self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        return self.answer(found, 200, self.tags(found))

    def do_HEAD(self):
        found = self.file()
        self.send_response(404 if found is None else 200)
        for key, value in self.tags(found or b"").items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(found or b"")))
        self.end_headers()

    def file(self):
        asked = re.fullmatch(r"/([^/]+/[^/]+)/resolve/\w+/(.+)", self.path)
        return self.server.repos.get(asked[1], {}).get(asked[2]) if asked else None

    def tags(self, content):
        return {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}

    def answer(self, content, status=200, headers=None):
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


@pytest.fixture
def server(monkeypatch, tmp_path):
    made = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    made.address = f"http://127.0.0.1:{made.server_port}"
    made.repos, made.private, made.messages, made.asked, made.cards = {}, {}, [], [], []
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    for name, value in {
        "ENDPOINT": made.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": made.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def adapter(tiny_backbone, tmp_path):
    folder = checkpoint.save(tmp_path / "own", build("lincir", {}, tiny_backbone, seed=2), tiny_backbone)
    return cir.load(folder, device="cpu")


def test_a_push_uploads_the_folder_and_loading_brings_it_back(server, adapter, tmp_path):
    address = adapter.push_to_hub("me/lincir-tiny", private=True, token="hf_x", commit_message="first")
    assert address == f"{server.address}/me/lincir-tiny/commit/{COMMIT}"
    files = server.repos["me/lincir-tiny"]
    assert set(files) == {"README.md", "config.json", "config.yaml", "model.safetensors"}
    assert server.private == {"me/lincir-tiny": True} and server.messages == ["first"]
    assert all(key == "Bearer hf_x" for _, key in server.asked)
    assert files["model.safetensors"] == (adapter.folder / "model.safetensors").read_bytes()
    server.repos["me/lincir-tiny"]["evil.py"] = b"raise SystemExit"
    image = torch.randn(2, 24)
    for again in (cir.load("me/lincir-tiny"), Adapter.from_pretrained("me/lincir-tiny", cache_dir=tmp_path / "c")):
        assert torch.equal(again.words(image), adapter.words(image))
        assert not list(again.folder.glob("*.py"))


def test_the_card_says_what_it_is(server, adapter):
    adapter.config.backbone.name = "openai/clip-vit-base-patch32"
    adapter.push_to_hub("me/x")
    card = server.repos["me/x"]["README.md"].decode()
    assert server.cards == [card]  # the client had it checked
    _, front, text = card.split("---\n", 2)
    head = yaml.safe_load(front)
    assert head["library_name"] == "cir" and head["base_model"] == "openai/clip-vit-base-patch32"
    assert "license" not in head and "composed-image-retrieval" in head["tags"]
    for said in (
        "Gu et al., CVPR 2024",
        "`clip`",
        "a photo of $ that {text}",
        "whoever trained it",
        "cir.load('me/x')",
    ):
        assert said in text


def test_imported_weights_carry_their_licence(adapter):
    origin = {"file": "SEARLE.pt", "licence": "cc-by-nc-4.0"}
    described = {**adapter.described, "method": "searle", "details": {"imported": origin}}
    card = hub.card(described, adapter.config, "x")
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "cc-by-nc-4.0" and "imported from `SEARLE.pt`" in card


def test_patterns_choose_what_travels(server, adapter):
    adapter.push_to_hub("me/y", ignore_patterns=["*.md"])
    assert set(server.repos["me/y"]) == {"config.json", "config.yaml", "model.safetensors"}


def test_tables_of_tokens_travel_too(server, tmp_path):
    backbone = {"name": "", "fingerprint": "", "width": 32, "word_width": 32}
    token_table.write(tmp_path / "t", torch.randn(2, 32), ["a", "b"], backbone)
    table = cir.load(tmp_path / "t", device="cpu")
    table.push_to_hub("me/tokens")
    again = TokenTable.from_pretrained("me/tokens")
    assert again.names == ("a", "b") and torch.equal(again.tokens, table.tokens)
    with pytest.raises(InputError, match="a table of OTI tokens, not a method"):
        Adapter.from_pretrained("me/tokens")


def test_what_is_nowhere_is_one_line(server):
    with pytest.raises(InputError, match=r"me/absent: no such folder, and the hub did not give it"):
        cir.load("me/absent")
    for name in ("./absent", "absent", "a/b/c"):
        with pytest.raises(InputError, match="no such folder; expected a checkpoint"):
            cir.load(name)
