"""What the demo tells the person who runs it: sentences, and commands that can be pasted."""

from __future__ import annotations

import shlex

import pytest

from examples.flights import demo
from examples.flights.updates import summary_of


@pytest.mark.parametrize(
    ("late", "words"),
    [
        (0, "0 late departures (0.0 hours"),
        (1, "1 late departure (0.5"),
        (2, "2 late departures (1.0"),
    ],
)
def test_a_summary_counts_departures_in_english(late: int, words: str) -> None:
    summary = summary_of({"late": late, "late_total_min": 30 * late})

    assert summary["text"].startswith(words)


@pytest.mark.parametrize(
    ("url", "options", "command"),
    [
        (None, (), "make demo"),
        (None, ("--fresh",), "make demo ARGS=--fresh"),
        ("kafka://b:9092", (), "make demo ARGS='--url kafka://b:9092'"),
        ("kafka://b:9092", ("--fresh",), "make demo ARGS='--url kafka://b:9092 --fresh'"),
    ],
)
def test_the_demo_is_started_again_on_the_same_log(
    url: str | None, options: tuple[str, ...], command: str
) -> None:
    assert demo.command_of(url, *options) == command


def test_a_url_that_a_shell_would_take_apart_stays_whole() -> None:
    command = demo.command_of("kafka://b:9092?x=1&y=2", "--fresh")

    arguments = shlex.split(command)[-1].removeprefix("ARGS=")
    assert shlex.split(arguments) == ["--url", "kafka://b:9092?x=1&y=2", "--fresh"]


def test_a_demo_that_is_cut_off_says_how_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut_off(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", cut_off)

    code = demo.main(["--url", "kafka://b:9092"])

    assert code == 130
    assert "`make demo ARGS='--url kafka://b:9092'` goes on" in capsys.readouterr().out
