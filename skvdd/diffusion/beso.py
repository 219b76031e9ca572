"""Read published checkpoints of the transformer denoiser; nothing in a file is executed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from skvdd.diffusion.gpt import GPTDenoiser
from skvdd.nn.layout import RowLayout

# Modules outside the blocks, published name -> name here; likewise inside a block.
MODULES = {
    "tok_emb": "state_embedding",
    "action_emb": "action_embedding",
    "sigma_emb": "noise_embedding",
    "ln_f": "norm",
}
BLOCK_MODULES = {
    "ln1": "norm",
    "ln2": "feed_forward.0",
    "mlp.0": "feed_forward.1",
    "mlp.2": "feed_forward.3",
    "attn.proj": "projection",
}
ATTENTION = ("attn.query", "attn.key", "attn.value")  # one matrix here, in this order
MASK = re.compile(r"blocks\.\d+\.attn\.mask")


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint by name.

    Parameters
    ----------
    path : path-like
        A ``.npz``, ``.safetensors``, ``.pth`` or ``.pt`` file. The tensors may lie under a key
        ``"state_dict"`` or ``"model"``.

    Returns
    -------
    dict of str to Tensor
        On the CPU.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is none of these, is damaged, or holds something else than named tensors, code in
        particular.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {str(path)!r}")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{str(path)!r} is not a checkpoint: it ends in none of {sorted(READERS)}")
    try:
        content = reader(path)
    except Exception as error:  # what a damaged file raises depends on the bytes that are wrong
        raise ValueError(f"{str(path)!r} is not a readable checkpoint: {error}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not _is_state_dict(content):
        raise ValueError(f"{str(path)!r} does not hold a state dict: names with a tensor each")
    return dict(content)


def _read_npz(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def _read_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


READERS: dict[str, Callable[[Path], Any]] = {
    ".npz": _read_npz,
    ".safetensors": load_file,
    ".pth": _read_torch,
    ".pt": _read_torch,
}


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )


def gpt_from_state_dict(
    state_dict: Mapping[str, Tensor],
    *,
    n_heads: int,
    sigma_data: float,
    window_size: int | None = None,
) -> GPTDenoiser:
    """Build the denoiser that a published state dict belongs to.

    Sizes are read off the tensors. With ``T`` time steps and ``G`` goals, the sequence has
    ``2 T + G + 1`` tokens, the size of the attention mask, and ``T + G + 1`` positions.

    Parameters
    ----------
    state_dict : mapping of str to Tensor
        Names and tensors, as the published code saves them; a prefix of all names is ignored.
    n_heads : int
        Number of attention heads, which no tensor shows.
    sigma_data : float
        Standard deviation of the data in the preconditioning, which no tensor shows.
    window_size : int, default=None
        Number of time steps ``T``; needed where the state dict is without attention masks.

    Returns
    -------
    GPTDenoiser
        With ``joint=True``, on the CPU.

    Raises
    ------
    ValueError
        If names are missing or unexpected, shapes do not fit together, or an argument does not
        fit the tensors.
    """
    tensors = _without_prefix(state_dict)
    n_layers = _check_names(tensors)
    masks = [tensors.pop(name) for name in sorted(tensors) if MASK.fullmatch(name)]
    _check_axes(tensors)
    n_steps, n_goals = _sequence(tensors["pos_emb"], masks, window_size)
    hidden_size, n_states = tensors["tok_emb.weight"].shape
    if n_heads < 1 or hidden_size % n_heads:
        raise ValueError(f"n_heads={n_heads} does not divide the width {hidden_size} of a token")
    model = GPTDenoiser(
        layout=RowLayout(n_states, n_steps, n_goals * n_states),
        n_actions=tensors["action_emb.weight"].shape[1],
        hidden_size=hidden_size,
        n_layers=n_layers,
        n_heads=n_heads,
        sigma_data=sigma_data,
        head_size=len(tensors["action_pred.0.weight"]) if _has_mlp_head(tensors) else None,
        joint=True,
        n_goal_tokens=max(n_goals, 1),
    )
    _check_shapes(tensors, model)
    translated = _translated(tensors, n_layers, n_steps + n_goals, n_goals > 0)
    model.load_state_dict({**model.state_dict(), **translated})
    return model


def _without_prefix(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut off what stands before ``tok_emb.weight``, such as ``model.inner_model.``."""
    anchor = "tok_emb.weight"
    prefixes = [name.removesuffix(anchor) for name in state_dict if name.endswith(anchor)]
    prefix = min(prefixes, key=len, default="")
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items()}


def _has_mlp_head(names: Iterable[str]) -> bool:
    return any(name.startswith("action_pred.0.") for name in names)


def _block_names(index: int) -> list[str]:
    return [f"blocks.{index}.{module}" for module in (*BLOCK_MODULES, *ATTENTION)]


