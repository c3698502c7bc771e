"""`collectives COMMAND`: finds the command, runs it, and turns errors into one line and a code.

Each command is a module with `add_arguments(parser)` and `run(args) -> int`. Only the module of the
command that is called is imported: the coordinator must start where, say, torch is not installed.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from collectives.errors import CollectivesError

COMMANDS = {
    "run": ("collectives.cli.run", "start the ranks of a job here, and go on when some die"),
    "coordinator": ("collectives.cli.coordinator", "run the membership service of a run"),
    "demo": ("collectives.cli.demo", "watch peers join and leave a training, checked bit for bit"),
    "bench": ("collectives.cli.bench", "measure latency and bandwidth"),
    "trace": ("collectives.cli.trace", "join what several peers have recorded"),
}


def parser_for(command: str | None) -> argparse.ArgumentParser:
    """The parser; of the sub-commands only `command` has its arguments."""
    parser = argparse.ArgumentParser(
        prog="collectives", description="Fault-tolerant collective communication."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, text) in COMMANDS.items():
        subparser = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        if name == command:
            importlib.import_module(module).add_arguments(subparser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 after an error, 2 for a wrong command line (by SystemExit)."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    command = next((word for word in words if not word.startswith("-")), None)
    try:
        args = parser_for(command).parse_args(words)
        return int(importlib.import_module(COMMANDS[args.command][0]).run(args))
    except KeyboardInterrupt:
        return 130
    except (CollectivesError, ValueError, OSError) as error:
        print(f"collectives {command or ''}: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
