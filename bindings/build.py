"""Defines the cffi module `collectives._native`; run by the build, never at run time.

`python -m cffi.gen_src exec-python bindings/build.py OUT.c` executes this file and writes the
extension's C source. The declarations come from the C headers named in cdef.h. A header is reduced
to cffi's subset of C in four steps: comments go, the include guard and the includes go, `#define
NAME number` stays (cffi needs the number for array sizes), any other object-like macro becomes a
constant that the C compiler fills in. Whatever else a header holds - a condition, a macro with
arguments, a function body - is an error that names the line, so nothing is dropped in silence.
"""

from __future__ import annotations

import re
from pathlib import Path

import cffi

ROOT = Path(__file__).resolve().parent.parent
MODULE = "collectives._native"

# A comment, or a literal that may contain what looks like one.
TOKEN = re.compile(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'", re.DOTALL)
NUMBER = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)[uUlL]*")
INCLUDE = re.compile(r'#\s*include\s+(?:"([^"]+)"|<[^>]+>)$')
DEFINE = re.compile(r"#\s*define\s+(\w+)(\(?)\s*(.*)$")
IFNDEF = re.compile(r"#\s*ifndef\s+(\w+)$")
ENDIF = re.compile(r"#\s*endif$")


class HeaderError(ValueError):
    """A header holds something that cannot be declared to cffi."""


def without_comments(text: str) -> str:
    """Replaces each comment by a space and keeps its newlines, so that line numbers stay right."""

    def blank(match: re.Match[str]) -> str:
        token = match.group()
        return " " + "\n" * token.count("\n") if token[0] == "/" else token

    return TOKEN.sub(blank, text)


def logical_lines(text: str) -> list[tuple[int, str]]:
    """(line number, line) with continued lines joined."""
    lines: list[tuple[int, str]] = []
    joined, start = "", 1
    for number, line in enumerate(text.splitlines(), 1):
        start = start if joined else number
        if line.endswith("\\"):
            joined += line[:-1] + " "
            continue
        lines.append((start, joined + line))
        joined = ""
    return lines


def define(name: str, value: str) -> str:
    number = NUMBER.fullmatch(value.strip("() "))
    return f"#define {name} {number.group(1) if number else '...'}"


def declarations(text: str, name: str) -> str:
    """What the header `name` with the content `text` declares, in cffi's subset of C."""
    kept: list[str] = []
    guard: str | None = None
    depth = 0
    for number, raw in logical_lines(without_comments(text)):
        line = raw.strip()
        if not line.startswith("#"):
            kept.append(raw.rstrip())
            continue
        opening, macro = IFNDEF.match(line), DEFINE.match(line)
        if opening and guard is None:
            guard, depth = opening.group(1), depth + 1
        elif ENDIF.match(line) and depth == 1:
            depth = 0
        elif macro and macro.group(1) == guard and not macro.group(3):
            pass
        elif macro and macro.group(3) and not macro.group(2) and '"' not in macro.group(3):
            kept.append(define(macro.group(1), macro.group(3)))
        elif not INCLUDE.match(line):
            raise HeaderError(f"{name}:{number}: bindings/build.py cannot declare this: {line}")
    if depth:
        raise HeaderError(f"{name}: the include guard {guard} is not closed")
    return "\n".join(line for line in kept if line.strip()) + "\n"


def cdef(root: Path = ROOT) -> str:
    """All declarations: those of each header that cdef.h includes, in that order."""
    parts = []
    for number, line in logical_lines(without_comments((root / "bindings/cdef.h").read_text())):
        if not line.strip():
            continue
        match = INCLUDE.match(line.strip())
        if not match or not match.group(1):
            raise HeaderError(f'bindings/cdef.h:{number}: only #include "..." may stand here')
        parts.append(declarations((root / match.group(1)).read_text(), match.group(1)))
    return "\n".join(parts)


def ffibuilder() -> cffi.FFI:
    """Found by its name by cffi.gen_src."""
    builder = cffi.FFI()
    builder.cdef(cdef())
    builder.set_source(MODULE, (ROOT / "bindings/source.c").read_text())
    return builder
