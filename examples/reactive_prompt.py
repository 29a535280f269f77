"""A book recommender whose prompt keeps itself fresh, while it is being served.

    python -m examples.reactive_prompt [--purchases 12] [--url URL]

A shop appends purchases to the log, and knows nothing of prompts. Each purchase makes a request
for `learn_taste`, which asks a model for a summary of what the reader likes; of a burst, only the
newest is worth asking for. Meanwhile recommendations are served at once, from the summary that
there is.

The model is a plain function that takes its time. To use a real one, set OPENAI_BASE_URL or
OPENAI_API_KEY (any endpoint that speaks that protocol), and OPENAI_MODEL.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any, Final

from eventstore import App, Diff, EventStore, EventStoreError
from processors import (
    Component,
    ComponentInstance,
    Context,
    DiscardPolicy,
    Properties,
    Retry,
    State,
    Submitted,
    changed,
)

__all__ = ["ModelError", "Recommender", "ask_model", "main"]

#: What the plain model takes for an answer: long enough to see that nobody waits for it.
MODEL_DELAY_S: Final = 0.15
#: Longest wait for a real model's answer.
MODEL_TIMEOUT_S: Final = 60.0
#: Between two purchases: the shop is faster than the model.
PURCHASE_INTERVAL_S: Final = 0.04
#: How long the end of the program waits for the last summary.
FRESH_TIMEOUT_S: Final = 120.0

BOOKS: Final = (
    ("The Moonstone", "mystery"),
    ("The Hound of the Baskervilles", "mystery"),
    ("Walden", "nature"),
    ("The Woman in White", "mystery"),
    ("The Time Machine", "science fiction"),
    ("A Study in Scarlet", "mystery"),
    ("The War of the Worlds", "science fiction"),
    ("From the Earth to the Moon", "science fiction"),
    ("Frankenstein", "science fiction"),
    ("The Mysterious Island", "science fiction"),
)


class ModelError(Exception):
    """The model gave no answer; the message says why."""


# --- the component --------------------------------------------------------------------------------

#: Recommendations are made anew each time: what was right before a purchase is not right after it.
Recommender = Component("Recommender", cache_ttl=0)


@Recommender.init_state
def begin() -> dict[str, object]:
    """A reader of whom nothing is known. The field `purchases` is the shop's."""
    return {"taste": "no books bought yet", "known": 0, "occasions": []}


@Recommender.serve("recommend")
def recommend(state: State, props: Properties) -> Any:
    """Answer now, with the prompt as fresh as it is."""
    prompt = f"Recommend one book for {props['occasion']}. The reader: {state['taste']}."
    return {"prompt": prompt, "book": ask_model(prompt)}


@Recommender.update("recommend")
def remember(state: State, props: Properties) -> Diff:
    """Keep what was asked for and answered; this runs after the answer is given."""
    occasion, book = props["occasion"], props.serve_result["book"]
    return Diff().append("occasions", f"{occasion}: {book}")


@Recommender.update(
    # From the beginning: what was bought before the first run of this program counts, too.
    on=changed("purchases", trigger_id="recommender-taste", start="beginning"),
    discard_policy=DiscardPolicy.NUM_NEW_UPDATES,
    discard_after=1,
    retry=Retry(attempts=3, backoff_s=0.5),
)
def learn_taste(state: State, props: Properties, context: Context) -> dict[str, object]:
    """Summarize all purchases. The answer is recorded: after a crash it is not paid for again."""
    books = "; ".join(state["purchases"])
    prompt = f"Summarize in one sentence what the buyer of these books likes: {books}"
    return {
        "taste": context.effect("model", ask_model, prompt),
        "known": len(state["purchases"]),
    }


# --- the model ------------------------------------------------------------------------------------


def ask_model(prompt: str) -> str:
    """Return a model's answer: a real one's where one is configured, else the plain function's."""
    if os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_KEY"):
        return _ask_endpoint(prompt)
    return _ask_plainly(prompt)


def _ask_endpoint(prompt: str) -> str:
    base = os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    body = {
        "model": os.environ.get("OPENAI_MODEL", "gpt-4o-mini"),
        "messages": [{"role": "user", "content": prompt}],
    }
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(
        f"{base.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers
    )
    try:
        with urllib.request.urlopen(request, timeout=MODEL_TIMEOUT_S) as response:
            answer: str = json.load(response)["choices"][0]["message"]["content"]
    except urllib.error.HTTPError as error:
        with error:  # it holds a connection
            text = error.read(500).decode(errors="replace").strip()
        raise ModelError(f"{base} answered {error.code} {error.reason}: {text}") from None
    except (OSError, ValueError, LookupError) as error:
        raise ModelError(f"{base} cannot be asked: {error}") from error
    return answer.strip()


