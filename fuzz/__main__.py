"""Fuzz skvdd: random damage to every file that is read and every argument that is taken.

    python -m fuzz --cases 1000000              # all targets, half an hour on one core
    python -m fuzz --cases 2000 --target methods
    python -m fuzz --target methods --case 1234 # one case again, with its traceback

A case is decided by the seed, the target and its number, so that whatever is found can be found
again. Findings are: another exception than the documented ones, a damaged file that is loaded, an
answer of a wrong shape or that is not finite to ordinary input, more than one second of the
processor, more than 2 GiB of memory. The exit status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch

from fuzz.harness import Report, Target, limit_memory, peak_memory, run
from fuzz.targets import TARGETS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__.split("\n")[0])
    names = [target.name for target in TARGETS]
    parser.add_argument("--target", action="append", choices=names, help="default: all")
    parser.add_argument("--cases", type=int, default=10_000, help="of all targets together")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="try this case alone and show what it raises")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chosen = [target for target in TARGETS if target.name in (options.target or names)]
    if options.case is not None:
        for target in chosen:
            target.case(np.random.RandomState([options.seed, *target.name.encode(), options.case]))
        return 0
    return _run_all(chosen, options)


def _run_all(chosen: Sequence[Target], options: argparse.Namespace) -> int:
    print(f"python -m fuzz {' '.join(sys.argv[1:])} (process {os.getpid()})", flush=True)
    shares = sum(target.share for target in chosen)
    reports: list[Report] = []
    for target in chosen:
        if target.prepare is not None:
            target.prepare()
    limit_memory()
    start = time.perf_counter()
    for target in chosen:
        cases = range(max(1, round(options.cases * target.share / shares)))
        reports.append(run(target, cases, options.seed, options.seconds))
        print(reports[-1], flush=True)
    findings = sum(len(report.findings) for report in reports)
    n_cases = sum(report.n_cases for report in reports)
    seconds = time.perf_counter() - start
    print(
        f"{n_cases} cases in {seconds:.0f} s, {findings} findings, "
        f"most memory {peak_memory():.0f} MiB"
    )
    return int(findings > 0)


if __name__ == "__main__":
    sys.exit(main())
