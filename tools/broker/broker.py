"""A real Kafka broker (or a small cluster) from its jars: no Docker, nothing installed.

    python tools/broker/broker.py run [--nodes 3]        in the foreground; prints the address
    python tools/broker/broker.py exec -- COMMAND ...    COMMAND with a broker beside it

It needs Java 17 and, the first time, Maven, which fetches the jars named in pom.xml into
`build/kafka-jars` (or `$FOLDLOG_BROKER_JARS`). Brokers listen on 127.0.0.1 only, on free ports,
keep their data in a temporary folder, and die with the process that started them.

Used by `make test`, `make kafka`, and by tests that kill brokers of their own. Standard library
only, so that it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType

__all__ = ["BrokerError", "Cluster", "available", "jars"]

ROOT = Path(__file__).resolve().parents[2]

#: Name of the variable that tells tests where the broker is: `host:port[,host:port]`.
ADDRESS_VARIABLE = "EVENTSTORE_TEST_KAFKA"

#: Kafka 4 brokers are compiled for this version of Java.
JAVA_VERSION_MIN = 17

#: Below the range from which Linux takes the ports of outgoing connections (32768 up). A client
#: that keeps trying a dead broker's port inside that range can be connected to itself, and the
#: broker cannot come back.
PORTS = range(20_000, 32_000)

#: A node that is not ready by then will not be; 3 s is usual, 30 s was seen on a busy machine.
START_TIMEOUT_S = 90.0

#: How long a killed node, or the command of `exec` that was asked to stop, may take to end.
STOP_TIMEOUT_S = 15.0

#: How many lines of each node's output are shown when the command beside it fails.
LAST_LINES_MAX = 40

#: Starts a program that the kernel kills when its parent dies (Linux), so that not even a SIGKILL
#: of a test run leaves a broker behind. A program of its own, because a `preexec_fn` would run
#: Python between fork and exec of a process that has threads.
_LAUNCHER = """
import ctypes, os, signal, sys
parent = int(sys.argv[1])
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        sys.exit("the parent is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class BrokerError(Exception):
    """The broker cannot be started; the message is one line that says why."""


def available() -> str | None:
    """Return why there can be no broker here, in one line; None when there can be one."""
    if shutil.which("java") is None:
        return f"java is not on the PATH (Java {JAVA_VERSION_MIN} or newer is needed)"
    done = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False)
    found = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
    if done.returncode != 0 or found is None:
        return "java is on the PATH, but `java -version` fails"
    if int(found[1]) < JAVA_VERSION_MIN:
        return f"java is version {found[1]}, and Kafka needs {JAVA_VERSION_MIN} or newer"
    if shutil.which("mvn") is None and not _manifest(_jar_folder()).exists():
        return "mvn (Maven) is not on the PATH, and the broker's jars were not fetched before"
    return None


# --- jars ---------------------------------------------------------------------------------------


def _jar_folder() -> Path:
    configured = os.environ.get("FOLDLOG_BROKER_JARS")
    return Path(configured) if configured else ROOT / "build" / "kafka-jars"


def _manifest(folder: Path) -> Path:
    """Return the file that lists the jars; it is written last, so a half-fetched set has none."""
    return folder / "complete.txt"


def jars() -> Path:
    """Return the folder with the broker's jars, fetched when it is not there, and checked.

    Raises:
        BrokerError: they cannot be fetched, or one is missing or damaged; it is named. A damaged
            jar is never replaced silently: what damaged it should be known.
    """
    folder = _jar_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # two test runs may start at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _manifest(folder).exists():
            _fetch(folder)
    for name in _manifest(folder).read_text(encoding="utf-8").split():
        _check_jar(folder / name)
    return folder


def _fetch(folder: Path) -> None:
    command = ["mvn", "-q", "-B", "-f", str(Path(__file__).with_name("pom.xml"))]
    command += ["dependency:copy-dependencies", f"-DoutputDirectory={folder}"]
    print("fetching the Kafka broker's jars (44 MB, once) ...", file=sys.stderr, flush=True)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BrokerError(f"the broker's jars cannot be fetched: mvn: {error.strerror}") from error
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line]
        reason = lines[0] if lines else f"mvn ended with exit code {done.returncode}"
        raise BrokerError(f"the broker's jars cannot be fetched: {reason}")
    names = sorted(jar.name for jar in folder.glob("*.jar"))
    for name in names:
        _check_jar(folder / name)
    if not any(name.startswith("kafka_") for name in names):
        raise BrokerError(f"Maven left no kafka_*.jar in {folder}")
    partial = folder / "complete.partial"
    partial.write_text("\n".join(names) + "\n", encoding="utf-8")
    partial.replace(_manifest(folder))


