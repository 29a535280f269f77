"""Writing: append, fork, reset."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from eventstore.cli.arguments import diff_of, parse_at, parse_json, parse_path
from eventstore.cli.output import present, write_json
from eventstore.cli.reading import at_option
from eventstore.cli.session import Session, app_argument, pass_session, shared_options

if TYPE_CHECKING:
    from eventstore.events import Entry
    from eventstore.receipts import Receipt
    from eventstore.state import State

__all__ = ["COMMANDS", "EVENT_OPTIONS", "check_event_options"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: Operations as options: how many arguments come after the path, and what they are.
_OPERATIONS: Final[dict[str, tuple[int, str, str]]] = {
    "set": (1, "PATH=JSON", "Put a value, whatever was there."),
    "delete": (0, "PATH", "Take a field or key away."),
    "append": (1, "PATH=JSON", "Add an item to a list."),
    "extend": (1, "PATH=JSON", "Add the items of a JSON list to a list."),
    "insert": (2, "PATH=INDEX,JSON", "Put an item before an index of a list."),
    "remove": (1, "PATH=INDEX", "Take the item at an index out of a list."),
    "increment": (1, "PATH[=NUMBER]", "Add to a number; default 1."),
    "merge_into": (1, "PATH=JSON", "Set keys of an object."),
    "append_text": (1, "PATH=JSON", "Add text at the end of a text."),
}

#: What a line of `import` may say beside its operations: options of App.append.
EVENT_OPTIONS: Final = (
    "name", "idempotency_key", "expected_version", "occurred_at", "actor", "meta",
)  # fmt: skip


class _Ordered(click.Command):
    """A command that knows in which order its operations stood on the command line."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        parser = self.make_parser(ctx)
        _, _, order = parser.parse_args(args=list(args))
        ctx.meta["order"] = [str(parameter.name) for parameter in order]
        return super().parse_args(ctx, args)


def _operation_options(function: _Function) -> _Function:
    for code in reversed(_OPERATIONS):
        _, metavar, text = _OPERATIONS[code]
        flag = f"--{code.replace('_', '-')}"
        option = click.option(flag, f"op_{code}", multiple=True, metavar=metavar, help=text)
        function = option(function)
    return function


@click.command(
    cls=_Ordered,
    epilog="""\b
Examples:
  eventstore append orders o-1 'status="new"' 'items=[]'
  eventstore append orders o-1 --append 'items="book"' --increment total=12
""",
)
@app_argument
@click.argument("instance")
@click.argument("fields", nargs=-1, metavar="[FIELD=JSON]...")
@_operation_options
@click.option("--ops", metavar="JSON", help='Operations in wire form: [["append","items",1]].')
@click.option("--name", default="", help="What happened, in your words.")
@click.option("--key", "idempotency_key", help="Takes effect once, however often it is sent.")
@click.option("--expected-version", type=click.IntRange(min=0), help="Only on this version.")
@click.option("--occurred-at", metavar="TIME", help="When it happened, in ISO form with its zone.")
@click.option("--actor", help="Who did it.")
@click.option("--meta", metavar="JSON", help="A JSON object with anything else about it.")
@click.option(
    "--no-verdict",
    is_flag=True,
    help="Do not wait for the fold, only for the log: quicker on an app with no warm view.",
)
@shared_options
@click.pass_context
def append(
    context: click.Context,
    /,
    app: str,
    instance: str,
    fields: tuple[str, ...],
    ops: str | None,
    no_verdict: bool,
    **options: Any,
) -> None:
    """Append one event to an instance.

    Its operations take effect together or not at all.

    PATH is a field, field.key.3 (numbers are indexes), or ["field","key",3]; a value is JSON, so
    text has quotes. Operations apply in the order in which they are written. The answer has the
    position of the event: `get --after POSITION` in any process sees it.
    """
    session = context.ensure_object(Session)
    operations = [*_set_fields(fields), *_in_order(context.meta["order"], options)]
    if ops is not None:
        more = parse_json(ops, "--ops")
        if not isinstance(more, list):
            raise click.UsageError("--ops is a JSON list of operations")
        operations += more
    if not operations:
        raise click.UsageError("nothing to append: give FIELD=JSON, an operation, or --ops")
    if options["meta"] is not None:
        options["meta"] = parse_json(options["meta"], "--meta")
    options = check_event_options(options)
    with session.app(app) as opened:
        receipt = opened.append(instance, diff_of(operations), **options)
        _write_outcome(session, app, receipt, verdict=not no_verdict)


