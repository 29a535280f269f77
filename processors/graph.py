"""The graph of a component: its flows, serves, updates and state, as data or to be drawn.

As data it is what Motion's `get_graph` returned, for programs that show it: nodes with a type, a
label, the source of their function and a place, and the edges between them. As Mermaid or Graphviz
source it is for documentation and terminals.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from processors.component import Component

__all__ = ["GraphFormat", "graph_data", "graph_of"]

GraphFormat = Literal["data", "mermaid", "graphviz"]

#: Between two rows of nodes, in the unit of the viewer.
_ROW_OFFSET = 150


class _Node(NamedTuple):
    id: str
    kind: Literal["state", "key", "serve", "update", "change"]
    label: str
    function: Callable[..., Any] | None = None


class _Edge(NamedTuple):
    source: str
    target: str
    #: Whether it stands for something that happens later, and not in the call.
    is_later: bool = False


def graph_of(component: Component, form: GraphFormat) -> dict[str, Any] | str:
    """Return the graph as data, or as Mermaid or Graphviz source.

    Raises:
        ValueError: there is no such form.
    """
    if form == "data":
        return graph_data(component)
    if form == "mermaid":
        return "\n".join(_mermaid(component)) + "\n"
    if form == "graphviz":
        return "\n".join(_graphviz(component)) + "\n"
    raise ValueError(f'graph: format={form!r}; give "data", "mermaid" or "graphviz"')


def graph_data(component: Component, x_offset_step: int = 600) -> dict[str, Any]:
    """Return name, nodes and edges; each column of nodes stands `x_offset_step` from the last."""
    columns = {"key": 0, "change": 0, "serve": 1, "update": 2, "state": 3}
    rows = dict.fromkeys(range(4), 0)
    nodes = []
    for node in _nodes(component):
        column = columns[node.kind]
        place = {"x": column * x_offset_step, "y": rows[column] * _ROW_OFFSET}
        rows[column] += 1
        data = {"label": node.label, "udf": _source(node.function)}
        nodes.append({"id": node.id, "type": node.kind, "position": place, "data": data})
    edges = [
        {
            "id": f"{edge.source}->{edge.target}",
            "source": edge.source,
            "target": edge.target,
            "animated": edge.is_later,
            **({"targetHandle": "top"} if edge.source == "state" else {}),
        }
        for edge in _edges(component)
    ]
    return {"name": component.name, "nodes": nodes, "edges": edges}


def _nodes(component: Component) -> Iterator[_Node]:
    for key in component.keys:
        yield _Node(f"key/{key}", "key", key)
    for update in component.triggers:
        assert update.trigger is not None
        where = f"{update.trigger.app}: " if update.trigger.app else ""
        fields = ", ".join(update.trigger.fields)
        yield _Node(f"change/{update.name}", "change", f"{where}{fields} changed")
    for serve in component.serves.values():
        name = _name(serve.function)
        yield _Node(f"serve/{serve.key}", "serve", name, serve.function)
    for update in component.updates.values():
        yield _Node(f"update/{update.name}", "update", update.function_name, update.function)
    yield _Node("state", "state", "state")


def _edges(component: Component) -> Iterator[_Edge]:
    for key in component.serves:
        yield _Edge(f"key/{key}", f"serve/{key}")
        yield _Edge("state", f"serve/{key}")
    for update in component.updates.values():
        if update.trigger is not None:
            begin = f"change/{update.name}"
        else:
            begin = f"{'serve' if update.key in component.serves else 'key'}/{update.key}"
        yield _Edge(begin, f"update/{update.name}", True)
        yield _Edge(f"update/{update.name}", "state", True)


def _mermaid(component: Component) -> Iterator[str]:
    shapes = {
        "key": ('(["', '"])'),
        "change": ('[/"', '"/]'),
        "serve": ('["', '"]'),
        "update": ('[["', '"]]'),
        "state": ('[("', '")]'),
    }
    numbers = {node.id: f"n{number}" for number, node in enumerate(_nodes(component))}
    yield "flowchart LR"
    for node in _nodes(component):
        left, right = shapes[node.kind]
        label = node.label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
        yield f"    {numbers[node.id]}{left}{label}{right}"
    for edge in _edges(component):
        arrow = "-.->" if edge.is_later else "-->"
        yield f"    {numbers[edge.source]} {arrow} {numbers[edge.target]}"


def _graphviz(component: Component) -> Iterator[str]:
    shapes = {
        "key": "oval",
        "change": "parallelogram",
        "serve": "box",
        "update": "box3d",
        "state": "cylinder",
    }
    yield f"digraph {_quoted(component.name)} {{"
    yield "    rankdir=LR;"
    for node in _nodes(component):
        attributes = f"label={_quoted(node.label)}, shape={shapes[node.kind]}"
        yield f"    {_quoted(node.id)} [{attributes}];"
    for edge in _edges(component):
        style = " [style=dashed]" if edge.is_later else ""
        yield f"    {_quoted(edge.source)} -> {_quoted(edge.target)}{style};"
    yield "}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _source(function: Callable[..., Any] | None) -> str:
    """Return a function's source, empty where Python cannot find it."""
    if function is None:
        return ""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return ""
