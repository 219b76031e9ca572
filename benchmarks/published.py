"""The figures that the paper prints (Zhou et al., 2024), to stand beside ours.

``None`` where the paper has no figure. Standard deviations are over 4 seeds of the student; of
teachers, and of their one-step versions, the paper shows seed 0 alone.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """Mean and standard deviation in the paper."""

    mean: float
    std: float | None = None

    def __str__(self) -> str:
        """Return it as the paper prints it."""
        return f"{self.mean:.2f}" if self.std is None else f"{self.mean:.2f} ± {self.std:.2f}"


# Tables 1 and 2; the VDD rows of both agree for Avoiding, but for 0.72 ± 0.12 and 0.73 ± 0.09.
SUCCESS = {
    "avoiding": {
        "VP": Published(0.94),
        "VE": Published(0.96),
        "VP-1": Published(0.09),
        "VE-1": Published(0.84),
        "CD-VE": Published(0.82, 0.05),
        "CTM-VE": Published(0.93, 0.02),
        "VDD-VP": Published(0.92, 0.02),
        "VDD-VE": Published(0.95, 0.01),
        "EM": Published(0.65, 0.18),
        "IMC": Published(0.75, 0.08),
    }
}
ENTROPY = {
    "avoiding": {
        "VP": Published(0.89),
        "VE": Published(0.87),
        "VP-1": Published(0.25),
        "VE-1": Published(0.76),
        "CD-VE": Published(0.72, 0.02),
        "CTM-VE": Published(0.79, 0.04),
        "VDD-VP": Published(0.37, 0.01),
        "VDD-VE": Published(0.72, 0.12),
        "EM": Published(0.17, 0.13),
        "IMC": Published(0.82, 0.05),
    }
}
# Table 5, Euler-Maruyama with so many steps.
STEPS_SUCCESS = {"avoiding": {16: 0.96, 32: 0.96, 64: 0.95}}
STEPS_ENTROPY = {"avoiding": {16: 0.87, 32: 0.86, 64: 0.88}}
# Table 3, milliseconds for one action in state-based Pushing (RTX 3070, i7-12700), by NFE.
ACTION_MS = {
    "VE": {1: 4.03, 8: 10.38, 32: 32.14, 64: 60.64},
    "VP": {1: 2.15, 8: 8.25, 32: 29.47, 64: 55.62},
    "VDD": {1: 2.16},
}
# Table 7: parameters, and seconds for 1000 iterations (RTX 3070, i7-13700), by number of experts.
PARAMETERS = {1: 1_442_300, 2: 1_444_500, 4: 1_448_900, 8: 1_457_600, 16: 1_475_000}
SECONDS = {1: 64.48, 2: 70.19, 4: 74.62, 8: 106.98, 16: 166.54}
