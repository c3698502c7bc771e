"""The coordinator's journal: a file that only grows, on the disk before anybody hears of it.

It begins with a header, and each entry is what one step of the machine left: a marker, a serial
number that rises by one, a length, a checksum, and the facts. An entry is written by one write and
one fdatasync. So a crash can spoil the last entry alone, and nobody was told of that one: it is cut
off. Whatever else is wrong with the file means that something is missing which peers may know, so
nothing is guessed: opening it fails, and says where and what to do.

When it has grown much larger than the state that it describes, it is written anew: to a file
beside it, which takes its name once it is complete on the disk. A lock beside the journal, held as
long as it is open, keeps a second coordinator away.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from collectives.coordinator import facts
from collectives.coordinator.facts import Fact
from collectives.errors import CollectivesError, ProtocolError

log = logging.getLogger("collectives.coordinator")

VERSION = 1
MAGIC = b"CCJOURN\n"
MARKER = b"\xccJE\n"
RUN_BYTES = 16
LARGE_BYTES = 1 << 20
LARGE_FACTOR = 4
CHUNK = 256  # facts in one entry of a snapshot

# Magic, version, run, the first entry's serial, the last one's of the snapshot that it begins with
# (what is up to there was whole when the file got its name), and the checksum of all this.
_HEADER = struct.Struct("<8sI16sQQ")
# Marker, serial, length; then the checksum of the run, of these and of the payload.
_ENTRY = struct.Struct("<4sQI")
_SUM = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _SUM.size
ENTRY_BYTES = _ENTRY.size + _SUM.size


class JournalError(CollectivesError):
    """The journal cannot be used; the message says which file, why, and what to do."""


class JournalCorrupt(JournalError):
    """The journal is damaged, or no journal at all."""


class Disk:
    """What the journal does to the file system, call by call: tests let each of them fail."""

    def open(self, path: str, flags: int) -> int:
        return os.open(path, flags | os.O_CLOEXEC, 0o600)

    def write(self, descriptor: int, data: bytes) -> int:
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        os.fdatasync(descriptor)

    def sync_folder(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def truncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)


class Journal:
    """An open journal; there is none yet where the file does not exist, or is empty: then it is
    made. One thread uses it; calls block until the disk has done its part.

    Attributes:
        run: names the run, in messages and in the file.
        facts: what was in it when it was opened.

    Raises:
        JournalCorrupt: it is damaged.
        JournalError: another coordinator has it open, or the system refuses.
    """

    def __init__(self, path: str | os.PathLike[str], disk: Disk | None = None) -> None:
        self.path = os.path.realpath(path)
        self.facts: list[Fact] = []
        self._disk = disk or Disk()
        self._file = -1
        self._broken = False
        self._lock = self._take_lock()
        try:
            self._open()
        except OSError as error:
            self.close()
            raise JournalError(f"the journal {self.path} cannot be opened: {error}") from None
        except BaseException:
            self.close()
            raise

    @property
    def is_large(self) -> bool:
        """Whether it is time to `compact`."""
        return self._bytes > self._large

    def append(self, new: Iterable[Fact]) -> None:
        """Adds one entry. When this returns, it outlives a crash. When it raises JournalError, it
        may or may not, and nothing more can be added: nobody must be told of it."""
        if self._broken:
            raise JournalError(f"the journal {self.path} could not be written before")
        data = _entry(self.run, self._next, facts.encode(new))
        try:
            self._write(self._file, data)
            self._disk.sync(self._file)
        except OSError as error:
            self._broken = True
            raise JournalError(
                f"the journal {self.path} cannot be written: {error}; nothing that is not in it "
                "was told to anybody. Repair that, and start the coordinator again"
            ) from None
        self._next += 1
        self._bytes += len(data)

    def compact(self, state: Iterable[Fact]) -> None:
        """Writes it anew, as these facts. If that fails, the old one still counts, and only a
        larger one is tried again; JournalError means that neither does any more."""
        try:
            self._replace(list(state))
        except OSError as error:
            log.warning("the journal %s could not be made smaller: %s", self.path, error)
            self._large = 2 * self._bytes

    def close(self) -> None:
        """Gives the file to whoever wants it next. May be called again."""
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1

    # ---- opening ---------------------------------------------------------------------------------

    def _take_lock(self) -> int:
        path = self.path + ".lock"
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise JournalError(f"the journal {self.path} cannot be locked: {error}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise JournalError(
                f"the journal {self.path} is in use by another coordinator ({path} is locked): "
                "end that one first, or give this one a journal of its own"
            ) from None
        return lock

    def _open(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._new_path)  # a snapshot that a crash cut short
        try:
            with open(self.path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            data = b""
        if not data:
            self.run = os.urandom(RUN_BYTES)
            self._next = 1
            self._replace([])
            return
        header = _read_header(self.path, data)
        self.run = header.run
        self._next, end, snapshot = header.first, HEADER_BYTES, HEADER_BYTES
        for entry in _entries(self.path, data, header):
            self.facts += entry.facts
            self._next, end = entry.serial + 1, entry.end
            snapshot = end if entry.serial <= header.whole else snapshot
        self._file = self._disk.open(self.path, os.O_WRONLY | os.O_APPEND)
        if end < len(data):
            log.warning(
                "the journal %s ends in the middle of an entry at byte %d, as after a crash: it "
                "was told to nobody and is cut off (%d bytes)",
                *(self.path, end, len(data) - end),
            )
            self._disk.truncate(self._file, end)
            self._disk.sync(self._file)
        self._grown(end, snapshot)

    # ---- writing ---------------------------------------------------------------------------------

    @property
    def _new_path(self) -> str:
        return self.path + ".new"

    def _grown(self, size: int, snapshot: int) -> None:
        self._bytes = size
        self._large = max(LARGE_BYTES, LARGE_FACTOR * snapshot)

    def _replace(self, state: list[Fact]) -> None:
        """Puts a file with these facts, and nothing else, in the place of the journal."""
        chunks = [state[i : i + CHUNK] for i in range(0, len(state), CHUNK)]
        last = self._next + len(chunks) - 1
        data = _header(self.run, self._next, last) + b"".join(
            _entry(self.run, serial, facts.encode(chunk))
            for serial, chunk in zip(itertools.count(self._next), chunks, strict=False)
        )
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        new = self._disk.open(self._new_path, flags)
        try:
            self._write(new, data)
            self._disk.sync(new)
            self._disk.rename(self._new_path, self.path)
        except BaseException:
            os.close(new)
            raise
        if self._file >= 0:
            os.close(self._file)
        self._file = new
        try:
            self._disk.sync_folder(os.path.dirname(self.path))
        except OSError as error:  # a crash could bring the old file back, without what comes now
            self._broken = True
            raise JournalError(f"the folder of {self.path} cannot be synced: {error}") from None
        self._next = last + 1
        self._grown(len(data), len(data))

    def _write(self, descriptor: int, data: bytes) -> None:
        while data:
            data = data[self._disk.write(descriptor, data) :]


def open_or_set_aside(path: str | os.PathLike[str]) -> Journal:
    """As `Journal`, but one that is damaged gets another name, and a new one takes its place."""
    try:
        return Journal(path)
    except JournalCorrupt as error:
        where = os.path.realpath(path)
        names = (f"{where}.damaged-{number}" for number in itertools.count(1))
        aside = next(name for name in names if not os.path.exists(name))
        os.rename(where, aside)
        log.warning("%s; it is %s now", error, aside)
        return Journal(path)


# ---- the layout ----------------------------------------------------------------------------------


class _Header(NamedTuple):
    run: bytes
    first: int
    whole: int


class _Entry(NamedTuple):
    serial: int
    end: int
    facts: list[Fact]


def _header(run: bytes, first: int, whole: int) -> bytes:
    data = _HEADER.pack(MAGIC, VERSION, run, first, whole)
    return data + _SUM.pack(zlib.crc32(data))


def _entry(run: bytes, serial: int, payload: bytes) -> bytes:
    head = _ENTRY.pack(MARKER, serial, len(payload))
    return head + _SUM.pack(_checksum(run, head, payload)) + payload


def _checksum(run: bytes, head: bytes, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(head, zlib.crc32(run)))


def _corrupt(path: str, offset: int, what: str) -> JournalCorrupt:
    return JournalCorrupt(
        f"the journal {path} cannot be used: at byte {offset} {what}. Restore the file as it was, "
        "if you can; a copy that is older will not do. Or let the peers tell what they know: start "
        "with --recover (recover=True), which sets this file aside"
    )


def _read_header(path: str, data: bytes) -> _Header:
    if len(data) < HEADER_BYTES or not data.startswith(MAGIC):
        raise _corrupt(path, 0, "there is no header of a journal")
    _, version, run, first, whole = _HEADER.unpack_from(data)
    if version != VERSION:
        raise _corrupt(path, 8, f"it says version {version}, and this coordinator reads {VERSION}")
    if _SUM.unpack_from(data, _HEADER.size)[0] != zlib.crc32(data[: _HEADER.size]):
        raise _corrupt(path, 0, "the header's checksum is wrong")
    return _Header(run, first, whole)


def _entry_at(data: bytes, offset: int, run: bytes) -> tuple[int, int, bytes] | None:
    """The serial, the end and the payload of the valid entry that begins there, or None."""
    start = offset + ENTRY_BYTES
    if start > len(data):
        return None
    head = data[offset : offset + _ENTRY.size]
    marker, serial, length = _ENTRY.unpack(head)
    end = start + length
    if marker != MARKER or end > len(data):
        return None
    payload = data[start:end]
    if _SUM.unpack_from(data, offset + _ENTRY.size)[0] != _checksum(run, head, payload):
        return None
    return serial, end, payload


def _entries(path: str, data: bytes, header: _Header) -> Iterator[_Entry]:
    """All entries, but for a last one that is torn."""
    offset, expected = HEADER_BYTES, header.first
    while offset < len(data):
        found = _entry_at(data, offset, header.run)
        if found is None:
            break
        serial, end, payload = found
        if serial != expected:
            raise _corrupt(path, offset, f"entry {serial} follows where {expected} should")
        try:
            yield _Entry(serial, end, facts.decode(payload))
        except ProtocolError as error:
            raise _corrupt(path, offset, f"entry {serial} says what cannot be: {error}") from None
        offset, expected = end, expected + 1
    if expected <= header.whole:
        raise _corrupt(path, offset, f"entry {expected} of the snapshot is damaged or missing")
    behind = data.find(MARKER, offset + 1)
    while behind >= 0:
        if _entry_at(data, behind, header.run) is not None:
            raise _corrupt(path, offset, f"entry {expected} is damaged, and more come behind it")
        behind = data.find(MARKER, behind + 1)
