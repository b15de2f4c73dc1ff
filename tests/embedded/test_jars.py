"""The jars' cache against a repository on the loopback interface: what is fetched, checked, and kept."""

import gc
import hashlib
import multiprocessing
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from streams.embedded import jars as jars_module
from streams.embedded.jars import Jar, cache_root, jars, pinned
from streams.errors import BrokerUnavailable

FILES = {"alpha-1.0.jar": b"alpha" * 1000, "beta-2.1.jar": b"beta" * 1000}


@dataclass
class Repository:
    """A Maven repository of two artifacts; `files` may be changed to spoil it."""

    address: str
    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    fetched: list[str] = field(default_factory=list)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    found = Repository("")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rsplit("/", 1)[-1]
            body = found.files.get(name)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")
            if body is not None:
                found.fetched.append(name)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class's name)
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.address = f"http://127.0.0.1:{server.server_port}"
        settings = tmp_path / "jgo.conf"
        settings.write_text(f"[repositories]\ncentral = {found.address}\n", encoding="utf-8")
        lock = tmp_path / "jars.lock"
        lock.write_text(
            "# a comment\n"
            f"org.example:alpha:1.0 {hashlib.sha256(FILES['alpha-1.0.jar']).hexdigest()}\n"
            f"org.example:beta:2.1 {hashlib.sha256(FILES['beta-2.1.jar']).hexdigest()}\n",
            encoding="utf-8",
        )
        monkeypatch.setenv("JGO_CONFIG_FILE", str(settings))
        monkeypatch.setenv("BANDIT_CACHE_DIR", str(tmp_path / "cache"))
        monkeypatch.setattr(jars_module, "_LOCK_FILE", lock)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield found
        server.shutdown()
        thread.join()


def test_jars_are_fetched_once_and_nothing_else_is_left(repository: Repository) -> None:
    said: list[str] = []
    folder = jars(said.append)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert len(said) == 1
    assert "2 jars" in said[0]
    assert jars(said.append) == folder
    assert sorted(repository.fetched) == sorted(FILES)
    assert len(said) == 1
    assert {path.name for path in cache_root().iterdir()} == {folder.name, "kafka.lock"}


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # jgo leaves a 404's connection open
@pytest.mark.parametrize(
    ("served", "said"),
    [
        (FILES["beta-2.1.jar"][:-1], "beta-2.1.jar has SHA-256"),
        (None, "cannot fetch org.example:beta:2.1"),
    ],
    ids=["cut short", "not there"],
)
def test_bad_jar_is_refused_and_never_kept(repository: Repository, served: bytes | None, said: str) -> None:
    if served is None:
        del repository.files["beta-2.1.jar"]
    else:
        repository.files["beta-2.1.jar"] = served
    with pytest.raises(BrokerUnavailable, match=said):
        jars()
    assert {path.name for path in cache_root().iterdir()} == {"kafka.lock"}
    repository.files = dict(FILES)
    assert len(list(jars().iterdir())) == 2
    gc.collect()  # so that the connection's end is told here, where it is expected, and not in another test


def test_unreachable_repository_names_the_jar_and_the_ways_out(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = tmp_path / "nowhere.conf"
    settings.write_text("[repositories]\ncentral = http://127.0.0.1:9\n", encoding="utf-8")
    monkeypatch.setenv("JGO_CONFIG_FILE", str(settings))
    with pytest.raises(BrokerUnavailable, match=r"org\.example:.*Operator action: .*KAFKA_BOOTSTRAP_SERVERS"):
        jars()


def _fetch_into(queue: "multiprocessing.Queue[str]", lock: Path) -> None:
    jars_module._LOCK_FILE = lock
    queue.put(str(jars()))


def test_processes_that_start_at_once_fetch_once(repository: Repository) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    both = [context.Process(target=_fetch_into, args=(queue, jars_module._LOCK_FILE)) for _ in range(2)]
    for process in both:
        process.start()
    folders = {queue.get(timeout=120) for _ in both}
    for process in both:
        process.join(timeout=60)
        process.close()
    queue.close()
    queue.join_thread()
    assert len(folders) == 1
    assert sorted(repository.fetched) == sorted(FILES)


def test_pinned_list_is_the_whole_broker() -> None:
    found = pinned()
    assert len({jar.filename for jar in found}) == len(found) > 40
    assert all(len(jar.sha256) == 64 and int(jar.sha256, 16) for jar in found)
    kafka = [jar for jar in found if jar.artifact == "kafka_2.13"]
    assert [jar.version for jar in kafka] == [jars_module.KAFKA_VERSION]


def test_filename_is_mavens() -> None:
    assert Jar("org.example", "alpha_2.13", "1.0", "00").filename == "alpha_2.13-1.0.jar"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"BANDIT_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/bandit-streams"),
        ({"HOME": "/c"}, "/c/.cache/bandit-streams"),
    ],
)
def test_cache_root_follows_the_environment(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BANDIT_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_root() == Path(expected)