def _check_jar(jar: Path) -> None:
    try:
        with zipfile.ZipFile(jar) as archive:
            member = archive.testzip()  # reads everything and compares every checksum
        fault = None if member is None else f"wrong checksum of {member}"
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        fault = str(error)
    except Exception as error:  # zlib.error and others: whatever damage raises, it is damage
        fault = f"{type(error).__name__}: {error}"
    if fault is not None:
        raise BrokerError(
            f"broker jar {jar} is damaged or missing ({fault}): delete {jar.parent} (and the same"
            " file in ~/.m2, if it is damaged there) and run this again"
        )


# --- nodes --------------------------------------------------------------------------------------


class _Node:
    """One broker, also a voter of the controller quorum: ports, folder, and perhaps a process."""

    def __init__(self, number: int, folder: Path, port: int, controller_port: int) -> None:
        self.number = number
        self.folder = folder
        self.port, self.controller_port = port, controller_port
        self.directory_id = _random_id()
        self.process: subprocess.Popen[bytes] | None = None
        self.said_at_start = 0  # bytes of output until it was first ready

    @property
    def properties(self) -> Path:
        return self.folder / "server.properties"

    @property
    def output(self) -> Path:
        return self.folder / "output.txt"

    def launch(self, jar_folder: Path) -> None:
        java = ["java", "-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", *_LOGGING]
        java += ["-cp", f"{jar_folder}/*", "kafka.Kafka", str(self.properties)]
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *java],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for us: we stop the node, in order
            )

    def signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def ended(self, timeout_s: float) -> bool:
        if self.process is None:
            return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout_s)
            self.process = None
        return self.process is None

    def complaint(self) -> str:
        """Return the line of the node's output that most likely says what is wrong."""
        try:
            lines = self.output.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return "it left no output"
        faults = [line for line in lines if re.search(r"ERROR|FATAL|Exception|Error:", line)]
        return (faults or lines or ["it left no output"])[0].strip()


_LOGGING = [
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dlog4j2.level=OFF",
    "-Dlog4j2.statusLoggerLevel=OFF",
]


def _reserved_ports(count: int) -> dict[int, socket.socket]:
    """Return free ports, each with a socket that keeps other clusters from it until it is closed.

    A broker that is about to start, or was killed, listens on nothing. So its cluster holds the
    UDP port of the same number, which nobody needs and which is free again however we end.
    """
    ports: dict[int, socket.socket] = {}
    while len(ports) < count:
        port = random.choice(PORTS)
        mark = socket.socket(type=socket.SOCK_DGRAM)
        try:
            with socket.socket() as probe:
                mark.bind(("127.0.0.1", port))
                probe.bind(("127.0.0.1", port))
        except OSError:
            mark.close()
        else:
            ports[port] = mark
    return ports


