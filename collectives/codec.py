"""From a dataclass's annotations to the check of every value in it.

A record's field types are the only description of what may stand in it; this module turns them
into readers: functions that take a plain value, as msgpack yields it, and return it as the field's
type or raise `ProtocolError` saying what is wrong. It knows numbers, bytes, text, booleans,
enumerations, records, tuples of one kind, optional values, and `Annotated` bounds on them, and
nothing else. Plain values travel as msgpack: a record by the names of its fields, one inside
another as an array in field order.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, Union

import msgpack

from collectives.errors import ProtocolError


class Within(NamedTuple):
    """The bounds of a number, or of a length, both included."""

    low: int
    high: int


class Where(NamedTuple):
    """A condition that a value must meet, and what to call it."""

    text: str
    test: Callable[[Any], bool]


def to_plain(item: Any) -> Any:
    """The plain form of a value in a record; of a record, its values in field order."""
    if type(item) is tuple:
        return [to_plain(value) for value in item]
    if dataclasses.is_dataclass(item):
        return [to_plain(getattr(item, field.name)) for field in dataclasses.fields(item)]
    return item


def by_name(record: Any) -> dict[str, Any]:
    """The plain values of a record's fields. Raises ProtocolError if one is not what its type
    allows."""
    fields = dataclasses.fields(record)
    plain = {field.name: to_plain(getattr(record, field.name)) for field in fields}
    build(type(record), plain)
    return plain


def unpack(data: bytes, array_max: int) -> Any:
    """The plain value in these bytes of msgpack, with no array longer than that. Raises
    ProtocolError."""
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            use_list=True,
            strict_map_key=True,
            object_pairs_hook=_map,
            # The unpacker allocates what an array's header claims, at every level of nesting.
            max_array_len=array_max,
            max_map_len=64,
            max_ext_len=0,
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"not msgpack: {error}") from None


def _map(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ProtocolError("a field appears twice")
    return found


def short(value: Any) -> str:
    """A value for an error message, whatever it is."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def distinct(what: str, values: list[Any]) -> None:
    """Raises ProtocolError if a value appears twice."""
    if len(set(values)) != len(values):
        raise ProtocolError(f"{what}: one appears twice")


Reader = Callable[[Any], Any]
_readers: dict[type, dict[str, Reader]] = {}


def _readers_of(cls: type) -> dict[str, Reader]:
    readers = _readers.get(cls)
    if readers is None:
        hints = typing.get_type_hints(cls, include_extras=True)
        readers = {field.name: _reader(hints[field.name]) for field in dataclasses.fields(cls)}
        _readers[cls] = readers
    return readers


def build(cls: type, plain: dict[str, Any]) -> Any:
    """Makes a record of the plain values by name, each checked, and then the record's own
    `check()`, if it has one."""
    readers = _readers_of(cls)
    if plain.keys() != readers.keys():
        odd = sorted(map(short, plain.keys() ^ readers.keys()))
        raise ProtocolError(f"{cls.__name__}: missing or unknown fields: {', '.join(odd[:8])}")
    values = {}
    for name, reader in readers.items():
        try:
            values[name] = reader(plain[name])
        except ProtocolError as error:
            raise ProtocolError(f"{name}: {error}") from None
    record = cls(**values)
    if hasattr(record, "check"):
        record.check()
    return record


def _reader(hint: Any) -> Reader:
    """What checks a plain value against a field's type and returns it as that type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _bounded(arguments[0], arguments[1:])
    if origin in (Union, types.UnionType):
        inner = _reader(next(a for a in arguments if a is not type(None)))
        return lambda value: None if value is None else inner(value)
    if origin is tuple:
        item = _reader(arguments[0])
        return lambda value: tuple(item(v) for v in _exactly(list, value))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _record_reader(hint)
    if isinstance(hint, type) and issubclass(hint, enum.IntEnum):
        return _enum_reader(hint)
    return lambda value: _exactly(hint, value)


def _exactly(cls: type, value: Any) -> Any:
    if type(value) is not cls:
        raise ProtocolError(f"{short(value)} is no {cls.__name__}")
    return value


def _bounded(hint: Any, bounds: tuple[Any, ...]) -> Reader:
    inner = _reader(hint)
    is_number = hint is int

    def read(value: Any) -> Any:
        # A length is compared before the items are looked at.
        if not is_number and not isinstance(value, (bytes, str, list)):
            raise ProtocolError(f"{short(value)} is of the wrong type")
        if is_number:
            value = inner(value)
        for bound in bounds:
            if isinstance(bound, Within):
                size = value if is_number else len(value)
                if not bound.low <= size <= bound.high:
                    what = short(value) if is_number else f"length {size}"
                    raise ProtocolError(f"{what} is not within {bound.low} to {bound.high}")
        if not is_number:
            value = inner(value)
        for bound in bounds:
            if isinstance(bound, Where) and not bound.test(value):
                raise ProtocolError(f"{short(value)} is not {bound.text}")
        return value

    return read


def _record_reader(cls: type) -> Reader:
    def read(value: Any) -> Any:
        names = list(_readers_of(cls))
        if len(_exactly(list, value)) != len(names):
            raise ProtocolError(f"{cls.__name__} has {len(names)} fields, not {len(value)}")
        return build(cls, dict(zip(names, value, strict=True)))

    return read


def _enum_reader(cls: type[enum.IntEnum]) -> Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, cls) and type(value) is not int:
            raise ProtocolError(f"{short(value)} is no {cls.__name__}")
        try:
            return cls(value)
        except ValueError:
            raise ProtocolError(f"{short(value)} is no {cls.__name__}") from None

    return read
