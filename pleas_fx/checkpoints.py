"""Read weights from files without running what is in them, and put them into a network."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pleas_fx.errors import SourceError

SAFE = ".safetensors"
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".tar")
SUFFIXES = (SAFE, *PICKLED)
WRAPPERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")
COUNTER = "num_batches_tracked"


def read_tensors(path: Path) -> object:
    """What a ``.safetensors`` or ``.pt`` file holds; pickles are read with ``weights_only=True``.

    Raises:
        SourceError: the file is missing, broken, of another kind, or would run code.
    """
    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    if path.suffix == SAFE:
        return _read_safetensors(path)
    if path.suffix not in PICKLED:
        raise SourceError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: the answer is ours to give
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise SourceError(f"{path}: {_refusal(error)}") from error


def load_weights(model: nn.Module, path: Path) -> None:
    """Put the weights of a file into ``model``: every key, with its shape, or an error.

    Raises:
        SourceError: naming the first key that is missing, unexpected or of another shape.
    """
    state = _state_dict(read_tensors(path), path)
    own = model.state_dict()
    state = _own_part(_without_prefixes(state, own), own, path)
    _check_keys(state, own, path)
    try:
        model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise SourceError(f"{path}: {one_line(error)}") from error


def check_finite(model: nn.Module, name: str) -> None:
    """Refuse a network with NaN or Inf in a parameter or buffer, by its name."""
    for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            kind = "NaN" if bool(torch.isnan(tensor).any()) else "Inf"
            raise SourceError(f"{name}: {key!r} has {kind}")


def one_line(error: BaseException) -> str:
    """The first line of a message, after the kind of error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise SourceError(f"{path}: isn't a whole safetensors file ({one_line(error)})") from error


def _refusal(error: Exception) -> str:
    """Why ``torch.load`` gave up, in one line."""
    if "weights only" not in str(error).lower() and "GLOBAL" not in str(error):
        return f"can't be read as a PyTorch checkpoint ({one_line(error)})"
    found = re.search(r"GLOBAL (\S+)", str(error))
    what = f" ({found[1]})" if found else ""
    return f"isn't a file of tensors only{what} and was not loaded; save model.state_dict()"


def _state_dict(found: object, path: Path) -> dict[str, Tensor]:
    for _ in WRAPPERS:
        inner = _unwrapped(found)
        if inner is None:
            break
        found = inner
    if not isinstance(found, Mapping) or not found:
        raise SourceError(
            f"{path}: expected a state dict, found {type(found).__name__}"
            + (" without entries" if isinstance(found, Mapping) else "")
        )
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise SourceError(f"{path}: entry {key!r} is {type(value).__name__}, not a tensor")
    return dict(found)


def _unwrapped(found: object) -> object | None:
    """The state dict inside a training checkpoint, None when ``found`` isn't one.

    By the usual names, or the only entry that holds tensors by name.
    """
    if not isinstance(found, Mapping):
        return None
    usual = [found[k] for k in WRAPPERS if isinstance(found.get(k), Mapping)]
    others = [] if usual else [value for value in found.values() if _holds_tensors(value)]
    return usual[0] if usual else others[0] if len(others) == 1 else None


def _holds_tensors(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _without_prefixes(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what DataParallel and torch.compile put in front of every key."""
    for prefix in PREFIXES:
        everywhere = all(key.startswith(prefix) for key in state)
        if everywhere and not any(key.startswith(prefix) for key in own):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _own_part(state: dict[str, Tensor], own: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The network's own where a training script keeps more, all of it behind one prefix.

    An attribute of a Lightning module, say, beside losses and metrics.
    """
    wanted = [key for key in own if not key.endswith(COUNTER)]
    if not wanted or wanted[0] in state:
        return state
    ends = [key.removesuffix(wanted[0]) for key in state if key.endswith("." + wanted[0])]
    found = [prefix for prefix in ends if all(prefix + key in state for key in wanted)]
    if len(found) > 1:
        raise SourceError(
            f"{path}: holds the network more than once, behind {' and '.join(map(repr, found))}; "
            "save the one that is meant"
        )
    if not found:
        return state
    (prefix,) = found
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _check_keys(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    # Checkpoints from before PyTorch 0.4.1 have no batch counters; nothing reads them in eval mode.
    missing = [k for k in own if k not in state and not k.endswith(COUNTER)]
    unexpected = [k for k in state if k not in own]
    if missing:
        raise SourceError(f"{path}: {missing[0]!r} is missing{_more(missing, unexpected)}")
    if unexpected:
        raise SourceError(f"{path}: {unexpected[0]!r} isn't in the network{_more([], unexpected)}")
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise SourceError(
                f"{path}: {key!r} has shape {tuple(value.shape)}, "
                f"the network's has {tuple(own[key].shape)}"
            )


def _more(missing: list[str], unexpected: list[str]) -> str:
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected, first {unexpected[0]!r}")
    return f" ({', '.join(parts)})"
