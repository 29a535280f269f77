"""A process that appends one record when it is told to, and says what becomes of it.

python -m tests.integration.kafka_child append URL NAMESPACE APPEND_TIMEOUT_S
"""

from __future__ import annotations

import sys

from eventstore.config import Config
from eventstore.log.kafka import KafkaLog
from tests.contract.logs import queue, write
from tests.integration.kafka import made


def main() -> None:
    _, url, namespace, timeout_s = sys.argv[1:]
    config = Config.load({}, namespace=namespace, partitions=2, append_timeout_s=float(timeout_s))
    log = KafkaLog(url, config)
    topic = made(log, f"{namespace}.app")
    write(log, topic, (b"o-1", b"before"))
    print("ready", flush=True)
    sys.stdin.readline()
    (told,) = queue(log, topic, (b"o-1", b"after"))
    print("queued", flush=True)
    told.wait()
    print(told.error or "delivered", flush=True)
    log.close()


if __name__ == "__main__":
    main()
