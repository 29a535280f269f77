"""A process that appends one record when it is told to, stops, and says what became of it.

python -m tests.integration.kafka_child append-and-stop URL NAMESPACE APPEND_TIMEOUT_S

It stops itself, with SIGSTOP, a quarter of the deadline after the append: nobody else could be sure
of the moment.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

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
    threading.Event().wait(float(timeout_s) / 4)  # so that the deadline is running
    os.kill(os.getpid(), signal.SIGSTOP)
    told.wait()
    print(told.error or "delivered", flush=True)
    log.close()


if __name__ == "__main__":
    main()