def _random_id() -> str:
    """Return an id as Kafka writes them: 22 characters that do not begin with a dash."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text


class Cluster:
    """A Kafka cluster of `nodes` brokers on this machine, from `start()` to `stop()`.

    Start it from a thread that lives as long as the brokers shall: Linux kills them when the
    thread that launched them ends. `kill` and `restart` keep ports and data.
    """

    def __init__(
        self,
        nodes: int = 1,
        *,
        advertised_port: int | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        """Prepare it, started by nobody yet.

        With `advertised_port`, that of a proxy, clients of its only node are sent there. `settings`
        are a broker's own, beside ours.
        """
        assert advertised_port is None or nodes == 1, "a port is that of one node"
        self._advertised_port = advertised_port
        self._settings = settings or {}
        self._jars = jars()
        self._folder = Path(tempfile.mkdtemp(prefix="foldlog-kafka-"))
        self._ports = _reserved_ports(2 * nodes)
        ports = iter(self._ports)
        self._nodes = [
            _Node(number, self._folder / f"node{number}", next(ports), next(ports))
            for number in range(1, nodes + 1)
        ]

    @property
    def address(self) -> str:
        """The brokers' addresses as `host:port[,host:port]`, for bootstrap.servers."""
        return ",".join(f"127.0.0.1:{node.port}" for node in self._nodes)

    @property
    def url(self) -> str:
        return f"kafka://{self.address}"

    @property
    def port(self) -> int:
        """The port on which the first node listens."""
        return self._nodes[0].port

    def start(self) -> None:
        """Return when every node is part of the cluster and answers.

        Raises:
            BrokerError: a node did not start; none is left running.
        """
        try:
            self._format()
            for node in self._nodes:
                node.launch(self._jars)
            for node in self._nodes:
                self._await_ready(node)
                node.said_at_start = node.output.stat().st_size
        except BaseException:
            self._kill_all()
            raise

    def stop(self) -> None:
        """End every node and delete its data: so there is nothing to save by a clean stop."""
        self._kill_all()

    def kill(self, number: int = 1) -> None:
        """Kill a node as a power cut of its process would: SIGKILL, nothing is flushed."""
        node = self._nodes[number - 1]
        node.signal(signal.SIGKILL)
        node.ended(STOP_TIMEOUT_S)

    def pause(self, number: int = 1) -> None:
        """Stop a node in the middle of whatever it does; its connections stay open."""
        self._nodes[number - 1].signal(signal.SIGSTOP)

    def resume(self, number: int = 1) -> None:
        """Let a paused node go on."""
        self._nodes[number - 1].signal(signal.SIGCONT)

    def restart(self, number: int = 1) -> None:
        """Start a node that was killed, on its old ports and data; return when it answers."""
        node = self._nodes[number - 1]
        if node.process is not None:
            raise BrokerError(f"node {number} is running")
        node.launch(self._jars)
        self._await_ready(node)

    def last_words(self) -> list[str]:
        """Return the last lines, warnings and worse, that the nodes wrote since they were ready."""
        lines = []
        for node in self._nodes:
            with contextlib.suppress(OSError):
                said = node.output.read_bytes()[node.said_at_start :].decode(errors="replace")
                last = said.splitlines()[-LAST_LINES_MAX:]
                lines += [f"node {node.number}: {line}" for line in last]
        return lines

    def _kill_all(self) -> None:
        for node in self._nodes:
            node.signal(signal.SIGKILL)
            node.ended(STOP_TIMEOUT_S)
        for mark in self._ports.values():
            mark.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _format(self) -> None:
        cluster_id = _random_id()
        voters = ",".join(
            f"{node.number}@127.0.0.1:{node.controller_port}:{node.directory_id}"
            for node in self._nodes
        )
        running = []
        for node in self._nodes:
            node.folder.mkdir()
            node.properties.write_text(self._properties_of(node), encoding="utf-8")
            java = ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", *_LOGGING]
            java += ["-cp", f"{self._jars}/*", "kafka.tools.StorageTool", "format"]
            java += ["-t", cluster_id, "-c", str(node.properties), "--initial-controllers", voters]
            output = node.output.open("wb")
            running.append((node, subprocess.Popen(java, stdout=output, stderr=output)))
            output.close()
        for node, process in running:
            if process.wait() != 0:
                raise BrokerError(f"the broker's storage was not formatted: {node.complaint()}")

    def _properties_of(self, node: _Node) -> str:
        replicas = min(3, len(self._nodes))
        settings = {
            "process.roles": "broker,controller",
            "node.id": node.number,
            "controller.quorum.bootstrap.servers": ",".join(
                f"127.0.0.1:{node.controller_port}" for node in self._nodes
            ),
            "listeners": f"PLAINTEXT://127.0.0.1:{node.port},"
            f"CONTROLLER://127.0.0.1:{node.controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self._advertised_port or node.port}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "log.dirs": node.folder / "data",
            "auto.create.topics.enable": "false",  # reading must be seen not to create anything
            "offsets.topic.num.partitions": 4,
            "offsets.topic.replication.factor": replicas,
            "transaction.state.log.num.partitions": 4,
            "transaction.state.log.replication.factor": replicas,
            "transaction.state.log.min.isr": max(1, replicas - 1),
            "share.coordinator.state.topic.num.partitions": 1,
            "share.coordinator.state.topic.replication.factor": replicas,
            "share.coordinator.state.topic.min.isr": max(1, replicas - 1),
            "group.initial.rebalance.delay.ms": 0,
            # A killed node is out of the cluster after this, so that a test need not wait 9 s.
            "broker.session.timeout.ms": 3_000,
            "broker.heartbeat.interval.ms": 500,
            "log.cleaner.enable": "false",
            **self._settings,
        }
        return "".join(f"{name}={value}\n" for name, value in settings.items())

    def _await_ready(self, node: _Node) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while _brokers_known(node.port) < len(self._nodes):
            if node.ended(0.05):
                raise BrokerError(f"the broker ended at its start: {node.complaint()}")
            if time.monotonic() > deadline:
                raise BrokerError(f"no broker after {START_TIMEOUT_S:.0f} s: {node.complaint()}")

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _brokers_known(port: int) -> int:
    """Ask a broker for metadata (version 7 of the request) and return how many brokers it knows.

    Zero when it does not answer.
    """
    client = b"broker.py"
    request = struct.pack(">hhih", 3, 7, 1, len(client)) + client
    request += struct.pack(">i?", 0, False)  # about no topic; create none
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2.0) as connection:
            connection.settimeout(2.0)
            connection.sendall(struct.pack(">i", len(request)) + request)
            with connection.makefile("rb") as answer:
                header = answer.read(4 + 4 + 4 + 4)  # length, correlation, throttle, brokers
    except OSError:
        return 0
    return int(struct.unpack(">iiii", header)[3]) if len(header) == 16 else 0


