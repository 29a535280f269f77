"""`processors run`: from a command line to a daemon."""

from __future__ import annotations

import logging
import os
import sys
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import click

from eventstore.cli.session import Session, pass_session, shared_options

if TYPE_CHECKING:
    from processors.logs import LogFormat

__all__ = ["COMMANDS"]


@click.command(
    epilog="""\b
Examples:
  processors run shop.components:cart
  processors run app:prices app:alerts --url kafka://localhost:9092 --health-port 8080
  processors run app:prices --once

\b
Exit codes: 0 stopped in good order, 1 an error (with --once: an update has failed), 2 wrong
usage, 5 updates still ran when the time to stop was over, 130 a second signal.
"""
)
@click.argument("components", nargs=-1, required=True, metavar="MODULE:COMPONENT...")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1_000),
    default=16,
    show_default=True,
    help="Sync updates of a component that run at the same time.",
)
@click.option(
    "--async-max",
    type=click.IntRange(1, 100_000),
    default=1_000,
    show_default=True,
    help="Async updates of a component that run at the same time.",
)
@click.option(
    "--worker",
    type=click.Choice(["thread", "process"]),
    default="thread",
    show_default=True,
    help="Where sync updates run that do not say it themselves.",
)
@click.option("--once", is_flag=True, help="Run what is pending, then end.")
@click.option("--reload", is_flag=True, help="Start anew when a source file changes.")
@click.option("--no-triggers", is_flag=True, help="Run requests, but turn no changes into them.")
@click.option(
    "--stop-timeout",
    "stop_timeout_s",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long running updates may take to end when the daemon is told to stop.",
)
@click.option(
    "--health-port",
    type=click.IntRange(0, 65_535),
    help="Serve /healthz and /metrics there; 0 takes a free port.",
)
@click.option(
    "--health-host",
    default="127.0.0.1",
    show_default=True,
    help="The address for the health port; 0.0.0.0 for probes from elsewhere.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How log lines look; they go to stderr.",
)
@shared_options
@pass_session
def run(session: Session, /, components: tuple[str, ...], reload: bool, **options: Any) -> None:
    """Run a daemon: the updates of these components, until SIGTERM or Ctrl-C.

    Modules are imported from the current folder and from what is installed. Several daemons may
    run the same components: they share the instances, and take over from one that ends.

    On the first signal it takes nothing new, lets what runs end, and hands over; on the second it
    ends at once. Either way what has not run stays pending.
    """
    from processors.logs import written_logs
    from processors.reloading import is_reloaded, run_reloaded

    if reload and options["once"]:
        raise click.UsageError("--once ends by itself, and --reload goes on: give one of them")
    with written_logs(cast("LogFormat", options.pop("log_format"))):
        if reload and not is_reloaded():
            code = run_reloaded(sys.argv[1:], options["stop_timeout_s"])
        else:
            code = _run_daemon(session, components, **options)
    raise click.exceptions.Exit(code)


def _run_daemon(
    session: Session,
    names: tuple[str, ...],
    *,
    concurrency: int,
    async_max: int,
    worker: str,
    once: bool,
    no_triggers: bool,
    stop_timeout_s: float,
    health_port: int | None,
    health_host: str,
) -> int:
    from processors.cli.loading import load_components, source_files
    from processors.reloading import is_reloaded, tell_files

    try:
        components = load_components(names)
    finally:
        if is_reloaded():
            tell_files(source_files(names))
    from eventstore import EventStoreError
    from processors.daemon import EXIT_FAILED, Daemon, stopped_by_signals
    from processors.health import HealthPort
    from processors.logs import say
    from processors.reloading import stop_with_parent

    with session.store() as store, ExitStack() as stack:
        daemon = Daemon(
            store,
            components,
            once=once,
            stop_timeout_s=stop_timeout_s,
            concurrency=concurrency,
            async_max=async_max,
            worker=cast(Literal["thread", "process"], worker),
            triggers=not no_triggers,
        )
        if threading.current_thread() is threading.main_thread():
            stack.enter_context(stopped_by_signals(daemon))
        if is_reloaded():
            stop_with_parent(daemon.stop)
        if health_port is not None:
            port = HealthPort(health_host, health_port, daemon.faults, daemon.notices)
            stack.enter_context(port)
            say("health", address=port.address)
        try:
            code = daemon.run()
        except EventStoreError as error:
            # In the log's form: whoever reads it by program reads why it ended, too.
            say("cannot run", logging.ERROR, why=str(error))
            code = EXIT_FAILED
        if daemon.is_cut_off:
            # Updates may run on in threads that the interpreter would wait for.
            sys.stderr.flush()
            os._exit(code)
    return code


COMMANDS: Final = (run,)
