"""The graph of a component: one node per flow, function and trigger, and what leads to what."""

from __future__ import annotations

from typing import Any

import pytest

from processors.component import Component, changed


@pytest.fixture
def component() -> Component:
    component = Component("Shop")

    @component.serve("buy")
    def quote(state: Any, props: Any) -> float:
        return 1.5

    @component.update(["buy", "note"], on=changed("stock", app="store"))
    def remember(state: Any, props: Any) -> dict[str, int]:
        return {}

    return component


def test_the_data_has_each_node_with_its_source_and_its_place(component: Component) -> None:
    graph = component.graph()

    nodes = {node["id"]: node for node in graph["nodes"]}
    assert graph["name"] == "Shop"
    assert list(nodes) == [
        "key/buy", "key/note", "change/remember", "serve/buy",
        "update/buy/remember", "update/note/remember", "update/remember", "state",
    ]  # fmt: skip
    assert "return 1.5" in nodes["serve/buy"]["data"]["udf"]
    assert nodes["change/remember"]["data"]["label"] == "store: stock changed"
    places = [tuple(node["position"].values()) for node in graph["nodes"]]
    assert len(set(places)) == len(places)


def test_the_edges_say_what_leads_to_what(component: Component) -> None:
    edges = {(edge["source"], edge["target"]): edge for edge in component.graph()["edges"]}

    assert list(edges) == [
        ("key/buy", "serve/buy"),
        ("state", "serve/buy"),
        ("serve/buy", "update/buy/remember"),
        ("update/buy/remember", "state"),
        ("key/note", "update/note/remember"),
        ("update/note/remember", "state"),
        ("change/remember", "update/remember"),
        ("update/remember", "state"),
    ]
    assert [pair for pair, edge in edges.items() if not edge["animated"]] == [
        ("key/buy", "serve/buy"),
        ("state", "serve/buy"),
    ]
    assert edges["state", "serve/buy"]["targetHandle"] == "top"


def test_the_columns_stand_as_far_apart_as_asked(component: Component) -> None:
    graph = component.get_graph(x_offset_step=100)

    assert {node["position"]["x"] for node in graph["nodes"]} == {0, 100, 200, 300}


def test_the_mermaid_source_draws_every_node_and_edge(component: Component) -> None:
    lines = component.graph("mermaid").splitlines()

    assert lines[0] == "flowchart LR"
    assert '    n0(["buy"])' in lines
    assert "    n0 --> n3" in lines
    assert len(lines) == 1 + 8 + 8


def test_the_graphviz_source_quotes_what_needs_it() -> None:
    component = Component("Odd")
    component.serve('say "hi"\\')(lambda state, props: None)

    source = component.graph("graphviz")

    assert source.startswith('digraph "Odd" {\n')
    assert r'"key/say \"hi\"\\" -> "serve/say \"hi\"\\"' in source
    assert source.endswith("}\n")


def test_another_format_is_refused(component: Component) -> None:
    with pytest.raises(ValueError, match="mermaid"):
        component.graph("svg")  # type: ignore[arg-type]
