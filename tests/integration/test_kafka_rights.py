"""A cluster that refuses: what is only for people to see is left out, and everything else goes on.

Method: a broker that asks who may do what. Everybody may do everything until it is denied.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator

import pytest
from click.testing import CliRunner
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from eventstore import EventStore
from eventstore.config import Config
from eventstore.log import kafka_owner
from eventstore.log.kafka import KafkaLog
from processors.cli import processors
from tests.contract.logs import DEADLINE_S, eventually
from tests.integration.kafka import made
from tests.integration.kafka_group import Group
from tools.broker.broker import Cluster

WAIT_S = 60.0

#: Of the broker, for `Cluster`.
SETTINGS = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}


class GuardedBroker:
    """A cluster with `SETTINGS`, and its administrator."""

    def __init__(self, cluster: Cluster) -> None:
        self.url = cluster.url
        self._admin = AdminClient({"bootstrap.servers": cluster.address})

    @contextlib.contextmanager
    def denied(self, kind: str, name: str, *operations: str) -> Iterator[None]:
        """Deny everybody some operations on a topic or a group, until the end of the block."""
        # Where there is a rule, what no rule allows is denied.
        rules = [_rule(kind, name, "all", AclPermissionType.ALLOW)]
        rules += [_rule(kind, name, operation, AclPermissionType.DENY) for operation in operations]
        filters = [
            AclBindingFilter(
                rule.restype, rule.name, rule.resource_pattern_type, rule.principal, rule.host,
                rule.operation, rule.permission_type,
            )
            for rule in rules
        ]  # fmt: skip
        for future in self._admin.create_acls(rules).values():
            future.result(DEADLINE_S)
        # The controller answers before the broker has heard.
        assert eventually(lambda: all(map(self._is_in_force, filters)))
        yield
        for removal in self._admin.delete_acls(filters).values():
            removal.result(DEADLINE_S)

    def _is_in_force(self, rule: AclBindingFilter) -> bool:
        return bool(self._admin.describe_acls(rule).result(DEADLINE_S))


def _rule(kind: str, name: str, operation: str, permission: AclPermissionType) -> AclBinding:
    return AclBinding(
        ResourceType[kind.upper()], name, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*",
        AclOperation[operation.upper()], permission,
    )  # fmt: skip


@pytest.fixture(scope="module")
def guarded_broker(kafka_brokers: type[Cluster]) -> Iterator[GuardedBroker]:
    with kafka_brokers(1, settings=SETTINGS) as cluster:
        yield GuardedBroker(cluster)


def test_status_says_that_it_may_not_know_the_owners_and_shows_the_rest(
    guarded_broker: GuardedBroker, namespace: str
) -> None:
    with EventStore(guarded_broker.url, namespace=namespace) as store:
        store.app("cart").request("u-1", "add/keep").result(WAIT_S)
    places = ("--url", guarded_broker.url, "--namespace", namespace)

    with guarded_broker.denied("group", f"{namespace}.cart.cart", "describe"):
        found = CliRunner().invoke(processors, ("status", *places))
        table = CliRunner().invoke(processors, ("status", "--table", *places))

    assert (found.exit_code, table.exit_code) == (0, 0), found.output
    status = json.loads(found.stdout)
    assert (status["pending"], status["running"], status["rates"]) == (1, None, None)
    assert (status["owners"], status["unowned"], status["faults"]) == ([], None, [])
    assert "Group authorization failed" in status["owners_not_known"]
    assert "cart: who holds shards on other hosts is not known" in table.stdout
    assert "0 of 8 here" in table.stdout


def test_a_commit_that_is_refused_is_not_worth_a_word_and_is_made_good(
    guarded_broker: GuardedBroker, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[None] = []

    def progress() -> dict[int, int]:
        asked.append(None)
        return {0: 3, 1: 5}

    config = Config.load({}, namespace=namespace, partitions=2)
    with (
        contextlib.closing(KafkaLog(guarded_broker.url, config)) as log,
        contextlib.closing(Group(guarded_broker.url, namespace)) as group,
        caplog.at_level(logging.INFO),
    ):
        topic = made(log, f"{namespace}.cart")
        with guarded_broker.denied("topic", topic.name, "read"):
            ownership = log.own(topic, "cart", lambda shards: None, progress)
            assert eventually(lambda: len(ownership.shards) == 2, WAIT_S)
            before = len(asked)
            assert eventually(lambda: len(asked) >= before + 3, WAIT_S), "it goes on"
            refused = group.read()

        assert eventually(lambda: group.read() == {0: 3, 1: 5}, WAIT_S)

    assert refused == {}
    said = [record.getMessage() for record in caplog.records if "eventstore" in record.name]
    assert not [text for text in said if "commit" in text.lower()]
    # That a busy broker takes long to answer may be said, but by who asks it.
    assert not [record for record in caplog.records if record.name == kafka_owner.__name__]
