"""Run benchmarks by name: `python -m benchmarks demo startup`; each writes out/bench/<name>.json."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from benchmarks.harness import Case, run
from crest.config import guarded
from crest.errors import ConfigError

BENCHMARKS = ("clip", "data", "decoder", "demo", "prior", "startup")


def cases_of(what: str, only: Sequence[str] | None = None) -> Sequence[Case]:
    """The cases of one benchmark, all or those named.

    Raises:
        ConfigError: there is no such benchmark or case.
    """
    if what not in BENCHMARKS:
        raise ConfigError(
            f"benchmarks: there is no {what}, expected one of {', '.join(BENCHMARKS)}; correct WHAT."
        )
    cases: Sequence[Case] = importlib.import_module(f"benchmarks.{what}").cases()
    names = [case.name for case in cases]
    for name in only or ():
        if name not in names:
            raise ConfigError(
                f"benchmarks: {what} has no case {name}, expected one of {', '.join(names)}; correct --case."
            )
    return [case for case in cases if only is None or case.name in only]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the names and run them in turn."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="+", metavar="WHAT", help=", ".join(BENCHMARKS))
    parser.add_argument("--case", action="append", metavar="NAME", help="only this case; repeatable")
    arguments = parser.parse_args(argv)

    def work() -> None:
        for what, cases in [(what, cases_of(what, arguments.case)) for what in arguments.what]:
            run(what, cases)

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