def _ask_plainly(prompt: str) -> str:
    """Summarize by counting kinds of books, and recommend a book of the kind most liked."""
    time.sleep(MODEL_DELAY_S)
    if prompt.startswith("Summarize"):
        kinds = collections.Counter(re.findall(r"\(([^)]+)\)", prompt)).most_common()
        return "likes " + ", ".join(f"{kind} ({count} bought)" for kind, count in kinds)
    liked = re.search(r"likes (.+?) \(", prompt)
    wanted = [title for title, kind in BOOKS if liked is None or kind == liked[1]]
    return f"something like {wanted[-1]}"


# --- the program ----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the story; 0 when every purchase is accounted for, 1 when not."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.reactive_prompt",
        description="A book recommender whose prompt keeps itself fresh while it is being served.",
        epilog="Set OPENAI_BASE_URL or OPENAI_API_KEY, and OPENAI_MODEL, to ask a real model.",
    )
    parser.add_argument("--purchases", type=int, default=12, help="books to buy (default: 12)")
    parser.add_argument("--reader", default="ann", help="whose recommendations (default: ann)")
    parser.add_argument("--url", help="where the log is (default: $EVENTSTORE_URL, ./.eventstore)")
    options = parser.parse_args(arguments)
    if options.purchases < 1:
        parser.error("--purchases: give 1 or more")
    try:
        with EventStore(options.url) as store, Recommender(options.reader, store=store) as reader:
            for book in _shop(store.app("Recommender"), options.reader, options.purchases):
                print(f"  bought       {book}")
                if book.startswith(("The Moonstone", "Walden", "The Time Machine", "Frank")):
                    _recommend(reader)
            _wait_until_fresh(reader)
            _recommend(reader)
            where = "" if options.url is None else f" --url {options.url}"
            return _account(reader, f"eventstore history Recommender {options.reader}{where}")
    except (EventStoreError, ModelError) as error:
        print(f"reactive_prompt: {error}")
        return 1


def _shop(app: App, reader: str, count: int) -> Iterator[str]:
    """Sell books: this is all that a service has to do, in any process, to keep prompts fresh."""
    for title, kind in islice(cycle(BOOKS), count):
        book = f"{title} ({kind})"
        app.append(reader, Diff().append("purchases", book)).result()
        yield book
        time.sleep(PURCHASE_INTERVAL_S)


def _recommend(reader: ComponentInstance) -> None:
    bought, known = len(reader.read_state("purchases", [])), reader.read_state("known")
    answer = reader.run("recommend", props={"occasion": "a long journey"})
    print(f"? recommend    the prompt knows {known} of {bought} purchases")
    print(f"  prompt       {answer['prompt']}")
    print(f"  answer       {answer['book']}")


def _wait_until_fresh(reader: ComponentInstance) -> None:
    """Return when the summary covers all purchases. A program that serves need not wait.

    It may cover purchases whose own requests are still to come: those are waited for, too.
    """
    bought = len(reader.read_state("purchases", []))
    deadline = time.monotonic() + FRESH_TIMEOUT_S
    while not _is_fresh(reader, bought) and time.monotonic() < deadline:
        time.sleep(0.01)
    print(f"  ... and when the shop is quiet, the prompt knows all {bought} purchases:")


def _is_fresh(reader: ComponentInstance, bought: int) -> bool:
    known: int = reader.read_state("known")
    return known == bought == len(_learnings(reader, bought))


def _account(reader: ComponentInstance, command: str) -> int:
    """Tell what became of every purchase's request, and whether that adds up."""
    bought = len(reader.read_state("purchases", []))
    outcomes = [one.wait(FRESH_TIMEOUT_S) for one in _learnings(reader, bought)]
    states = collections.Counter(outcome.state for outcome in outcomes)
    print(
        f"\n{bought} purchases = {states['applied']} summaries + {states['discarded']} passed over,"
        f" because a newer purchase had come; {states['failed']} failed"
    )
    print(f"Every step is kept: {command}")
    is_complete = len(outcomes) == bought and reader.read_state("known") == bought
    return 0 if is_complete and not states["failed"] else 1


def _learnings(reader: ComponentInstance, bought: int) -> list[Submitted]:
    requests = reader.requests(limit=10 * bought)
    return [one for one in requests if one.name == "learn_taste"]


if __name__ == "__main__":
    raise SystemExit(main())
