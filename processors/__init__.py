"""What turns requests into diffs: reactive components, and the runner and daemon that run them.

    from processors import Component

    counter = Component("Counter")

    @counter.init_state
    def begin():
        return {"count": 0}

    @counter.serve("add")
    def add(state, props):
        return state["count"] + props["by"]

    @counter.update("add")
    def keep(state, props):
        return {"count": props.serve_result}

    with counter("mine") as instance:
        instance.run("add", {"by": 2})

docs/motion.md has every name of Motion's and what became of it. What is exported here is the
public API.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

# A name is imported when somebody first asks for it, as in `eventstore`.
if TYPE_CHECKING:
    from eventstore import Diff, EventStore, State
    from processors.component import Changed, changed
    from processors.context import Context
    from processors.failures import (
        discard_failure,
        discard_request,
        open_failures,
        retry_failure,
    )
    from processors.instance import Component, ComponentInstance
    from processors.instances import (
        clear_instance,
        copy_instances,
        get_instances,
        inspect_state,
    )
    from processors.migrate import MigrationResult, StateMigrator
    from processors.policy import DiscardPolicy, Retry
    from processors.properties import Params, Properties
    from processors.relay_change import Change
    from processors.runner import Runner, RunnerStatus
    from processors.submitted import Outcome, Submission, Submitted, UpdateFailed

__all__ = [
    "Change",
    "Changed",
    "Component",
    "ComponentInstance",
    "Context",
    "Diff",
    "DiscardPolicy",
    "EventStore",
    "MigrationResult",
    "Outcome",
    "Params",
    "Properties",
    "Retry",
    "Runner",
    "RunnerStatus",
    "State",
    "StateMigrator",
    "Submission",
    "Submitted",
    "UpdateFailed",
    "changed",
    "clear_instance",
    "copy_instances",
    "discard_failure",
    "discard_request",
    "get_instances",
    "inspect_state",
    "open_failures",
    "retry_failure",
]

#: name -> the module that has it.
_HOMES: Final = {
    **dict.fromkeys(("Diff", "EventStore", "State"), "eventstore"),
    **dict.fromkeys(("Changed", "changed"), "processors.component"),
    # With its way to open an instance.
    **dict.fromkeys(("Component", "ComponentInstance"), "processors.instance"),
    **dict.fromkeys(("DiscardPolicy", "Retry"), "processors.policy"),
    **dict.fromkeys(
        ("discard_failure", "discard_request", "open_failures", "retry_failure"),
        "processors.failures",
    ),
    **dict.fromkeys(("Runner", "RunnerStatus"), "processors.runner"),
    **dict.fromkeys(("Params", "Properties"), "processors.properties"),
    **dict.fromkeys(("Outcome", "Submission", "Submitted", "UpdateFailed"), "processors.submitted"),
    **dict.fromkeys(
        ("clear_instance", "copy_instances", "get_instances", "inspect_state"),
        "processors.instances",
    ),
    **dict.fromkeys(("MigrationResult", "StateMigrator"), "processors.migrate"),
    "Change": "processors.relay_change",
    "Context": "processors.context",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value  # so that it is asked for once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
