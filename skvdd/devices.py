"""Where to compute, and on how many threads."""

from __future__ import annotations

import torch


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device that a ``device`` parameter means; ``"auto"`` prefers a GPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:  # as tensors name where they are
        return torch.device("cuda", torch.cuda.current_device())
    return device


def check_device(device: str | torch.device) -> None:
    """Raise a ValueError that names the parameter if ``device`` cannot be used here."""
    try:  # normalization works in float64, which Apple's GPUs do not have
        torch.empty(0, dtype=torch.float64, device=resolve_device(device))
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise ValueError(
            f"device={str(device)!r} cannot be used on this machine. Use 'auto', 'cpu', or a "
            "device that torch finds and that has float64."
        ) from error


def usable(device: str | torch.device) -> bool:
    """Say whether a device can be used on this machine."""
    try:
        check_device(device)
    except ValueError:
        return False
    return True
