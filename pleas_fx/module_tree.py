"""Reading, writing and running what a graph's nodes name inside a module."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Kind = TypeVar("Kind", bound=nn.Module)


def twin(module: Kind) -> Kind:
    """A copy with the same parameters, the very tensors; all else, buffers too, is its own."""
    return copied(module, {id(p): p for p in module.parameters()})


def copied(module: Kind, shared: Mapping[int, Tensor] = MappingProxyType({})) -> Kind:
    """A deep copy, also of one that keeps what it has computed with gradients (LeViT's biases).

    ``shared``: tensors by their identity, or what is to be in their place.
    """
    kept = (t for own in module.modules() for t in tree_leaves(vars(own)) if isinstance(t, Tensor))
    made = {id(t): t.detach() for t in kept if not t.is_leaf}
    return copy.deepcopy(module, {**made, **shared})


def forgetful(module: Kind) -> Kind:
    """The module without what it keeps until it is trained again, as LeViT its biases; the modes
    stay.
    """
    modes = [(own, own.training) for own in module.modules()]
    with suppress(Exception):  # anybody's code
        module.train()
    for own, mode in modes:
        own.training = mode
    return module


def discard(network: nn.Module) -> None:
    """Free the tensors of a network at once: graphs are cycles, which Python collects late."""
    for module in network.modules():
        module._parameters.clear()
        module._buffers.clear()


def attribute(root: nn.Module, key: str) -> Any:
    """What a dotted name stands for."""
    owner, _, leaf = key.rpartition(".")
    return getattr(root.get_submodule(owner), leaf)


def execute(
    root: nn.Module, op: str, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """The result of one node of a graph, given its arguments' values (no inputs or outputs)."""
    if op == "get_attr":
        return attribute(root, str(target))
    if op == "call_module":
        return root.get_submodule(target)(*args, **kwargs)
    if op == "call_method":
        return getattr(args[0], target)(*args[1:], **kwargs)
    return target(*args, **kwargs)


def container(root: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path, made of empty modules where it doesn't exist."""
    parent = root
    for part in path.split(".") if path else []:
        if part not in parent._modules:
            parent.add_module(part, nn.Module())
        parent = parent.get_submodule(part)
    return parent


def attach(root: nn.Module, path: str, module: nn.Module) -> None:
    """Register a submodule under a dotted path."""
    owner, _, leaf = path.rpartition(".")
    container(root, owner).add_module(leaf, module)


def register(root: nn.Module, key: str, tensor: Tensor, parameter: bool) -> None:
    """Put a new tensor under a dotted name."""
    owner, _, leaf = key.rpartition(".")
    if parameter:
        container(root, owner).register_parameter(leaf, nn.Parameter(tensor))
    else:
        container(root, owner).register_buffer(leaf, tensor)


def constants(module: nn.Module) -> set[str]:
    """Buffers that ``state_dict`` leaves out: made by the constructor, alike in all sources."""
    return {
        f"{path}.{leaf}" if path else leaf
        for path, own in module.named_modules(remove_duplicate=False)
        for leaf in own._non_persistent_buffers_set
    }


def kept_values(module: nn.Module) -> set[int]:
    """The ids of the buffers of real numbers that ``state_dict`` has: a source's own."""
    names = constants(module)
    buffers = module.named_buffers(remove_duplicate=False)
    return {id(b) for name, b in buffers if name not in names and b.is_floating_point()}


def leave_out(module: nn.Module, keys: Iterable[str]) -> None:
    """Have ``state_dict`` leave out those of these buffers that the module has."""
    buffers = {key for key, _ in module.named_buffers(remove_duplicate=False)}
    for key in buffers.intersection(keys):
        owner, _, leaf = key.rpartition(".")
        module.get_submodule(owner)._non_persistent_buffers_set.add(leaf)


def replace(module: nn.Module, key: str, value: Tensor) -> None:
    """Put a tensor, of any shape, in the place of a parameter or buffer."""
    owner, _, leaf = key.rpartition(".")
    parent = module.get_submodule(owner)
    if leaf in parent._parameters:
        parent._parameters[leaf] = nn.Parameter(value.contiguous())
    else:
        parent._buffers[leaf] = value.contiguous()