# --- commands -----------------------------------------------------------------------------------


class _Stopped(Exception):
    """SIGTERM or SIGINT arrived."""


@contextlib.contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """Let SIGINT and SIGTERM set an event (and raise, once) instead of ending the process."""
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if not stopped.is_set():
            stopped.set()
            raise _Stopped(signal.Signals(number).name)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run(nodes: int) -> int:
    reason = available()
    if reason is not None:
        raise BrokerError(f"no Kafka broker: {reason}")
    with contextlib.suppress(_Stopped), _stoppable(), Cluster(nodes) as cluster:
        print(cluster.url, flush=True)
        print("Ctrl-C stops it and deletes its data.", file=sys.stderr, flush=True)
        while True:
            signal.pause()
    return 0


def _exec(command: Sequence[str], nodes: int) -> int:
    if os.environ.get(ADDRESS_VARIABLE):  # somebody has a broker already: docker compose, say
        return subprocess.run(command, check=False).returncode
    reason = available()
    if reason is not None:
        required = os.environ.get("CI") == "true"
        print(f"no Kafka broker: {reason}", file=sys.stderr, flush=True)
        return 1 if required else subprocess.run(command, check=False).returncode
    with _stoppable(), Cluster(nodes) as cluster:
        environment = os.environ | {ADDRESS_VARIABLE: cluster.address}
        child = subprocess.Popen(command, env=environment)
        try:
            code = child.wait()
        except _Stopped:
            # Ctrl-C reached the child too, as it is of our process group; SIGTERM did not.
            child.terminate()
            try:
                child.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            raise
        if code != 0:  # it may be the broker's doing, and its output is gone in a moment
            for line in cluster.last_words():
                print(line, file=sys.stderr, flush=True)
    return code if code >= 0 else 128 - code


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="broker.py", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="action", required=True)
    run = commands.add_parser("run", help="a broker in the foreground")
    run.add_argument("--nodes", type=int, default=1)
    execute = commands.add_parser("exec", help="run a command with a broker beside it")
    execute.add_argument("--nodes", type=int, default=1)
    execute.add_argument("command", nargs="+", help="after --")
    options = parser.parse_args(arguments)
    try:
        if options.action == "run":
            return _run(options.nodes)
        return _exec(options.command, options.nodes)
    except BrokerError as error:
        print(f"broker.py: {error}", file=sys.stderr)
        return 1
    except _Stopped as stopped:
        return 130 if str(stopped) == "SIGINT" else 143


if __name__ == "__main__":
    sys.exit(main())
