"""One process a data folder.

Two workers on one folder would each open the partitions that the other has just given up, or fail to, one
rebalance later; so the second one is refused at its start. The lock is the kernel's (flock): it ends with the
process, however that ends. Cost: one file.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from streams.state.errors import StoreLocked, StoreUnavailable

__all__ = ["hold_folder"]


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process; it is made if it does not exist.

    Raises
    ------
    StoreLocked
        If another process holds it.
    StoreUnavailable
        If the operating system refuses the folder or the file in it.
    """
    path = folder / "worker.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise StoreUnavailable(
            f"the data folder cannot be written: {error.strerror or error}",
            where=str(folder),
            action="free space, or give this user the right to write in data_dir",
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read(20).strip() or "unknown"
            raise StoreLocked(
                f"another worker uses this data folder (process {holder})",
                where=str(folder),
                action="stop that one, or give each worker on this machine its own data_dir",
            ) from error
        with suppress(OSError):  # a full disk: the lock holds without the number in it
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield
