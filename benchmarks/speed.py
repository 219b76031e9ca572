"""What everything costs in time, beside the published code and beside what is possible.

    python -m benchmarks.speed                    # all sections, a quarter of an hour
    python -m benchmarks.speed actions training   # some of them

Every section is a Markdown table. A limit is computed from the operations and bytes that the work
has, at the best rates of this machine, measured in the same run (`benchmarks.limits`). A published
figure is what the authors' code took on two cores of a similar machine. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import torch

from benchmarks import speed_of_control, speed_of_training, speed_on_gpu
from benchmarks.bench import Bench, Row, Section


def machine_rows(bench: Bench) -> Iterator[Row]:
    """Yield the rates from which the limits are computed."""
    machines = [bench.machine(n) for n in (1, 2)]
    for shape in machines[0].products:
        rates = (f"{machine.products[shape] / 1e9:.0f} GFLOP/s" for machine in machines)
        yield f"product of matrices, {' x '.join(map(str, shape))}", *rates
    cached = (f"{machine.cached / 1e9:.0f} GB/s" for machine in machines)
    yield "product of matrix and vector, in the cache", *cached
    yield "copy in memory", *(f"{machine.memory / 1e9:.0f} GB/s" for machine in machines)


SECTIONS = {
    "machine": Section(
        "The best rates of this machine", ("what", "1 thread", "2 threads"), machine_rows
    ),
    **speed_of_control.SECTIONS,
    **speed_of_training.SECTIONS,
    **(speed_on_gpu.SECTIONS if torch.cuda.is_available() else {}),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print some sections, or all."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "sections", nargs="*", metavar="section", help=f"{', '.join(SECTIONS)}; all if none"
    )
    names = parser.parse_args(arguments).sections or list(SECTIONS)
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        parser.error(f"section must be one of {', '.join(SECTIONS)}, got {', '.join(unknown)}")
    bench = Bench()
    for name in names:
        SECTIONS[name].show(bench)


if __name__ == "__main__":
    main()
