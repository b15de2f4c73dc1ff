"""Store: a RocksDB folder that opens, closes and fails in ways the rest can tell apart.

What it adds to rocksdict:

- the errors, told apart by RocksDB's own words, because rocksdict raises plain ``Exception``;
- scans that notice damage (rocksdict's iterators just end at a damaged block) and hold no iterator between
  entries, because a live one keeps the database and its lock open after ``close()``;
- a mark of a clean end beside the folder; without it the next open reads everything once;
- setting a folder aside under a new name, the newest few of which are kept.

There is no write-ahead log: what matters can be had from elsewhere. A process that dies leaves what was
flushed, which is some earlier prefix of its batches.

Memory: ``block_cache_bytes`` and ``unit_cache_bytes`` for the process, ``write_buffer_bytes`` times up to
three for each partition.
"""

import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import cast

from rocksdict import BlockBasedOptions, Cache, DBCompressionType, Options, Rdict, WriteBatch, WriteOptions

from streams.errors import BanditError
from streams.state.errors import StoreCorrupt, StoreLocked, StoreUnavailable
from streams.state.unit_cache import CacheBudget

log = logging.getLogger(__name__)

_SCAN_ENTRIES = 1024
_LOCKED = re.compile(r"lock hold by current process|While lock file", re.IGNORECASE)
# RocksDB's "IO error" is what the operating system refused; but a file that is missing is damage.
_REFUSED = re.compile(r"^IO error(?!.*No such file)|\(os error \d+\)", re.IGNORECASE | re.DOTALL)


class StoreOptions:
    """Settings of all stores of a process; the block cache in it is shared by those that get this object.

    Parameters
    ----------
    block_cache_bytes
        For all partitions together. RocksDB's own habit is one cache a database.
    write_buffer_bytes
        Size of one memtable of one partition; up to three exist at a time, and are lost with the process.
    set_aside_keep
        Folders set aside that are kept per partition; older ones are deleted.
    unit_cache_bytes
        For the unit caches of all partitions together; 0 for none.
    """

    def __init__(
        self,
        *,
        block_cache_bytes: int = 64 * 2**20,
        write_buffer_bytes: int = 16 * 2**20,
        set_aside_keep: int = 2,
        unit_cache_bytes: int = 128 * 2**20,
    ) -> None:
        if min(block_cache_bytes, write_buffer_bytes, set_aside_keep) < 0:
            raise ValueError("block_cache_bytes, write_buffer_bytes and set_aside_keep must not be negative")
        self.write_buffer_bytes = write_buffer_bytes
        self.set_aside_keep = set_aside_keep
        self.cache = Cache(block_cache_bytes)
        self.unit_cache = CacheBudget(unit_cache_bytes)

    def connect(self, path: Path) -> Rdict:
        """Open or create the database in a folder, without a write-ahead log; RocksDB's own errors."""
        database = Rdict(str(path), self._rocksdb())
        writes = WriteOptions()
        writes.disable_wal = True  # type: ignore[method-assign,assignment]  # a property; the stub is wrong
        database.set_write_options(writes)
        return database

    def _rocksdb(self) -> Options:
        table = BlockBasedOptions()
        table.set_block_cache(self.cache)
        table.set_bloom_filter(10, block_based=False)
        table.set_cache_index_and_filter_blocks(v=True)
        options = Options(raw_mode=True)
        options.create_if_missing(create_if_missing=True)
        options.set_block_based_table_factory(table)
        options.set_write_buffer_size(self.write_buffer_bytes)
        options.set_max_write_buffer_number(3)
        options.set_compression_type(DBCompressionType.lz4())
        options.set_keep_log_file_num(2)
        return options


