"""The jars of the embedded Kafka: a pinned list, fetched once, checked, and shared by every process.

What: `jars` returns a folder that holds exactly the files named in ``jars.lock``. Why a list with SHA-256:
walking Maven's dependency graph takes 14 s, the list needs no walk (3 s), and jgo only warns about a wrong
checksum and writes straight to the final name, so that a download cut short would look like a jar for ever
after. Here a new folder is filled under a temporary name, every file is compared with the list, and only then
is it renamed. Two processes that start at once are kept apart by a file lock; the second finds the work done.

`pin` makes the list again (`make lock` calls it) after `KAFKA_VERSION` has changed.
Cost: 46 MB of downloads and disk, once a machine and version; afterwards one `stat`.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from streams.errors import BrokerUnavailable

__all__ = ["KAFKA_VERSION", "Jar", "cache_root", "jars", "pin", "pinned"]

KAFKA_VERSION = "4.3.1"
_ROOTS = (f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}", "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4")
_LOCK_FILE = Path(__file__).with_name("jars.lock")
_DOWNLOADS_AT_ONCE = 8


class Jar(NamedTuple):
    """One pinned artifact: Maven coordinate and the SHA-256 of its jar in hex."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        """Name of the file, as Maven repositories have it."""
        return f"{self.artifact}-{self.version}.jar"


def cache_root() -> Path:
    """Return the folder for files that may be deleted at any time.

    Returns
    -------
    Path
        ``$BANDIT_CACHE_DIR``, else ``$XDG_CACHE_HOME/bandit-streams``, else ``~/.cache/bandit-streams``.
    """
    given = os.environ.get("BANDIT_CACHE_DIR")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bandit-streams"


def pinned() -> list[Jar]:
    """Return the pinned artifacts, in the order of the lock file."""
    lines = _LOCK_FILE.read_text(encoding="utf-8").splitlines()
    return [Jar(*line.replace(":", " ").split()) for line in lines if line and not line.startswith("#")]


def jars(report: Callable[[str], None] | None = None) -> Path:
    """Return the folder with Kafka's jars, fetching them the first time.

    Parameters
    ----------
    report
        Called with a line for people when there is something to wait for.

    Returns
    -------
    Path
        A folder whose ``*.jar`` are the classpath.

    Raises
    ------
    BrokerUnavailable
        jgo is not installed, a jar cannot be had, or its bytes are not those of the list.
    """
    root = cache_root()
    folder = root / f"kafka-{KAFKA_VERSION}-{_list_digest()}"
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with _exclusive(root / "kafka.lock"):
        if not folder.is_dir():
            partial = Path(tempfile.mkdtemp(prefix="kafka-partial-", dir=root))
            try:
                _fetch(partial, report or (lambda _: None))
                partial.joinpath("jars").rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder


def _list_digest() -> str:
    return hashlib.sha256(_LOCK_FILE.read_bytes()).hexdigest()[:12]


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold an advisory lock on `path`; the kernel lets go of it when the holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(partial: Path, report: Callable[[str], None]) -> None:
    """Fill ``partial/jars`` with every pinned jar."""
    try:
        from jgo.config import GlobalSettings  # noqa: PLC0415  (optional, and slow to import)
        from jgo.constants import MAVEN_CENTRAL_URL  # noqa: PLC0415
        from jgo.maven import MavenContext  # noqa: PLC0415
    except ImportError as error:
        raise BrokerUnavailable(
            "the embedded Kafka needs the package jgo, which is not installed",
            action="install the extra `demo` (pip install 'bandit-streams[demo]'), "
            "or set KAFKA_BOOTSTRAP_SERVERS",
        ) from error
    remote = {"central": MAVEN_CENTRAL_URL, **GlobalSettings.load().repositories}
    context = MavenContext(repo_cache=partial / "maven", remote_repos=remote, timeout=60)
    target = partial / "jars"
    target.mkdir()
    wanted = pinned()
    report(f"fetching Apache Kafka {KAFKA_VERSION}: {len(wanted)} jars, 46 MB, once")

    def fetch_one(jar: Jar) -> None:
        artifact = context.project(jar.group, jar.artifact).at_version(jar.version).artifact()
        try:
            path = artifact.resolve()
        except (OSError, RuntimeError) as error:  # requests' errors are OSErrors
            raise BrokerUnavailable(
                f"cannot fetch {jar.group}:{jar.artifact}:{jar.version} from {', '.join(remote)}: {error}",
                action="check the network; a mirror can be named in jgo's settings file, section "
                "[repositories]; or set KAFKA_BOOTSTRAP_SERVERS",
            ) from error
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != jar.sha256:
            raise BrokerUnavailable(
                f"{jar.filename} has SHA-256 {digest}, jars.lock says {jar.sha256}: "
                "cut short, or not the file that was pinned",
                action="try again; if it stays, the repository or a proxy between changes files",
            )
        path.rename(target / jar.filename)

    with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE, thread_name_prefix="kafka-jars") as pool:
        running = [pool.submit(fetch_one, jar) for jar in wanted]
        try:
            for done, future in enumerate(as_completed(running), start=1):
                future.result()
                if done % 15 == 0:
                    report(f"fetching Apache Kafka {KAFKA_VERSION}: {done} of {len(wanted)} jars")
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def pin() -> None:
    """Resolve Kafka through Maven's graph and write the lock file again: what `make lock` calls."""
    import jgo  # noqa: PLC0415  (optional, and slow to import)

    found: dict[tuple[str, str], Jar] = {}
    for root in _ROOTS:
        for artifact in jgo.resolve(root):
            digest = hashlib.sha256(artifact.resolve().read_bytes()).hexdigest()
            jar = Jar(artifact.groupId, artifact.artifactId, artifact.version, digest)
            found.setdefault((jar.group, jar.artifact), jar)
    head = "# The embedded Kafka's classpath: coordinate and SHA-256. Made by `make lock`; do not edit.\n"
    body = "".join(f"{j.group}:{j.artifact}:{j.version} {j.sha256}\n" for j in sorted(found.values()))
    _LOCK_FILE.write_text(head + body, encoding="utf-8")
