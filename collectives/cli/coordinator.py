"""`collectives coordinator`: runs the membership service until SIGTERM or SIGINT, or as long as its
job lives.

The one line on standard output, `ready cc://HOST:PORT`, is for scripts: it comes when peers can
connect, and tells the port if any was taken. Everything else goes to the log.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from typing import TextIO

from collectives import config, logs
from collectives.cli._detach import detach
from collectives.coordinator import server
from collectives.settings import LOG_LEVELS, Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default=f"127.0.0.1:{config.DEFAULT_PORT}",
        help="where to listen; port 0 takes any free one (default: %(default)s)",
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="allow an address that other machines reach; there is no key yet",
    )
    parser.add_argument(
        "--timeouts",
        choices=("lan", "wan"),
        help="as the peers': lan, or wan for five times as long (default: lan)",
    )
    parser.add_argument(
        "--journal",
        metavar="PATH",
        help="a file to go on from after a crash or a restart; made if it is not there",
    )
    parser.add_argument(
        "--recover",
        action="store_true",
        help="the journal is lost or damaged: take groups over from their members; operations of "
        "which nobody knows what was decided end with OutcomeUnknown",
    )
    parser.add_argument(
        "--log", choices=LOG_LEVELS, help="what to log to standard error (default: warning)"
    )
    parser.add_argument(
        "--until-input-ends",
        action="store_true",
        help="stop when standard input ends, as it does when the parent process dies",
    )
    parser.add_argument(
        "--until-empty",
        action="store_true",
        help="stop when all members that there were have left, closed or died",
    )
    parser.add_argument(
        "--join-within",
        type=float,
        metavar="SECONDS",
        help="with --until-empty: stop as well if there was no member for so long (default: the "
        "timeout coordinator_lost; lan: 300)",
    )
    parser.add_argument(
        "--detach",
        action="store_true",
        help="return when it is ready, and leave it behind as a process of its own, in a session "
        "of its own",
    )


def run(args: argparse.Namespace) -> int:
    if args.detach and args.until_input_ends:
        raise ValueError("--detach leaves standard input behind: --until-input-ends cannot be")
    channel = detach() if args.detach else sys.stdout
    logs.attach(Settings.resolve(log=args.log).log or "warning")
    preset = config.timeouts_named(args.timeouts) if args.timeouts else None
    asyncio.run(_serve(args, Settings.resolve(timeouts=preset).timeouts, channel))
    return 0


async def _serve(args: argparse.Namespace, timeouts: config.Timeouts, channel: TextIO) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if args.until_input_ends:
        loop.add_reader(sys.stdin.fileno(), _drain, sys.stdin.fileno(), stop)

    def ready(url: str) -> None:
        print(f"ready {url}", file=channel, flush=True)
        if args.detach:
            channel.close()  # who started it waits no longer

    try:
        await server.serve(
            args.listen,
            insecure=args.insecure,
            timeouts=timeouts,
            journal=args.journal,
            recover=args.recover,
            until_empty=args.until_empty,
            join_within=args.join_within,
            on_ready=ready,
            stop=stop,
        )
    finally:
        if args.until_input_ends:
            loop.remove_reader(sys.stdin.fileno())


def _drain(descriptor: int, stop: asyncio.Event) -> None:
    if not os.read(descriptor, 4096):
        stop.set()
        asyncio.get_running_loop().remove_reader(descriptor)
