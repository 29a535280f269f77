"""The reactive prompt keeps up with purchases, with the plain model and with an endpoint's.

Goal: the program accounts for every purchase, and a real endpoint is asked as it should be. Method:
run the program; then stand in for the endpoint, and look at what it was asked.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from eventstore import EventStore, Kind
from examples import reactive_prompt
from processors import ComponentInstance, Submitted


class Endpoint(HTTPServer):
    """Answers chat completions, and remembers what it was asked: authorization and body."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str | None, dict[str, Any]]] = []
        self.failures_left = 0


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions"
        prompt = body["messages"][0]["content"]
        fails = prompt.startswith("Summarize") and self.server.failures_left > 0
        self.server.failures_left -= fails
        self.server.asked.append((self.headers["Authorization"], body))
        answer = {"choices": [{"message": {"content": f" answer {len(self.server.asked)}\n"}}]}
        self.send_response(503 if fails else 200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1/")
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    monkeypatch.setenv("OPENAI_MODEL", "a-model")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.mark.usefixtures("no_endpoint")
def test_the_prompt_keeps_up_and_every_purchase_is_accounted_for_run_after_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = str(tmp_path / "store")

    shown = []
    for _ in range(2):
        code = reactive_prompt.main(["--url", url, "--purchases", "5"])
        shown.append(capsys.readouterr().out)
        assert code == 0, shown

    in_the_end = [re.findall(r"the prompt knows (.*) purchases", text)[-1] for text in shown]
    assert in_the_end == ["5 of 5", "10 of 10"]
    assert "The reader: likes mystery (6 bought)" in shown[1]
    with EventStore(url) as store:
        events = [entry.event for entry in store.app("Recommender").history("ann")]
    requested = [one for one in events if (one.kind, one.name) == (Kind.REQUEST, "learn_taste")]
    assert len(requested) == 10  # one for each purchase


@pytest.mark.usefixtures("no_endpoint")
def test_a_purchase_that_is_summed_up_before_its_request_has_come_is_accounted_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    learnings, looks = reactive_prompt._learnings, 0

    def late(reader: ComponentInstance, bought: int) -> list[Submitted]:
        nonlocal looks
        looks += 1
        found = learnings(reader, bought)
        return found if looks > 1 else found[:-1]

    monkeypatch.setattr(reactive_prompt, "_learnings", late)

    code = reactive_prompt.main(["--url", str(tmp_path / "store"), "--purchases", "1"])

    assert code == 0, capsys.readouterr().out
    assert looks > 1


def test_a_configured_endpoint_is_asked_once_for_each_summary_that_counts(
    tmp_path: Path, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    url = str(tmp_path / "store")

    code = reactive_prompt.main(["--url", url, "--purchases", "3"])

    assert code == 0, capsys.readouterr().out
    authorizations = {authorization for authorization, _ in endpoint.asked}
    assert authorizations == {"Bearer a-key"}
    assert {body["model"] for _, body in endpoint.asked} == {"a-model"}
    prompts = [body["messages"][0]["content"] for _, body in endpoint.asked]
    summaries = [prompt for prompt in prompts if prompt.startswith("Summarize")]
    assert "Walden" in summaries[-1]
    with EventStore(url) as store:
        history = list(store.app("Recommender").history("ann"))
        assert store.app("Recommender").get("ann", "taste").startswith("answer ")
    assert sum(entry.event.kind == Kind.EFFECT for entry in history) == len(summaries)


def test_an_endpoint_that_fails_is_asked_again(
    tmp_path: Path, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint.failures_left = 1

    code = reactive_prompt.main(["--url", str(tmp_path / "store"), "--purchases", "1"])

    assert code == 0, capsys.readouterr().out
    assert endpoint.failures_left == 0


def test_an_endpoint_that_is_not_there_is_told_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")  # nobody listens there

    code = reactive_prompt.main(["--url", str(tmp_path / "store"), "--purchases", "1"])

    assert code == 1
    assert "http://127.0.0.1:1/v1 cannot be asked" in capsys.readouterr().out


def test_the_help_says_what_it_is_and_how_to_ask_a_real_model(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        reactive_prompt.main(["--help"])

    shown = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "--purchases" in shown
    assert "OPENAI_BASE_URL" in shown
