"""A language model's triplets, against a local server that speaks the chat-completions protocol."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cir.errors import InputError, RunError
from cir.language import llm
from cir.language.answers import Answers, key_of
from cir.language.client import Client, LimitReached

pytest.importorskip("openai")

CAPTIONS = [f"a photo of dog number {i} on grass" for i in range(12)]


def reply(caption, count=1):
    """What a well-behaved model answers."""
    number = re.search(r"number (\d+)", caption)[1]
    return [
        {"conditioning_caption": f"make it cat {k}", "target_caption": f"a photo of cat number {number} {k} on grass"}
        for k in range(count)
    ]


class Server:
    """`answer(caption, n)` returns the text of the n-th request for a caption, or a status code to fail with."""

    def __init__(self, answer, delay=0.0):
        self.asked, self.bodies, self.open, self.most = [], [], 0, 0
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                caption = re.search(r"a photo of dog number \d+ on grass", body["messages"][0]["content"])[0]
                with lock:
                    server.asked.append(caption)
                    server.bodies.append((self.path, self.headers["Authorization"], body))
                    nth = server.asked.count(caption)
                    server.open += 1
                    server.most = max(server.most, server.open)
                time.sleep(delay)
                found = answer(caption, nth)
                with lock:
                    server.open -= 1
                self.respond(found)

            def respond(self, found):
                status, text = (found, "") if isinstance(found, int) else (200, found)
                message = {"role": "assistant", "content": text}
                choice = {"index": 0, "finish_reason": "stop", "message": message}
                value = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
                data = json.dumps(value if status == 200 else {"error": {"message": "told so"}}).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                if status == 429:
                    self.send_header("Retry-After", "0")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def good(caption, nth, count=1):
    return json.dumps(reply(caption, count))


def command(folder, url, *more, out="t.jsonl"):
    return [
        "data", "triplets", str(folder / "captions.txt"), "--out", str(folder / out), "--llm", "--endpoint", url,
        "--model", "m", *more,
    ]  # fmt: skip


def run(folder, url, *more, out="t.jsonl"):
    """Run the command in this process; return its exit code, what it said and the rows it wrote."""
    from typer.testing import CliRunner

    from cir.cli import app

    (folder / "captions.txt").write_text("\n".join(CAPTIONS))
    done = CliRunner().invoke(app, command(folder, url, *more, out=out))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    path = folder / out
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return done.exit_code, done.output, rows


def test_one_question_per_caption_and_a_second_run_asks_nothing(tmp_path):
    with Server(lambda c, n: good(c, n, 2), delay=0.02) as server:
        code, said, rows = run(tmp_path, server.url, "--per-caption", "2", "--concurrency", "3", "--temperature", "0.5")
        assert code == 0 and "24 triplets from 12 captions" in said and "12 sent" in said
        assert sorted(server.asked) == sorted(CAPTIONS) and 1 < server.most <= 3
        again = run(tmp_path, server.url, "--per-caption", "2", "--temperature", "0.5", "--overwrite")
        assert again[2] == rows and len(server.asked) == 12 and "0 sent" in again[1]
        run(tmp_path, server.url, "--per-caption", "2", "--overwrite")  # another question: no temperature
        assert len(server.asked) == 24
    path, key, body = server.bodies[0]
    assert path == "/v1/chat/completions" and key == "Bearer a key" and body["model"] == "m"
    assert body["temperature"] == 0.5 and "temperature" not in server.bodies[-1][2]
    for row in rows:
        assert row["target_caption"] in [edit["target_caption"] for edit in reply(row["reference_caption"], 2)]
        assert CAPTIONS[row["caption"]] == row["reference_caption"] and row["form"] == "llm"
    assert "a key" not in (tmp_path / "t.jsonl.answers").read_text() + (tmp_path / "t.jsonl.report").read_text()


def test_malformed_answers_are_counted_and_not_asked_again(tmp_path):
    bad = {0: "I cannot.", 1: "", 2: "[]", 3: json.dumps({"conditioning_caption": "x"}), 4: "[{"}

    def answer(caption, nth):
        return bad.get(int(re.search(r"number (\d+)", caption)[1]), good(caption, nth))

    with Server(answer) as server:
        code, said, rows = run(tmp_path, server.url)
        assert code == 0 and len(rows) == 7 and len(server.asked) == 12
        assert "2 captions: answer is not JSON" in said and "2 captions: answer holds no usable pair" in said
        assert "1 captions: answer is empty" in said
        run(tmp_path, server.url, "--overwrite")
        assert len(server.asked) == 12


def test_an_endpoint_that_is_busy_is_asked_again(tmp_path):
    with Server(lambda c, n: (429, 503, good(c, n))[min(n, 3) - 1]) as server:
        code, _, rows = run(tmp_path, server.url, "--concurrency", "12")
        assert code == 0 and len(rows) == 12 and len(server.asked) == 36


@pytest.mark.parametrize(("status", "code", "match"), [(401, 2, "refused a request for 'm'"), (404, 2, "told so")])
def test_a_refusal_ends_the_run_at_once(tmp_path, status, code, match):
    with Server(lambda c, n: status) as server:
        got, said, rows = run(tmp_path, server.url, "--concurrency", "1")
        assert got == code and match in said and not rows and len(server.asked) <= 2


def test_an_endpoint_out_of_reach_ends_the_run_and_keeps_the_answers(tmp_path):
    client = Client("http://127.0.0.1:9/v1", "m", {}, attempts=2, pause=0.01)
    with pytest.raises(RunError, match="gave up after 2 attempts"):
        client.ask("hello")
    client.close()
    assert client.sent == 2


def test_the_limit_bounds_requests_and_a_higher_one_goes_on(tmp_path):
    with Server(good) as server:
        code, said, rows = run(tmp_path, server.url, "--limit", "5", "--concurrency", "2")
        assert code == 0 and len(server.asked) == 5 and 1 <= len(rows) <= 5 and "limit     reached" in said
        code, said, all_rows = run(tmp_path, server.url, "--limit", "7", "--overwrite")
        assert code == 0 and len(all_rows) == 12 and all_rows[: len(rows)] == rows
        assert sorted(server.asked) == sorted(CAPTIONS) and "reached" not in said


def test_no_more_is_asked_than_the_count_needs(tmp_path):
    with Server(good, delay=0.02) as server:
        code, _, rows = run(tmp_path, server.url, "--count", "4", "--concurrency", "8")
        assert code == 0 and len(rows) == 4 == len(server.asked)


def test_a_killed_run_goes_on_without_asking_again(tmp_path):
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS))
    kept = tmp_path / "t.jsonl.answers"
    with Server(good, delay=0.1) as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "cir", *command(tmp_path, server.url, "--concurrency", "2")],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (not kept.exists() or kept.read_bytes().count(b"\n") < 4):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        answered = kept.read_bytes().count(b"\n")
        assert process.returncode == -signal.SIGKILL and 4 <= answered < 12 and not (tmp_path / "t.jsonl").exists()
        with open(kept, "ab") as file:
            file.write(b'{"key": "torn')
        time.sleep(0.3)  # questions under way reach the server
        before = len(server.asked)
        code, _, rows = run(tmp_path, server.url)
        assert code == 0 and len(rows) == 12 and len(server.asked) == before + 12 - answered
        _, _, whole = run(tmp_path, server.url, out="whole.jsonl")
        assert rows == whole


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    assert "--endpoint http" in run(tmp_path, "localhost")[1]
    monkeypatch.delenv("OPENAI_API_KEY")
    code, said, _ = run(tmp_path, "http://127.0.0.1:9/v1")
    assert code == 2 and "set OPENAI_API_KEY" in said
    monkeypatch.setitem(sys.modules, "openai", None)
    assert "cir[llm]" in run(tmp_path, "http://127.0.0.1:9/v1")[1]
    (tmp_path / "prompt.txt").write_text("say something")
    assert "does not name {caption}" in run(tmp_path, "http://x", "--prompt", str(tmp_path / "prompt.txt"))[1]


PAIR = {"conditioning_caption": "make it\n red", "target_caption": "a red dog"}


@pytest.mark.parametrize(
    ("answer", "texts"),
    [
        (json.dumps(PAIR), ["make it red"]),
        (json.dumps([PAIR, {**PAIR, "target_caption": "two dogs"}, PAIR]), ["make it red", "make it red"]),
        ("```json\n" + json.dumps([PAIR], indent=1) + "\n```", ["make it red"]),
        ("Sure! " + json.dumps({"edits": [PAIR]}) + " Anything else?", ["make it red"]),
        (json.dumps([{**PAIR, "target_caption": "A DOG"}, PAIR]), ["make it red"]),
        (json.dumps([1, None, "x", {**PAIR, "target_caption": 3}]), llm.NO_PAIR),
        (json.dumps({**PAIR, "target_caption": "x" * 601}), llm.NO_PAIR),
        (json.dumps({**PAIR, "target_caption": "\ud83d"}), llm.NO_PAIR),
        (" \n", llm.EMPTY),
        ("no idea", llm.NOT_JSON),
        ("12", llm.NOT_JSON),
        ("[" * 100_000, llm.NOT_JSON),
    ],
)
def test_answers_are_checked(answer, texts):
    rows, why = llm.parse(answer, "a dog", 2)
    assert ([row.text for row in rows] or why) == texts
    assert all(row.reference == "a dog" != row.target for row in rows)


def test_braces_of_a_prompt_and_a_caption_stay():
    assert llm.render('{"n": {count}} {caption}', "a {count} b", 3) == '{"n": 3} a {count} b'


def test_answers_survive_damage(tmp_path):
    path = tmp_path / "answers"
    one = Answers(path)
    one.add("a", "first", model="m")
    one.add("b", 'sécond\n"')
    one.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b'{"key": 3}\n' + lines[1] + lines[0][:-5])
    two = Answers(path)
    assert (two.get("a"), two.get("b"), two.get("c")) == ("first", 'sécond\n"', None)
    assert len(two) == 2 and two.damaged == 1
    two.add("c", "third")
    two.close()
    three = Answers(path)
    assert three.get("c") == "third" and three.damaged == 1
    three.close()
    assert key_of("m", "q", {}) != key_of("n", "q", {}) != key_of("n", "q", {"temperature": 1})


def test_a_limit_counts_attempts():
    with Server(lambda c, n: 429) as server:
        client = Client(server.url, "m", {}, limit=2)
        with pytest.raises(LimitReached):
            client.ask(CAPTIONS[0])
        client.close()
        assert len(server.asked) == 2
    with pytest.raises(InputError, match="expected --endpoint"):
        Client("ftp://x", "m", {})
