"""What can be wrong with a teacher, in plain words, read off the figures of `verify_teacher`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

HIGH = 10.0  # from here on noise hides standardized actions: higher levels tell nothing of them
STAND_IN = 2.0  # from here on the slope of the score hardly depends on the actions

# A figure is wrong if it leaves its tolerance by more than ERRORS standard errors over the rows.
# Of the 200 figures of a teacher of eight dimensions, one does so by chance in 10 000 calls.
ERRORS = 5.0
# The tolerances are for networks after some hundred iterations: their variance in a state may be
# WIDTH times that of the data or a WIDTH-th of it, their noise prediction wrong by NETWORK of its
# size. What FACTOR and SLOPE let pass changes samples less than that.
FACTOR, WIDTH, NETWORK, SLOPE = 1.25, 8.0, 0.07, 2.0
REPEATED = 1e-3  # sums in another order make 1e-6, dropout 1e-1
NEIGHBORS = 1e-2  # bfloat16 in blocks of another size makes 3e-3, statistics of a batch 1e-1
STD, MEAN = (0.1, 5.0), 5.0  # of standardized actions

MISTAKES = {  # what a function may return instead of the score, and its factor to the score
    "The sign is wrong. Return the negative score.": lambda sigma: -1.0,
    "This is epsilon. Return -epsilon / sigma.": lambda sigma: -sigma,
    "This is -epsilon. Divide it by sigma.": lambda sigma: sigma,
    "This is the score with respect to a_t, not to x = a_t / sqrt(alpha_bar). Multiply it by "
    "sqrt(alpha_bar) = 1 / sqrt(1 + sigma**2).": lambda sigma: np.sqrt(1.0 + sigma**2),
    "This is denoised - noisy actions. Divide it by sigma**2.": lambda sigma: sigma**2,
}
RAW = "This is the score with respect to raw actions. Multiply it by action_scale."
CLEAN = "This is the clean action. Return (clean - actions) / sigma**2."
TIME = (
    "Time runs the wrong way, or prediction_type is another: at low noise actions move, at high "
    "noise they do not return. Count timesteps from the other end; a velocity with data at time 0 "
    "is -velocity(a, 1 - t, s)."
)
CONSTANT = (
    "The factor is the same at all noise levels. Is this the score with respect to standardized "
    "actions, and is action_scale that of the teacher's training?"
)
OTHER = (
    "The factor depends on the noise level. Check prediction_type, the direction of time, and that "
    "the function takes standardized actions and sigma, by action_mean and action_scale."
)
MEANS = (
    "The teacher has learned other actions than these, or too little, or is asked wrongly. Check "
    "action_mean and action_scale, the columns, order and units of X, that clip is not below the "
    "actions, prediction_type, and the direction of time."
)


def unstable(repeated: float, neighbors: float, tweedie: float) -> list[str]:
    """Return the fault of answers that differ where they should not."""
    if not repeated <= REPEATED:
        return [
            f"Asked twice, the score differs by {repeated:.2%}. Call network.eval(), and draw no "
            "random numbers in it."
        ]
    if not neighbors <= NEIGHBORS:
        return [
            f"Asked among other actions, the score differs by {neighbors:.1%}. Call "
            "network.eval(), and repeat states by repeat_interleave, not by repeat."
        ]
    if not tweedie <= NEIGHBORS:
        return [f"denoise differs by {tweedie:.1%} from actions + sigma**2 * score. Use those."]
    return []


def strange_actions(actions: Array, drawn: bool) -> list[str]:
    """Return the fault of actions that cannot be standardized ones."""
    with np.errstate(all="ignore"):  # a wrong score draws infinities
        mean, std = np.abs(actions.mean(axis=0)).max(), actions.std(axis=0)
    if STD[0] < np.sqrt((std**2).mean()) and std.max() < STD[1] and mean < MEAN:
        return []
    what = "The actions that teacher.sample draws" if drawn else "y looks like raw actions: they"
    return [
        f"{what} have standard deviations of {span(std)} and means of up to {mean:.3g} in the "
        "teacher's unit, (raw - action_mean) / action_scale; about 1 and 0 are usual. Set "
        "action_mean and action_scale to those of the teacher's training."
    ]


def wrong_scores(
    figures: dict[str, Array], action_scale: Array, known: bool, drawn: bool
) -> list[str]:
    """Return the fault of scores that do not grow with the distance as they must."""
    sigma, variance, (ratio, error) = figures["sigma"], figures["variance"], figures["scale"]
    right = variance + sigma**2
    low = right / (WIDTH * variance + sigma**2) / FACTOR - ERRORS * error
    high = right / (variance / WIDTH + sigma**2) * FACTOR + ERRORS * error
    used = known | (sigma[:, 0] >= min(STAND_IN, sigma[-1, 0]))  # all, if the actions are known
    off = ~((ratio >= low) & (ratio <= high)) & used[:, None]
    if not off.any():
        return []
    level = np.flatnonzero(off.any(axis=1))[-1]
    dims, total = np.flatnonzero(off[level]), off.shape[1]
    where = "" if len(dims) == total else f" in dimensions {[*map(int, dims)]} of {total}"
    causes = _named_causes(ratio[used], sigma[used], variance, action_scale, drawn)
    if known and (figures["score as clean"][0] < FACTOR).all():
        causes.append(CLEAN)
    if not causes:
        top = level == len(sigma) - 1
        causes = [_likely_cause(ratio[used], sigma[used], variance, dims) if top else MEANS]
    return [
        f"At noise level {sigma[level, 0]:.3g}, the score is {span(ratio[level, dims])} times "
        f"what it must be{where}, -(x - m) / (s**2 + sigma**2). {' Or: '.join(causes)}"
    ]


def _named_causes(
    ratio: Array, sigma: Array, variance: Array, action_scale: Array, drawn: bool
) -> list[str]:
    """Return the mistakes that explain the factors (L, m) of the scores, if any do."""
    weight = sigma**2 / (variance + sigma**2)  # at low noise factors depend on the actions
    factors = {text: factor(sigma) for text, factor in MISTAKES.items()} | {RAW: 1 / action_scale}
    misfits = {text: _misfit(ratio / factor, weight) for text, factor in factors.items()}
    # Actions drawn by a wrong score have another variance, which changes factors too.
    close, limit = (0.3, 2.0 * np.log(FACTOR)) if drawn else (0.05, np.log(FACTOR))
    limit = min(limit, _misfit(ratio, weight) - 1e-9, min(misfits.values()) + close)
    return [text for text, misfit in misfits.items() if misfit <= limit]


def _likely_cause(ratio: Array, sigma: Array, variance: Array, dims: NDArray[np.integer]) -> str:
    """Return what the change of the factors (L, m) with the noise level points to."""
    weight = sigma**2 / (variance + sigma**2)
    first, last = np.median(ratio[[0, -1]], axis=1)
    strength = np.median(ratio * weight / sigma**2, axis=1)
    if (first > 4.0 and last < 0.35) or strength[-1] > strength[0] > 0.0:
        return TIME
    change = (ratio / ratio[-1])[(weight > 0.2).all(axis=1)][:, dims]
    constant = len(change) > 2 and change.min() > 1.0 / FACTOR and change.max() < FACTOR
    return CONSTANT if constant else OTHER


def _misfit(ratio: Array, weight: Array) -> float:
    """Return the mean distance of a ratio from 1, in logarithms; another sign is far."""
    far = np.where(ratio > 0.0, np.abs(np.log(np.abs(ratio) + 1e-30)), 10.0)
    return float(np.average(far, weights=weight))


def wrong_means(figures: dict[str, Array]) -> list[str]:
    """Return the fault of denoised actions that are not the means of the clean ones."""
    sigma = figures["sigma"]
    far = np.where(sigma <= HIGH, 0.5 * figures["pooled"] + NETWORK * sigma, np.inf)
    limits = {  # lowest, right and highest
        "center": (-far, 0.0, far),
        "slope": (1.0 / SLOPE, 1.0, SLOPE),
        "loss": (0.0, 1.0, FACTOR + figures["network"][0]),
        "moved": (0.0, 1.0, FACTOR**2),
    }
    parts = []
    for name, (low, right, high) in limits.items():
        value, error = figures[name]
        off = (value < low - ERRORS * error) | (value > high + ERRORS * error)
        if off.any():
            at = np.unravel_index(np.where(off, np.abs(value - right), -1.0).argmax(), off.shape)
            parts.append(f"{name} {value[at]:.3g} at noise level {sigma[at[0], 0]:.3g}")
    if not parts:
        return []
    return [
        f"Denoised actions are not the means of the clean ones: {', '.join(parts)}; right are "
        f"center 0, slope 1, loss and moved at most 1. {MEANS}"
    ]


def raise_faults(faults: list[str]) -> None:
    """Raise a ValueError with a line for each fault, if there are any."""
    if faults:
        raise ValueError("\n- ".join(["verify_teacher found:", *faults]))


def span(values: Array, digits: str = ".3g") -> str:
    """Return the range of some figures in words."""
    values = values[~np.isnan(values)]
    if not len(values):
        return "-"
    low, high = format(values.min(), digits), format(values.max(), digits)
    return low if low == high else f"{low} to {high}"
