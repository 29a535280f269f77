"""Settings: what can be tuned, in which unit, with which default. Nothing is read after start.

Sources of `Config.load`, the first that names a setting wins: its arguments, the environment
(`EVENTSTORE_...`), the TOML file at `$EVENTSTORE_CONFIG`, the default. A store loads its settings
so, unless it is given `config=`: then neither environment nor file is read. Kafka options in the
URL come before either.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from eventstore.errors import ConfigError

__all__ = ["NAME_PATTERN", "Config"]

#: Apps and namespaces become Kafka topic names, so they take Kafka's letters; no dot in an app's
#: name, because `<namespace>.<app>` must read back in one way only.
NAME_PATTERN = r"^[A-Za-z0-9_-]{1,120}$"


class Config(BaseModel):
    """Fixed for the life of one store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    namespace: str = Field(default="foldlog", pattern=NAME_PATTERN)

    #: Largest encoded event, on every log. Kafka brokers take 1 MiB by default; ours leaves room
    #: for the record's own header, so that no topic setting above the default is needed.
    event_bytes_max: int = Field(default=1_000_000, ge=1_000, le=100_000_000)
    #: Bytes of appends that may wait for the log; a full buffer makes `append` wait.
    buffer_bytes_max: int = Field(default=64 * 1024 * 1024, ge=1_000_000)
    #: How long an append may stay unacknowledged before it is LogUnavailable or OutcomeUnknown. On
    #: Kafka, time in which this process was stopped does not count: nobody could hear an answer;
    #: and the first append of a process needs up to a second, so give it two or more.
    append_timeout_s: float = Field(default=30.0, gt=0)
    #: How long a read waits for the log or for the view before ReadTimeout.
    read_timeout_s: float = Field(default=30.0, gt=0)

    #: "full": an acknowledged event survives a power cut. "process": it survives a killed process;
    #: a power cut can lose what was acknowledged since the last checkpoint. Embedded log only.
    durability: str = Field(default="full", pattern="^(full|process)$")
    #: How often a waiting reader of the embedded log looks by itself, where no nudge comes; while
    #: they do come, an eighth as often.
    poll_interval_ms: int = Field(default=25, ge=1, le=10_000)
    #: Network file systems do not keep SQLite's locks; True takes the risk.
    allow_network_filesystem: bool = False

    #: Where views live: beside the embedded log, or in the user's cache folder.
    view_path: Path | None = None
    #: Memory for hot fields and, separately, for RocksDB's blocks, per app.
    view_cache_bytes: int = Field(default=32 * 1024 * 1024, ge=1_000_000)
    #: A slot that nobody opened for so long is deleted by the next process that opens the app.
    view_slot_idle_s: float = Field(default=7 * 24 * 3600.0, gt=0)

    #: Kafka: False never creates a topic; the error then has the command that does.
    create_topics: bool = True
    #: Kafka: partitions of topics that we create; fixed for the life of an app.
    partitions: int = Field(default=8, ge=1, le=10_000)
    #: Kafka: replicas of topics that we create; None is the lower of 3 and the number of brokers.
    replication: int | None = Field(default=None, ge=1)
    #: Kafka: options of librdkafka by their own names. Values never appear in a message or repr.
    kafka: dict[str, SecretStr] = Field(default_factory=dict)

    @classmethod
    def load(cls, environment: Mapping[str, str] | None = None, **overrides: Any) -> Config:
        """Return the settings of file and environment, with `overrides` before both.

        `EVENTSTORE_EVENT_BYTES_MAX=...` sets `event_bytes_max`, and so for each setting;
        `EVENTSTORE_KAFKA_SASL_PASSWORD=...` sets librdkafka's `sasl.password`. The file is TOML
        with the same names and a table `[kafka]`. A variable that names no setting may be another
        program's, and is passed over.

        Raises:
            ConfigError: the file cannot be read, an argument or a name in it is no setting, or a
                value is out of its bounds. The message has no value.
        """
        environment = os.environ if environment is None else environment
        values: dict[str, Any] = {}
        file = environment.get("EVENTSTORE_CONFIG")
        if file:
            try:
                values = tomllib.loads(Path(file).read_text(encoding="utf-8"))
            except (OSError, tomllib.TOMLDecodeError) as error:
                raise ConfigError(f"$EVENTSTORE_CONFIG names {file}: {error}") from error
        kafka = {name: str(value) for name, value in values.pop("kafka", {}).items()}
        for name, text in environment.items():
            if name.startswith("EVENTSTORE_KAFKA_"):
                kafka[name.removeprefix("EVENTSTORE_KAFKA_").lower().replace("_", ".")] = text
            elif name.startswith("EVENTSTORE_"):
                setting = name.removeprefix("EVENTSTORE_").lower()
                if setting in cls.model_fields:
                    values[setting] = text
        kafka |= overrides.pop("kafka", {})
        values |= overrides
        if kafka:
            values["kafka"] = kafka
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            # The input is left out on purpose: it may be a password.
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
                for fault in error.errors(include_input=False, include_url=False)
            )
            raise ConfigError(f"settings: {faults}") from None
