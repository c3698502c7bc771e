"""What the library logs, and where to.

Everything goes to Python's `logging`, to the logger ``collectives`` and those below it, and from
there to whatever handlers the program has. Without any it is silent: nothing is ever printed that
nobody asked for. `attach` is how people ask: it is called with ``COLLECTIVES_LOG`` when a
communicator connects or a coordinator starts.

At info one can follow who is a member: the coordinator's connection, epochs, who came and went and
why. At debug each message is told, without the secrets in it.
"""

from __future__ import annotations

import dataclasses
import logging
import sys

from collectives.messages import Cause, Epoch, Join, Member, Message, Report, Welcome

FORMAT = "%(asctime)s %(process)d %(name)s %(levelname)s %(message)s"
_TOLD_MAX = 8  # members named in one line

_logger = logging.getLogger("collectives")
_logger.addHandler(logging.NullHandler())
_handler: logging.Handler | None = None


def attach(level: str | None) -> None:
    """Logs from this level on to standard error; None changes nothing. A program whose own logging
    goes there keeps its format, and gets each line once."""
    global _handler
    if level is None:
        return
    _logger.setLevel(level.upper())
    if _handler is None and not _prints(logging.getLogger()) and not _prints(_logger):
        _handler = logging.StreamHandler()
        _handler.setFormatter(logging.Formatter(FORMAT))
        _logger.addHandler(_handler)


def _prints(logger: logging.Logger) -> bool:
    return any(
        isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr
        for handler in logger.handlers
    )


# ---- texts ---------------------------------------------------------------------------------------


def member_text(member: Member) -> str:
    name = f" {member.name!r}" if member.name else ""
    return f"rank {member.rank}{name} at {member.address}"


def _listed(what: str, members: list[Member]) -> str:
    if not members:
        return ""
    more = len(members) - _TOLD_MAX
    texts = [member_text(member) for member in members[:_TOLD_MAX]]
    return f"; {what} {', '.join(texts)}" + (f" and {more} more" if more > 0 else "")


def waiting_text(welcome: Welcome, join: Join) -> str:
    """What a peer that is no member yet waits for."""
    if welcome.epoch:
        return f"group {join.group!r}: waiting to be admitted by its {len(welcome.members)} members"
    return f"group {join.group!r}: {welcome.waiting} of {join.size} peers are there"


def epoch_text(record: Epoch, before: Epoch | None, me: bytes | None = None) -> str:
    """What an epoch changed; `before` is the one before it, None if that is not known. With `me`
    also this peer's rank."""
    text = f"epoch {record.epoch} ({record.cause.name.lower()}): {len(record.members)} members"
    if len(record.members) < record.world:
        text += f" of {record.world} ranks"
    if before is not None:
        old = {member.id for member in before.members}
        new = {member.id for member in record.members}
        gone = [member for member in before.members if member.id not in new]
        text += _listed("joined:", [member for member in record.members if member.id not in old])
        text += _listed("left:" if record.cause is Cause.BOUNDARY else "lost:", gone)
    text += f"; {record.detail}" if record.detail else ""
    rank = next((member.rank for member in record.members if member.id == me), None)
    return text if rank is None else f"{text}; this peer is rank {rank}"


def report_text(report: Report, record: Epoch) -> str:
    """Why a peer sealed its epoch, and what speaks against whom."""
    text = f"epoch {report.epoch} is sealed ({report.cause.name.lower()})"
    members = {member.id: member for member in record.members}
    for evidence in report.evidence[:_TOLD_MAX]:
        if evidence.peer in members:
            text += f"; {member_text(members[evidence.peer])}: {evidence.kind.name.lower()}"
    return f"{text}; {report.detail}" if report.detail else text


def waits_text(
    call: str, sequence: int, seconds: float, waits_for: list[Member], count: int, late: bool
) -> str:
    """An operation that does not move, and the members that it waits for, of `count` in all."""
    names = [f"rank {m.rank} ({m.name!r})" if m.name else f"rank {m.rank}" for m in waits_for]
    text = stragglers_text(names, count, late)
    return f"operation {sequence}, {call}, has waited {seconds:.0f} s for {text}"


def stragglers_text(names: list[str], count: int, late: bool) -> str:
    """Who they are, of `count` in all, and why they are waited for."""
    named = ", ".join(names[:_TOLD_MAX])
    more = count - min(len(names), _TOLD_MAX)
    which = "has not called it yet" if late else "called it and does not move"
    if count > 1:
        which = "have not called it yet" if late else "called it and do not move"
    return named + (f" and {more} more" if more else "") + f", which {which}"


def message_text(message: Message) -> str:
    """A message in a line: its numbers and texts, and how long its lists are. Bytes are left out:
    they are ids, and the secret of the run."""
    parts = [message.TYPE or "foreign join"]
    for field in dataclasses.fields(message):
        value = getattr(message, field.name)
        if isinstance(value, tuple):
            parts.append(f"{len(value)} {field.name}")
        elif not isinstance(value, bytes) and value != "":
            parts.append(f"{field.name}={getattr(value, 'name', value)}")
    return " ".join(parts)