def _check_names(tensors: Mapping[str, Tensor]) -> int:
    """Return the number of layers, having checked that exactly their names are there."""
    indices = {match[1] for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}
    n_layers = max(len(indices), 1)
    head = ["action_pred.0", "action_pred.2"] if _has_mlp_head(tensors) else ["action_pred"]
    blocks = [name for index in range(n_layers) for name in _block_names(index)]
    modules = [*MODULES, *head, *blocks]
    expected = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    expected.add("pos_emb")
    masks = {f"blocks.{index}.attn.mask" for index in range(n_layers)}
    missing = sorted(expected - tensors.keys())
    unexpected = sorted(tensors.keys() - expected - masks)
    if missing or unexpected:
        raise ValueError(
            "the state dict is not that of the published transformer: "
            f"missing {missing}, unexpected {unexpected}"
        )
    return n_layers


def _check_axes(tensors: Mapping[str, Tensor]) -> None:
    """Check the number of axes, without which no size can be read off."""
    for name, tensor in tensors.items():
        *module, kind = name.split(".")
        is_matrix = kind == "weight" and not module[-1].startswith("ln")
        n_axes = 3 if name == "pos_emb" else 1 + is_matrix
        if tensor.ndim != n_axes:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, not {n_axes} axes")


def _sequence(position: Tensor, masks: list[Tensor], n_steps: int | None) -> tuple[int, int]:
    """Return the numbers of time steps and of goals."""
    n_positions = position.shape[1]
    shapes = {tuple(mask.shape) for mask in masks}
    if shapes:
        n_tokens = max(shapes)[-1] if all(shapes) else 0
        found = n_tokens - n_positions
        if shapes != {(1, 1, n_tokens, n_tokens)} or n_steps not in (None, found):
            raise ValueError(
                f"attention masks of shape {sorted(shapes)} and {n_positions} positions do not "
                f"fit window_size={n_steps}"
            )
        n_steps = found
    if n_steps is None:
        raise ValueError(
            "the state dict has no attention mask that shows the window: set window_size"
        )
    n_goals = n_positions - n_steps - 1
    if n_steps < 1 or n_goals < 0:
        raise ValueError(
            f"{n_positions} positions do not fit {n_steps} time steps: there are {n_goals} goals"
        )
    return n_steps, n_goals


def _check_shapes(tensors: Mapping[str, Tensor], model: GPTDenoiser) -> None:
    """Compare with the shapes that the sizes of a few tensors imply for all of them."""
    expected = _shapes(model)
    wrong = [
        f"{name} has shape {tuple(tensors[name].shape)}, not {expected[name]}"
        for name in sorted(tensors)
        if tuple(tensors[name].shape) != expected[name]
    ]
    if wrong:
        raise ValueError("the state dict does not fit together: " + "; ".join(wrong))


def _shapes(model: GPTDenoiser) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the published tensors of a model, by published name."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    hidden_size = model.config["hidden_size"]
    n_positions, _ = own["position"]
    shapes: dict[str, tuple[int, ...]] = {"pos_emb": (1, n_positions + 1, hidden_size)}
    for index in range(len(model.blocks)):
        for module in ATTENTION:
            shapes[f"blocks.{index}.{module}.weight"] = (hidden_size, hidden_size)
            shapes[f"blocks.{index}.{module}.bias"] = (hidden_size,)
    for published, name in _renaming(own, len(model.blocks)).items():
        shapes[published] = own[name]
    return shapes


def _renaming(own: Iterable[str], n_layers: int) -> dict[str, str]:
    """Return published name -> own name of all tensors that only change their name."""
    modules = dict(MODULES)
    for index in range(n_layers):
        for published, name in BLOCK_MODULES.items():
            modules[f"blocks.{index}.{published}"] = f"blocks.{index}.{name}"
    renaming = {
        f"{published}.{kind}": f"{name}.{kind}"
        for published, name in modules.items()
        for kind in ("weight", "bias")
    }
    heads = [name for name in own if name.startswith("output.")]
    return renaming | {name.replace("output", "action_pred"): name for name in heads}


def _translated(
    tensors: Mapping[str, Tensor], n_layers: int, n_positions: int, has_goals: bool
) -> dict[str, Tensor]:
    """Return the state dict of `GPTDenoiser`."""
    head = [n.replace("action_pred", "output") for n in tensors if n.startswith("action_pred.")]
    renaming = _renaming(head, n_layers)
    own = {name: tensors[published] for published, name in renaming.items()}
    own["position"] = tensors["pos_emb"][0, :n_positions]  # the last one is never used
    for kind in ("weight", "bias"):
        for index in range(n_layers):
            parts = [tensors[f"blocks.{index}.{module}.{kind}"] for module in ATTENTION]
            own[f"blocks.{index}.qkv.{kind}"] = torch.cat(parts)
        if has_goals:  # goals are embedded as states are
            own[f"goal_embedding.{kind}"] = own[f"state_embedding.{kind}"]
    return own
