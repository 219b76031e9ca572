"""Published checkpoints: what is read off them, and what is refused."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from skvdd.diffusion.beso import gpt_from_state_dict, read_state_dict
from skvdd.nn.layout import RowLayout

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
CASES = ["d3il_w5_nogoal_lin", "beso_w4_goal_mlp"]


def read(name):
    return read_state_dict(GOLDEN / f"{name}_state.npz")


def build(state_dict, **arguments):
    return gpt_from_state_dict(state_dict, **({"n_heads": 2, "sigma_data": 0.5} | arguments))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def state_dict():
    """A state dict with its prefix cut off, to be damaged."""
    tensors = read("beso_w4_goal_mlp")
    return {name.removeprefix("inner_model."): tensor for name, tensor in tensors.items()}


# -- files ----------------------------------------------------------------------------------


def save_npz(tensors, path):
    np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})


SAVERS = {".npz": save_npz, ".safetensors": save_file, ".pth": torch.save, ".PT": torch.save}


@pytest.mark.parametrize("suffix", SAVERS)
def test_every_format_gives_the_same_tensors(suffix, tmp_path):
    tensors, path = read(CASES[0]), tmp_path / f"model{suffix}"
    SAVERS[suffix](tensors, path)
    assert same(read_state_dict(path), tensors)
    assert same(read_state_dict(str(path)), tensors)


@pytest.mark.parametrize("keys", [["state_dict"], ["model"], ["state_dict", "model"]])
def test_a_nested_state_dict_is_found(keys, tmp_path):
    content = tensors = read(CASES[0])
    for key in reversed(keys):
        content = {key: content, "epoch": 3}
    torch.save(content, tmp_path / "model.pth")
    assert same(read_state_dict(tmp_path / "model.pth"), tensors)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint '.*nothing\.pth'"):
        read_state_dict(tmp_path / "nothing.pth")


def test_another_ending_is_refused(tmp_path):
    path = tmp_path / "model.pkl"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"model\.pkl' is not a checkpoint: it ends in none of"):
        read_state_dict(path)


@pytest.mark.parametrize("content", [b"", b"something else", b"\x80\x04N.", bytes(range(256))])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth", ".pt"])
def test_a_foreign_file_is_refused(suffix, content, tmp_path):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"model\{suffix}'"):
        read_state_dict(path)


@pytest.mark.parametrize("content", [[1, 2], {"tok_emb.weight": 1.0}, {3: torch.zeros(2)}, None])
def test_what_is_no_state_dict_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"model\.pth' does not hold a state dict"):
        read_state_dict(tmp_path / "model.pth")


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_no_code_of_a_file_is_run(suffix, wrapped, tmp_path):
    path, sprung = tmp_path / f"model{suffix}", tmp_path / "sprung"
    if not wrapped:
        path.write_bytes(pickle.dumps(Trap(sprung)))
    elif suffix == ".npz":
        np.savez(path, trap=np.array([Trap(sprung)], dtype=object))
    else:
        torch.save({"trap": Trap(sprung)}, path)
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        read_state_dict(path)
    assert not sprung.exists()


# -- what is read off the tensors -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layout", "head_size"),
    [
        (CASES[0], RowLayout(n_states=4, window_size=5), None),
        (CASES[1], RowLayout(n_states=4, window_size=4, goal_dim=4), 100),
    ],
)
def test_sizes_are_read_off_the_tensors(name, layout, head_size):
    model = build(read(name))
    assert model.config == {
        "layout": layout,
        "n_actions": 2,
        "hidden_size": 24,
        "n_layers": 2,
        "n_heads": 2,
        "head_size": head_size,
        "joint": True,
        "n_goal_tokens": 1,
        "sigma_data": 0.5,
        "preconditioning": "edm",
        "boundary": 0.0,
        "target_min": None,
    }
    assert model.action_shape == (layout.window_size, 2)


def test_several_goals_have_a_token_each(state_dict):
    """Two goals and three steps: 2 * 3 + 2 + 1 tokens, 3 + 2 + 1 positions."""
    for name in state_dict:
        if name.endswith("mask"):
            state_dict[name] = torch.ones(1, 1, 9, 9)
    model = build(state_dict)
    assert model.layout == RowLayout(n_states=4, window_size=3, goal_dim=8)
    assert model.n_goal_tokens == 2
    answer = model(torch.zeros(1, 3, 4), torch.zeros(1, 3, 2), torch.ones(1), torch.zeros(1, 8))
    assert answer.shape == (1, 3, 2)


@pytest.mark.parametrize("prefix", ["", "inner_model.", "model.inner_model.", "module."])
def test_a_prefix_of_all_names_does_not_matter(prefix, state_dict):
    prefixed = {prefix + name: tensor for name, tensor in state_dict.items()}
    assert same(build(prefixed).state_dict(), build(state_dict).state_dict())


@pytest.mark.parametrize(("name", "window_size"), [(CASES[0], 5), (CASES[1], 4)])
def test_without_masks_the_window_is_an_argument(name, window_size):
    whole = read(name)
    maskless = {key: tensor for key, tensor in whole.items() if not key.endswith("mask")}
    with pytest.raises(ValueError, match="set window_size"):
        build(maskless)
    again = build(maskless, window_size=window_size)
    assert again.config == build(whole, window_size=window_size).config
    assert same(again.state_dict(), build(whole).state_dict())


def test_the_tensors_are_copied(state_dict):
    model = build(state_dict)
    state_dict["ln_f.bias"].fill_(7.0)
    assert (model.norm.bias != 7.0).all()


# -- refusals -------------------------------------------------------------------------------


def test_missing_and_unexpected_names_are_listed_in_order(state_dict):
    del state_dict["sigma_emb.bias"], state_dict["blocks.1.ln1.bias"]
    state_dict |= {"zeta": torch.zeros(1), "alpha": torch.zeros(1)}
    expected = (
        r"missing \['blocks\.1\.ln1\.bias', 'sigma_emb\.bias'\], unexpected \['alpha', 'zeta'\]"
    )
    with pytest.raises(ValueError, match=expected):
        build(state_dict)


def test_a_foreign_state_dict_is_refused():
    with pytest.raises(ValueError, match=r"missing \['action_emb\.bias', .*unexpected \['w'\]"):
        build({"w": torch.zeros(2)})
    with pytest.raises(ValueError, match="missing"):
        build({})


def test_a_block_that_was_left_out_is_missing(state_dict):
    gap = {name.replace("blocks.0", "blocks.2"): state_dict[name] for name in state_dict}
    with pytest.raises(ValueError, match=r"missing \['blocks\.0\.attn.*unexpected \['blocks\.2"):
        build(gap)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blocks.1.attn.key.weight", (24, 23)),
        ("blocks.0.mlp.0.bias", (24,)),
        ("action_pred.2.weight", (3, 100)),
        ("sigma_emb.weight", (24, 2)),
        ("tok_emb.bias", (25,)),
        ("pos_emb", (2, 6, 24)),
        ("ln_f.weight", (24, 1)),
        ("tok_emb.weight", (24,)),
        ("pos_emb", (6, 24)),
    ],
)
def test_a_wrong_shape_is_named(name, shape, state_dict):
    state_dict[name] = torch.zeros(shape)
    expected = rf"{name} has shape \({', '.join(map(str, shape))},?\)"
    with pytest.raises(ValueError, match=expected):
        build(state_dict)


@pytest.mark.parametrize("n_heads", [0, 5])
def test_heads_that_do_not_divide_the_width_are_refused(n_heads, state_dict):
    with pytest.raises(ValueError, match=f"n_heads={n_heads} does not divide the width 24"):
        build(state_dict, n_heads=n_heads)


@pytest.mark.parametrize("shapes", [[(1, 1, 10, 10), (1, 1, 9, 9)], [()] * 2, [(1, 1, 10, 9)] * 2])
def test_masks_that_do_not_fit_are_refused(shapes, state_dict):
    for i, shape in enumerate(shapes):
        state_dict[f"blocks.{i}.attn.mask"] = torch.ones(shape)
    with pytest.raises(ValueError, match="attention masks of shape"):
        build(state_dict)


def test_a_window_that_the_masks_contradict_is_refused(state_dict):
    with pytest.raises(ValueError, match="do not fit window_size=3"):
        build(state_dict, window_size=3)


@pytest.mark.parametrize("window_size", [0, 6])
def test_positions_that_do_not_reach_are_refused(window_size, state_dict):
    maskless = {key: tensor for key, tensor in state_dict.items() if not key.endswith("mask")}
    with pytest.raises(ValueError, match=f"6 positions do not fit {window_size} time steps"):
        build(maskless, window_size=window_size)