def check_event_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return options of App.append from JSON: the time parsed, absent ones left out.

    Raises:
        click.UsageError: an option of another type.
    """
    import datetime

    from eventstore.events import EPOCH
    from eventstore.history.at import epoch_us

    options = {name: value for name, value in options.items() if value is not None}
    for name in ("name", "idempotency_key", "occurred_at", "actor"):
        if not isinstance(options.get(name, ""), str):
            raise click.UsageError(f"{name} is text, not {options[name]!r}")
    version = options.get("expected_version", 0)
    if isinstance(version, bool) or not isinstance(version, int) or version < 0:
        raise click.UsageError(f"expected_version is a number of 0 or more, not {version!r}")
    if not isinstance(options.get("meta", {}), dict):
        raise click.UsageError(f"meta is a JSON object, not {options['meta']!r}")
    if "occurred_at" in options:
        time_us = epoch_us(options["occurred_at"])
        options["occurred_at"] = EPOCH + datetime.timedelta(microseconds=time_us)
    return options


def _set_fields(fields: Sequence[str]) -> list[list[Any]]:
    return [_operation("set", field) for field in fields]


def _in_order(order: Sequence[str], options: dict[str, Any]) -> list[list[Any]]:
    """Take the operations out of the options and return them as they stood."""
    texts = {code: list(options.pop(f"op_{code}")) for code in _OPERATIONS}
    operations = []
    for name in order:
        code = name.removeprefix("op_")
        if name.startswith("op_") and texts[code]:
            operations.append(_operation(code, texts[code].pop(0)))
    return operations


def _operation(code: str, text: str) -> list[Any]:
    """Return an operation in wire form from PATH=VALUE."""
    count, form, _ = _OPERATIONS[code]
    path, separator, value = _split(text)
    steps = parse_path(path)
    target = steps[0] if len(steps) == 1 else list(steps)
    if not separator and code == "increment":
        return [code, target, 1]
    if bool(separator) != bool(count):
        raise click.UsageError(f"{text!r}: write {form}")
    if count == 0:
        return [code, target]
    if count == 2:
        index, _, value = value.partition(",")
        return [code, target, parse_json(index, text), parse_json(value, text)]
    return [code, target, parse_json(value, text)]


def _split(text: str) -> tuple[str, str, str]:
    """Part a path from its value; a path in JSON may have "=" in a name."""
    if not text.startswith("["):
        return text.partition("=")
    end = text.find("]=")
    return (text, "", "") if end < 0 else (text[: end + 1], "=", text[end + 2 :])


def _write_outcome(session: Session, app: str, receipt: Receipt, *, verdict: bool) -> None:
    position = receipt.result()
    entry = receipt.entry() if verdict else None
    if session.tables:
        _write_sentence(app, str(position), entry)
    else:
        shown = {"app": app, "instance": receipt.instance, "position": str(position)}
        write_json(shown | ({} if entry is None else _verdict(entry)))
    if entry is not None:
        _raise_refused(app, entry, receipt)


def _verdict(entry: Entry) -> dict[str, Any]:
    return present(
        {
            "verdict": str(entry.verdict),
            "sequence": entry.sequence,
            "version": entry.version,
            "reason": entry.reason,
            "field": entry.field,
            "winner": entry.winner,
        }
    )


def _write_sentence(app: str, position: str, entry: Entry | None) -> None:
    if entry is None:
        click.echo(f"in the log of {app} at {position}")
    elif str(entry.verdict) == "duplicate":
        click.echo(f"a duplicate of event {entry.winner}, which counts; written at {position}")
    elif str(entry.verdict) == "accepted":
        click.echo(f"{app}/{entry.instance} is at version {entry.version}; position {position}")


def _raise_refused(app: str, entry: Entry, receipt: Receipt) -> None:
    from eventstore.errors import Conflict, Rejected
    from eventstore.events import Verdict

    if entry.verdict == Verdict.CONFLICT:
        raise Conflict(
            app, entry.instance, reason=entry.reason, field=entry.field,
            version=entry.version, winner=entry.winner,
        )  # fmt: skip
    # Of a duplicate, what became of the original.
    if receipt.verdict() != Verdict.ACCEPTED:
        raise Rejected(app, entry.instance, entry.reason or "the first event with this key was")


@click.command()
@app_argument
@click.argument("instance")
@click.argument("to")
@at_option
@click.option("--actor", help="Who did it.")
@shared_options
@pass_session
def fork(
    session: Session, app: str, instance: str, to: str, at: str | None, actor: str | None
) -> None:
    """Begin an instance with another's state.

    TO begins with the state of INSTANCE, now or in the past, and remembers where it came from.
    """
    with session.app(app) as opened:
        state = opened.fork(instance, to=to, at=parse_at(at), actor=actor)
        _write_new_state(session, state)


@click.command()
@app_argument
@click.argument("instance")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--actor", help="Who did it.")
@shared_options
@pass_session
def reset(session: Session, app: str, instance: str, yes: bool, actor: str | None) -> None:
    """Clear an instance, as one new version.

    Fields and pending requests are gone from then on.

    Its history stays, and every earlier version can still be read.
    """
    with session.app(app) as opened:
        state = opened.get(instance)  # not found, before anybody is asked
        if not yes:
            _confirm(f"reset {app}/{instance}, which is at version {state.version}?")
        _write_new_state(session, opened.reset(instance, actor=actor))


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("nobody can be asked here: say --yes")
    if not click.confirm(question, err=True):
        raise click.exceptions.Exit(1)


def _write_new_state(session: Session, state: State) -> None:
    if session.tables:
        click.echo(f"{state.app}/{state.instance} is at version {state.version}")
    else:
        write_json(
            {
                "app": state.app,
                "instance": state.instance,
                "version": state.version,
                "position": str(state.position),
            }
        )


COMMANDS: Final = (append, fork, reset)
