"""The journal's file: whatever happens to it, what is read is what was written, or an error.

Goal: a crash costs at most the entry that nobody was told of; damage is found, and named; and what
could not be written is never told. Method: every byte at which a write may end, every byte that may
be damaged, and a disk that fails at its first, second, ... call.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from pathlib import Path

import pytest

from collectives import messages as m
from collectives.coordinator import facts as f
from collectives.coordinator import journal as j
from collectives.coordinator.facts import Fact

TOKEN, PEER = b"t" * 16, b"p" * 16
MEMBER = m.Member(PEER, 0, 1, 7, "10.0.0.1:5000", "alpha")
JOIN = m.Join(1, PEER, "train", "n", None, 1, 1, "10.0.0.1:5000", 7, 2, 64)


def record(epoch: int) -> m.Epoch:
    return m.Epoch(1, epoch, m.Cause.LINK, 1, 1, m.NO_PEER, 0, (MEMBER,), (m.Outcome(0, 1, 2, 3),))


STEPS: list[list[Fact]] = [
    [f.Term(1)],
    [f.Made(1, "train", TOKEN, None, None), f.Fixed(1, JOIN), f.Counted(1025, 1)],
    [f.Published(record(1), ((1000, 0),))],
    [f.Made(2, "train/2", TOKEN, "train", b"k" * 16)],
    [f.Struck(PEER, m.Evicted(1, 1, False, "gone")), f.Cleared(1), f.Dropped(2)],
]
FLAT = [fact for step in STEPS for fact in step]


def write(path: Path, steps: list[list[Fact]] = STEPS, disk: j.Disk | None = None) -> list[int]:
    """Writes a journal; returns how long it was after the header and after each step."""
    journal = j.Journal(path, disk)
    sizes = [path.stat().st_size]
    for step in steps:
        journal.append(step)
        sizes.append(path.stat().st_size)
    journal.close()
    return sizes


def read(path: Path) -> list[Fact]:
    journal = j.Journal(path)
    journal.close()
    return journal.facts


def test_what_is_written_is_read_and_more_can_be(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path, STEPS[:2])
    first = j.Journal(path)
    assert first.facts == FLAT[:4]
    for step in STEPS[2:]:
        first.append(step)
    first.close()
    second = j.Journal(path)
    assert second.facts == FLAT
    assert second.run == first.run
    second.close()
    assert path.stat().st_mode & 0o077 == 0, "it holds the run's secret"


def test_an_empty_file_is_a_new_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.touch()
    assert write(path)[0] == j.HEADER_BYTES
    assert read(path) == FLAT


# ---- a tail that a crash tore --------------------------------------------------------------------


def test_a_last_entry_torn_at_any_byte_is_cut_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = tmp_path / "whole"
    sizes = write(whole)
    data = whole.read_bytes()
    path = tmp_path / "journal"
    for end in range(sizes[-2], sizes[-1]):
        path.write_bytes(data[:end])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            journal = j.Journal(path)
        assert journal.facts == FLAT[: -len(STEPS[-1])], f"cut at {end}"
        told = [entry.getMessage() for entry in caplog.records]
        assert len(told) == (end > sizes[-2]), f"cut at {end}: {told}"
        assert all(str(path) in text and f"byte {sizes[-2]}" in text for text in told)
        journal.append(STEPS[-1])  # in its place
        journal.close()
        assert path.read_bytes() == data


def test_a_last_entry_with_any_byte_wrong_is_cut_off(tmp_path: Path) -> None:
    """The blocks of one write may reach the disk in any order."""
    whole = tmp_path / "whole"
    sizes = write(whole)
    data = whole.read_bytes()
    path = tmp_path / "journal"
    for at in range(sizes[-2], sizes[-1]):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x5A]) + data[at + 1 :])
        assert read(path) == FLAT[: -len(STEPS[-1])], f"byte {at}"


# ---- damage --------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    before = path.read_bytes()
    with pytest.raises(j.JournalCorrupt) as info:
        j.Journal(path)
    assert path.read_bytes() == before, "what cannot be read is not touched"
    text = str(info.value)
    assert str(path) in text and "at byte" in text and "--recover" in text
    return text


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_any_damaged_byte_before_the_last_entry_is_an_error(tmp_path: Path, flip: int) -> None:
    whole = tmp_path / "whole"
    sizes = write(whole)
    data = whole.read_bytes()
    path = tmp_path / "journal"
    starts = [0, *sizes[:-1]]
    for at in range(sizes[-2]):
        path.write_bytes(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])
        text = refused(path)
        start = max(size for size in starts if size <= at)
        assert f"at byte {start} " in text or at < j.HEADER_BYTES, f"byte {at}: {text}"


def test_missing_or_doubled_entries_are_an_error(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    sizes = write(whole)
    data = whole.read_bytes()
    path = tmp_path / "journal"
    for first, second in ((0, 1), (1, 2), (3, 4)):
        path.write_bytes(data[: sizes[first]] + data[sizes[second] :])
        assert f"at byte {sizes[first]} entry" in refused(path)
        path.write_bytes(data[: sizes[second]] + data[sizes[first] :])
        assert f"at byte {sizes[second]} entry" in refused(path)


def test_entries_of_another_run_are_none(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    sizes = write(one)
    write(two)
    mixed = one.read_bytes()[: sizes[1]] + two.read_bytes()[sizes[1] :]
    one.write_bytes(mixed)
    assert read(one) == STEPS[0], "none of them is an entry of this run: a torn tail"


@pytest.mark.parametrize(
    "data", [b"x", b"PK\x03\x04" + bytes(200), j.MAGIC, bytes(j.HEADER_BYTES), b"hello\n" * 100]
)
def test_what_is_no_journal_is_left_alone(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(data)
    assert "no header" in refused(path)


def test_another_version_says_so(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path)
    data = path.read_bytes()
    path.write_bytes(data[:8] + bytes([j.VERSION + 1]) + data[9:])
    assert f"version {j.VERSION + 1}" in refused(path)


# ---- one coordinator -----------------------------------------------------------------------------


def test_a_second_coordinator_is_kept_away(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    link = tmp_path / "link"
    link.symlink_to(path)
    first = j.Journal(path)
    for name in (path, link):
        with pytest.raises(j.JournalError, match="in use by another coordinator"):
            j.Journal(name)
    first.compact(FLAT)  # which puts another file there
    with pytest.raises(j.JournalError, match="in use by another coordinator"):
        j.Journal(path)
    first.close()
    assert read(link) == FLAT


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(j.JournalError, match="no/such"):
        j.Journal(tmp_path / "no/such/journal")


# ---- a disk that fails ---------------------------------------------------------------------------


class Broken(OSError):
    pass


class BadDisk(j.Disk):
    """Counts its calls; at the one of that number it fails, or, as after a loss of power, nothing
    it is asked for happens any more. A write that fails has written a part."""

    def __init__(self, at: int = 1 << 30, dead: bool = False) -> None:
        self.at, self.dead, self.calls = at, dead, 0
        self.failed = ""  # the first call that did

    def _call(self, what: str) -> None:
        self.calls += 1
        if self.calls == self.at or (self.dead and self.calls > self.at):
            self.failed = self.failed or what
            raise Broken(errno.ENOSPC, "no space left on device")

    def open(self, path: str, flags: int) -> int:
        self._call("open")
        return super().open(path, flags)

    def write(self, descriptor: int, data: bytes) -> int:
        try:
            self._call("write")
        except Broken:
            super().write(descriptor, data[: len(data) // 2])
            raise
        return super().write(descriptor, data[: max(1, len(data) // 2)])  # short writes happen

    def sync(self, descriptor: int) -> None:
        self._call("sync")

    def sync_folder(self, path: str) -> None:
        self._call("sync_folder")

    def rename(self, old: str, new: str) -> None:
        self._call("rename")
        super().rename(old, new)


def test_a_full_disk_ends_it_and_loses_nothing_that_was_told(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    failures = 0
    for at in range(1, 200):
        path.unlink(missing_ok=True)
        disk = BadDisk(at)
        told: list[Fact] = []
        journal = None
        try:
            journal = j.Journal(path, disk)
            for step in STEPS:
                journal.append(step)
                told += step
        except j.JournalError as error:
            failures += 1
            reason = str(error)
            if journal is not None:
                with pytest.raises(j.JournalError):
                    journal.append(STEPS[0])  # not even when there is space again
        if journal is not None:
            journal.close()
        if told == FLAT:
            break
        assert str(path) in reason and "no space" in reason
        found = read(path)
        assert found[: len(told)] == told, f"failed at call {at}"
        assert found == FLAT[: len(found)]
    assert failures > 20
    assert told == FLAT


# ---- compaction ----------------------------------------------------------------------------------

STATE: list[Fact] = [f.Term(1), f.Counted(1025, 2), FLAT[1], FLAT[2], FLAT[4]]


def test_compaction_leaves_the_state_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = j.Journal(path)
    for _ in range(200):
        for step in STEPS:
            journal.append(step)
    before, run = path.stat().st_size, journal.run
    journal.compact(STATE)
    assert path.stat().st_size < before / 100
    journal.append(STEPS[2])
    journal.close()
    again = j.Journal(path)
    assert (again.facts, again.run) == (STATE + STEPS[2], run)
    again.close()


def test_it_is_large_only_if_it_is_much_more_than_the_state(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = j.Journal(path)
    big: list[Fact] = [
        f.Struck(bytes([i, 1]) * 8, m.Evicted(1, 1, False, "x" * 900)) for i in range(256)
    ]
    while path.stat().st_size <= j.LARGE_BYTES:
        assert not journal.is_large
        journal.append(big)
    assert journal.is_large
    journal.compact(big * 3)
    state = path.stat().st_size
    journal.close()
    journal = j.Journal(path)  # which remembers how much of it is the state
    while path.stat().st_size <= j.LARGE_FACTOR * state:
        assert not journal.is_large
        journal.append(big)
    assert journal.is_large
    journal.close()


def test_damage_within_a_snapshot_is_never_taken_for_a_torn_tail(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = j.Journal(path)
    journal.compact(STATE * 100)
    journal.close()
    data = path.read_bytes()
    for end in range(j.HEADER_BYTES, len(data), 97):
        path.write_bytes(data[:end])
        assert "snapshot" in refused(path)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "snapshot" in refused(path)


@pytest.mark.parametrize("dead", [False, True])
def test_a_crash_at_any_point_of_a_compaction(tmp_path: Path, dead: bool) -> None:
    whole = tmp_path / "whole"
    write(whole)
    path = tmp_path / "journal"
    seen = set()
    for at in range(1, 100):
        shutil.copy(whole, path)
        disk = BadDisk()
        journal = j.Journal(path, disk)
        disk.at, disk.dead = disk.calls + at, dead
        told: list[Fact] = []
        with contextlib.suppress(j.JournalError):
            journal.compact(STATE)
            journal.append(STEPS[2])
            told = STEPS[2]
        journal.close()
        found = read(path)
        state = STATE if found[: len(STATE)] == STATE else FLAT
        assert found[: len(state)] == state, f"failed at call {at}"
        assert found[len(state) :] in (told, STEPS[2]), f"failed at call {at}"
        seen.add(disk.failed)
        if disk.calls < disk.at:
            break
    assert {"open", "write", "sync", "rename", "sync_folder"} <= seen
    assert sorted(os.listdir(tmp_path)) == ["journal", "journal.lock", "whole", "whole.lock"]