class Store:
    """One database folder; closed until :meth:`open`."""

    def __init__(self, path: Path, options: StoreOptions) -> None:
        self.path = path
        self.options = options
        self._db: Rdict | None = None
        self._clean_mark = path.with_name(f"{path.name}.clean")

    @property
    def closed(self) -> bool:
        """Whether the database is closed."""
        return self._db is None

    def open(self) -> None:
        """Open or create the database; read it whole first if it did not end cleanly.

        Raises
        ------
        StoreLocked, StoreUnavailable, StoreCorrupt
            After the last, :meth:`set_aside` and open again.
        """
        existed = (self.path / "CURRENT").exists()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = self.options.connect(self.path)
        except Exception as error:
            raise self._failure(error) from error
        clean = self._clean_mark.exists()
        self._clean_mark.unlink(missing_ok=True)
        if existed and not clean:
            for _ in self.scan(b""):
                pass

    def close(self) -> None:
        """Close the database and give its lock back; again is harmless."""
        if self._db is None:
            return
        try:
            self.flush(wait=True)
            self._db.close()
        except Exception as error:
            raise self._failure(error) from error
        finally:
            self._db = None
        self._clean_mark.touch()

    def get(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Values of keys, None for the missing, in the order asked for."""
        try:
            values = self._opened().get(list(keys))
        except Exception as error:
            raise self._failure(error) from error
        return cast("list[bytes | None]", values)

    def estimated_entries(self) -> int:
        """Return the number of entries as RocksDB estimates it; O(1)."""
        return self._opened().property_int_value("rocksdb.estimate-num-keys") or 0

    def write(self, batch: WriteBatch) -> None:
        """Write a batch, whole or not at all."""
        try:
            self._opened().write(batch)
        except Exception as error:
            raise self._failure(error) from error

    def flush(self, *, wait: bool) -> None:
        """Write what is in memory to the disk: begin with it, or wait until it is there."""
        try:
            self._opened().flush(wait)
        except Exception as error:
            raise self._failure(error) from error

    def scan(self, from_key: bytes, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Entries with a prefix from a key on, ascending; no iterator lives between two of them."""
        while True:
            entries = self._chunk(from_key, prefix)
            yield from entries
            if len(entries) < _SCAN_ENTRIES:
                return
            from_key = entries[-1][0] + b"\0"

    def _chunk(self, from_key: bytes, prefix: bytes) -> list[tuple[bytes, bytes]]:
        found = cursor = None
        entries: list[tuple[bytes, bytes]]
        try:
            found = islice(self._opened().items(from_key=from_key), _SCAN_ENTRIES)
            entries = []
            is_past = False
            for key, value in cast("Iterator[tuple[bytes, bytes]]", found):
                if not key.startswith(prefix):
                    is_past = True
                    break
                entries.append((key, value))
            if len(entries) < _SCAN_ENTRIES and not is_past:
                # Either the end, or a damaged block: only the raw iterator says which.
                cursor = self._opened().iter()
                cursor.seek(entries[-1][0] + b"\0" if entries else from_key)
                cursor.status()
        except Exception as error:
            raise self._failure(error) from error
        finally:
            # An error keeps this frame, and in it an iterator would keep the database open and locked.
            del found, cursor
        return entries

    def _opened(self) -> Rdict:
        if self._db is None:
            raise StoreUnavailable("database is closed", where=str(self.path))
        return self._db

    def _failure(self, error: Exception) -> BanditError:
        if isinstance(error, BanditError):
            return error
        text = str(error)
        where = str(self.path)
        if _LOCKED.search(text):
            return StoreLocked(
                "the database is open in another process or another part of this one",
                where=where,
                action="stop the other worker, or give each worker on this machine its own data_dir",
            )
        if isinstance(error, OSError) or _REFUSED.search(text):
            return StoreUnavailable(
                text, where=where, action="free space, or give this user the right to write in data_dir"
            )
        return StoreCorrupt(text, where=where)

    def set_aside(self, reason: str, *, detail: str) -> Path:
        """Rename the folder to ``<name>.set-aside-<UTC time>-<reason>``; delete the oldest beyond the limit.

        Returns
        -------
        The new path, where a person can look at what was there.
        """
        db, self._db = self._db, None
        if db is not None:
            try:
                db.close()
            except Exception as error:  # a damaged database may not close; the rename frees its name
                log.warning("%s: closing the damaged database: %s", self.path, error, exc_info=True)
        self._clean_mark.unlink(missing_ok=True)
        stamp = datetime.now(tz=UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        target = self.path.with_name(f"{self.path.name}.set-aside-{stamp}-{reason}")
        self.path.rename(target)
        log.warning("%s: state set aside as %s (%s): %s", self.path, target.name, reason, detail)
        aside = sorted(self.path.parent.glob(f"{self.path.name}.set-aside-*"))
        for old in aside[: max(0, len(aside) - self.options.set_aside_keep)]:
            shutil.rmtree(old, ignore_errors=True)
        return target
