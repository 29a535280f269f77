"""The broker that tests run on: starts whole, dies and comes back, leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools.broker import broker

PROGRAM = Path(broker.__file__)


def _exec(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name != "CI"}
    variables.pop(broker.ADDRESS_VARIABLE, None)
    return subprocess.run(
        [sys.executable, str(PROGRAM), "exec", "--", *command],
        env=variables | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=broker.START_TIMEOUT_S + 60.0,
    )


def test_without_java_the_command_runs_without_a_broker_and_one_line_says_why() -> None:
    done = _exec("/bin/echo", "done", PATH="/nowhere")

    assert (done.returncode, done.stdout) == (0, "done\n")
    assert done.stderr.startswith("no Kafka broker: java is not on the PATH")
    assert len(done.stderr.splitlines()) == 1


def test_without_java_the_command_does_not_run_in_ci() -> None:
    done = _exec("/bin/echo", "done", PATH="/nowhere", CI="true")

    assert (done.returncode, done.stdout) == (1, "")


def test_a_damaged_jar_is_a_failure_that_names_it(tmp_path: Path) -> None:
    if broker.available() is not None:
        pytest.skip(f"no Kafka broker: {broker.available()}")
    jar = tmp_path / "kafka_2.13-0.jar"
    with zipfile.ZipFile(jar, "w") as archive:
        archive.writestr("Kafka.class", b"0123456789" * 100)
    jar.write_bytes(jar.read_bytes().replace(b"0123456789" * 2, b"0123456780" * 2, 1))
    (tmp_path / "complete.txt").write_text(jar.name)

    done = _exec("/bin/echo", "done", FOLDLOG_BROKER_JARS=str(tmp_path))

    assert (done.returncode, done.stdout) == (1, "")
    assert f"broker jar {jar} is damaged" in done.stderr
    assert len(done.stderr.splitlines()) == 1


#: Sends a broker what no client would, and is told nothing.
_UNREADABLE = """
import os, socket
host, port = os.environ["EVENTSTORE_TEST_KAFKA"].split(":")
with socket.create_connection((host, int(port)), timeout=30) as connection:
    connection.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    assert connection.recv(1) == b""
"""


@pytest.mark.timeout(400)
def test_what_a_broker_warned_of_is_shown_when_the_command_beside_it_fails() -> None:
    if broker.available() is not None:
        pytest.skip(f"no Kafka broker: {broker.available()}")

    failed = _exec(sys.executable, "-c", f"{_UNREADABLE}\nraise SystemExit(3)")
    done = _exec(sys.executable, "-c", _UNREADABLE)

    assert failed.returncode == 3
    assert "node 1: " in failed.stderr
    assert "InvalidReceiveException" in failed.stderr
    assert (done.returncode, done.stderr) == (0, "")
