"""`collectives trace merge`: joins the traces of several peers on one time line.

Traces come from `Communicator.trace` and, with COLLECTIVES_TRACE_DIR, from failures: docs/trace.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from collectives.trace import write
from collectives.trace_merge import merge


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    text = "join the traces of several peers on one time line"
    action = actions.add_parser("merge", help=text, description=text.capitalize() + ".")
    action.add_argument("files", nargs="+", metavar="FILE", help="a trace of a peer")
    action.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="where to write; open it in Perfetto"
    )


def run(args: argparse.Namespace) -> int:
    merged = merge({file: _load(file) for file in args.files})
    write(merged, args.output)
    for file, told in sorted(merged["otherData"]["files"].items()):
        print(f"{file}: {_line(told)}")
    return 0


def _load(file: str) -> Any:
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from None


def _line(told: dict[str, Any]) -> str:
    if "left_out" in told:
        return f"left out, {told['left_out']}"
    who = f"rank {told['rank']} {told['name']}".rstrip()
    if told["by"] == "its clock":
        return f"{who}, not shifted"
    within = f", within {told['within_us']:.0f} us" if "within_us" in told else ""
    return f"{who}, shifted by {told['shifted_us'] / 1000:+.3f} ms{within}, by its {told['by']}"
