"""Explores one model from the command line, with bounds larger than the tests can afford.

Examples (the last one prints what breaks):

    python tests/model/run.py data --peers 3 --epochs 3 --retry
    python tests/model/run.py data --peers 4 --operations all
    python tests/model/run.py boundary --peers 3 --leave
    python tests/model/run.py data --mutant "stale vote" --epochs 3 --retry
"""

from __future__ import annotations

import argparse
import sys

from boundary_model import JOIN, LEAVE, NOTHING, Boundary
from commit_model import Data
from explore import Verdict, explore
from mismatch_model import Mismatch

MUTANTS = {"data": Data.MUTANTS, "boundary": Boundary.MUTANTS, "mismatch": Mismatch.MUTANTS}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=MUTANTS)
    parser.add_argument("--peers", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2, help="one more than are closed")
    parser.add_argument("--restarts", type=int, default=1, help="of the coordinator")
    parser.add_argument("--operations", default="all,local", help="data: kinds in order")
    parser.add_argument("--retry", action="store_true", help="data: try again in the next epoch")
    parser.add_argument("--single-votes", action="store_true", help="data: votes one by one")
    parser.add_argument("--boundaries", type=int, default=2)
    parser.add_argument("--leave", action="store_true", help="boundary: peers may wish to leave")
    parser.add_argument("--early-calls", action="store_true", help="mismatch: calls before votes")
    parser.add_argument("--mutant", default="", help="a rule to replace; a wrong name lists all")
    parser.add_argument("--states-max", type=int, default=50_000_000)
    options = parser.parse_args()
    verdict = _explore(options)
    print(f"{options.model}: {verdict}")
    return 1 if verdict.violation else 0


def _explore(options: argparse.Namespace) -> Verdict:
    known = MUTANTS[options.model]
    if options.mutant and options.mutant not in known:
        sys.exit(f"the model {options.model} has no mutant {options.mutant!r}, but {sorted(known)}")
    if options.model == "data":
        data = Data(
            peers=options.peers,
            operations=tuple(options.operations.split(",")),
            epochs=options.epochs,
            retry=options.retry,
            restarts=options.restarts,
            single_votes=options.single_votes,
            mutant=options.mutant,
        )
        return explore(data, options.states_max)
    if options.model == "boundary":
        boundary = Boundary(
            peers=options.peers,
            boundaries=options.boundaries,
            epochs=options.epochs,
            wishes=(NOTHING, JOIN, LEAVE) if options.leave else (NOTHING, JOIN),
            restarts=options.restarts,
            mutant=options.mutant,
        )
        return explore(boundary, options.states_max)
    mismatch = Mismatch(options.peers, options.early_calls, options.mutant)
    return explore(mismatch, options.states_max)


if __name__ == "__main__":
    sys.exit(main())
