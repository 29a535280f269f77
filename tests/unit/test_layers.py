"""Imports go down: the layers of docs/design.md, section 6, shown from the source.

Goal: a room can be read knowing only the rooms below it. Method: every import statement of both
packages is an arrow (those for types and those inside functions too), and every file has a layer.
Only the search for circles leaves out what is imported for its types.
`python -m tests.unit.test_layers` prints the listing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]

#: Where log and view meet: what joins them for an app, and keeps the view up with the log.
STORE = (
    "eventstore.channel",
    "eventstore.follow",
    "eventstore.processing",
)
#: What else may know both: it compares them.
COMPARES = ("eventstore.history.verify",)

#: From the top down; a new file or folder gets its place here. Rooms of one layer may import one
#: another, as long as no circle comes of it.
LAYERS = (
    ("processors.__main__", "processors.cli"),
    ("processors",),
    (
        "processors.daemon",
        "processors.health",
        "processors.metrics",
        "processors.reloading",
        "processors.status",
    ),
    ("processors.failures", "processors.instance", "processors.instances", "processors.migrate"),
    (
        "processors.call",
        "processors.flow",
        "processors.runner",
        "processors.submitted",
        "processors.updates",
    ),
    (
        "processors.notices",
        "processors.relay",
        "processors.relay_change",
        "processors.relay_courier",
        "processors.relay_deliveries",
        "processors.relay_feed",
        "processors.relay_record",
        "processors.relays",
    ),
    ("processors.beginning", "processors.context", "processors.serve_cache", "processors.stores"),
    ("processors.results",),
    ("processors.component", "processors.graph"),
    (
        "processors.clock",
        "processors.logs",
        "processors.policy",
        "processors.properties",
        "processors.source",
        "processors.text",
    ),
    ("eventstore.__main__", "eventstore.cli", "eventstore.inspector"),
    ("eventstore",),
    (
        *STORE,
        "eventstore.aio",
        "eventstore.app",
        "eventstore.drafts",
        "eventstore.history",
        "eventstore.receipts",
        "eventstore.store",
        "eventstore.typed",
    ),
    ("eventstore.log", "eventstore.view"),
    ("eventstore.fold", "eventstore.codec", "eventstore.envelope"),
    ("eventstore.rows",),
    ("eventstore.state", "eventstore.diff", "eventstore.values"),
    ("eventstore.events",),
    (
        "eventstore.config",
        "eventstore.errors",
        "eventstore.interrupts",
        "eventstore.lifetime",
        "eventstore.locks",
        "eventstore.testing",
    ),
)

#: What a room may name of one above it, for types alone: a component opens instances, and a notice
#: is about a runner.
FOR_TYPES = {
    ("processors.component", "processors.instance"),
    ("processors.notices", "processors.runner"),
}

#: What processors may import beside the names that `eventstore` exports.
FOR_PROCESSORS = (
    "eventstore.cli.entries",
    "eventstore.cli.exits",
    "eventstore.cli.output",
    "eventstore.cli.session",
    "eventstore.events",
    "eventstore.interrupts",
    "eventstore.lifetime",
    "eventstore.locks",
    "eventstore.processing",
    "eventstore.testing",
    "eventstore.values",
)

#: Clients whose errors and types stay in one room each, which translates them: the file named
#: here and those beside it whose names begin with its name (`kafka.py`, `kafka_writer.py`).
ALONE = {
    "confluent_kafka": ("eventstore.log.kafka",),
    "rocksdict": ("eventstore.view.rocks",),
    "apsw": ("eventstore.log.sqlite", "processors.serve_cache"),
    "prometheus_client": ("processors.metrics",),
}


class Arrow(NamedTuple):
    """One import: who has it, what it names, and in which line."""

    source: str
    target: str
    line: int
    lazy: bool  #: inside a function
    types_only: bool  #: under `if TYPE_CHECKING`, so that nothing is imported when it runs


def modules(root: Path) -> dict[str, Path]:
    """Return every module of both packages by its dotted name."""
    found = {}
    for package in ("eventstore", "processors"):
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def arrows(root: Path) -> list[Arrow]:
    """Return every import of both packages, with modules named as far as they are ours."""
    known = modules(root)
    found = []
    for name, path in known.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node, lazy, types_only in _walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                targets = _targets(node, package, known)
            else:
                continue
            found += [Arrow(name, target, node.lineno, lazy, types_only) for target in targets]
    return found


def _targets(node: ast.ImportFrom, package: str, known: dict[str, Path]) -> list[str]:
    base = node.module or ""
    if node.level:
        parts = package.split(".")
        above = ".".join(parts[: len(parts) - node.level + 1])
        base = f"{above}.{base}".rstrip(".")
    names = [f"{base}.{alias.name}" for alias in node.names]
    rooms = {room for rooms in LAYERS for room in rooms}
    return [name if name in known or name in rooms else base for name in names]


def _walk(
    node: ast.AST, lazy: bool = False, types_only: bool = False
) -> Iterator[tuple[ast.AST, bool, bool]]:
    yield node, lazy, types_only
    lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    types_only = types_only or (
        isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    )
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, lazy, types_only)


def layer(module: str) -> int | None:
    """Return the height of a module's layer, 0 at the bottom; None for what is not ours.

    Raises:
        LookupError: the module is ours and has no layer yet.
    """
    if module.partition(".")[0] not in ("eventstore", "processors"):
        return None
    room = module
    while room:
        for height, rooms in enumerate(reversed(LAYERS)):
            if room in rooms and (room not in ("eventstore", "processors") or module == room):
                return height
        room = room.rpartition(".")[0]
    raise LookupError(f"{module} has no layer: give it one in LAYERS")


def climbing(found: list[Arrow]) -> list[str]:
    """Return the arrows that break a layer, each with the place where it stands."""
    faults = []
    for arrow in found:
        height, target = layer(arrow.source), layer(arrow.target)
        place = f"{arrow.source}:{arrow.line} imports {arrow.target}"
        for_types = arrow.types_only and (arrow.source, arrow.target) in FOR_TYPES
        if target is not None and height is not None and target > height and not for_types:
            faults.append(f"{place}, which is above it")
        owners = ALONE.get(arrow.target.partition(".")[0])
        if owners is not None and not arrow.source.startswith(owners):
            faults.append(f"{place}, which is for {' and '.join(owners)} alone")
    return faults


def _in(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.fixture(scope="module")
def found() -> list[Arrow]:
    return arrows(ROOT)


def test_no_import_climbs_and_each_client_has_one_file(found: list[Arrow]) -> None:
    assert climbing(found) == []


def test_the_modules_form_no_circle(found: list[Arrow]) -> None:
    known = modules(ROOT)
    graph = TopologicalSorter[str]({name: set() for name in known})
    for arrow in found:
        if arrow.target in known and arrow.target != arrow.source and not arrow.types_only:
            graph.add(arrow.source, arrow.target)

    try:
        graph.prepare()
    except CycleError as circle:
        pytest.fail(" imports ".join(reversed(circle.args[1])))


def test_log_and_view_meet_only_in_the_store(found: list[Arrow]) -> None:
    both = {
        arrow.source
        for arrow in found
        if _in(arrow.target, "eventstore.log")
        and any(
            other.source == arrow.source and _in(other.target, "eventstore.view") for other in found
        )
    }
    across = [
        arrow
        for arrow in found
        if (_in(arrow.source, "eventstore.log") and _in(arrow.target, "eventstore.view"))
        or (_in(arrow.source, "eventstore.view") and _in(arrow.target, "eventstore.log"))
    ]

    assert across == []
    assert {name for name in both if not _in(name, "eventstore.cli")} <= {*STORE, *COMPARES}


def test_processors_use_only_what_the_event_store_exports(found: list[Arrow]) -> None:
    inner = [
        arrow
        for arrow in found
        if arrow.source.startswith("processors")
        and arrow.target.startswith("eventstore.")
        and arrow.target not in FOR_PROCESSORS
    ]

    assert inner == []


def test_rich_is_imported_lazily(found: list[Arrow]) -> None:
    imports = [arrow for arrow in found if _in(arrow.target, "rich")]

    assert all(arrow.lazy for arrow in imports), imports


@pytest.mark.parametrize(
    ("file", "line", "fault"),
    [
        ("fold.py", "from eventstore.store import EventStore", "which is above it"),
        ("fold.py", "from . import store", "which is above it"),
        ("log/memory.py", "def f():\n    from ..cli import main", "which is above it"),
        ("store.py", "import rocksdict", "for eventstore.view.rocks alone"),
    ],
)
def test_an_arrow_that_climbs_is_found(tmp_path: Path, file: str, line: str, fault: str) -> None:
    package = tmp_path / "eventstore"
    for folder in ("log", "cli"):
        (package / folder).mkdir(parents=True)
        (package / folder / "__init__.py").touch()
    for name in ("__init__.py", "store.py", "fold.py", file):
        (package / name).touch()
    (package / file).write_text(line + "\n")

    faults = climbing(arrows(tmp_path))

    assert len(faults) == 1
    assert fault in faults[0]


def test_a_module_without_a_layer_is_named() -> None:
    with pytest.raises(LookupError, match=r"eventstore\.surprise has no layer"):
        layer("eventstore.surprise")


def _print_listing() -> None:
    below: dict[str, set[str]] = {name: set() for name in modules(ROOT)}
    for arrow in arrows(ROOT):
        if layer(arrow.target) is not None:
            below[arrow.source].add(arrow.target.removeprefix("eventstore."))
    for height in reversed(range(len(LAYERS))):
        print(f"{height}  {', '.join(LAYERS[-1 - height])}")
        for name, targets in below.items():
            if layer(name) == height:
                print(f"     {name} -> {', '.join(sorted(targets)) or '-'}")


if __name__ == "__main__":
    _print_listing()
