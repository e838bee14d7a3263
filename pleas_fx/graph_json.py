"""A network as data: its graph, layers and tensors, without any code.

``encode_graph`` and ``decode_graph`` are inverse to each other. What may be named in the data is
in :mod:`pleas_fx.allowed`; reading executes nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from pleas_fx import allowed
from pleas_fx.constructors import Constructor, constructor
from pleas_fx.errors import ArtefactError
from pleas_fx.module_tree import container

VERSION = 1

Json = dict[str, Any]

_MALFORMED = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    RuntimeError,
    SyntaxError,
)  # what data of another form than we write leads to


@dataclass(frozen=True, slots=True)
class Entry:
    """One parameter or buffer, and the name under which its values are stored."""

    name: str
    stored: str  # its own name, or that of the tensor it is tied to
    kind: str  # parameter, buffer or constant (a buffer that state_dict leaves out)
    trainable: bool


@dataclass(frozen=True, slots=True)
class Stored:
    """A network taken apart: layers by path, entries of all tensors, and the distinct tensors."""

    layers: Mapping[str, Constructor]
    entries: tuple[Entry, ...]
    tensors: Mapping[str, Tensor]


# -- writing --------------------------------------------------------------------------------------


def take_apart(module: fx.GraphModule) -> Stored:
    """Layers and tensors of a network; tied tensors appear once.

    Raises:
        ArtefactError: a layer isn't one of torch.nn's.
    """
    called = [str(n.target) for n in module.graph.nodes if n.op == "call_module"]
    layers = {path: constructor(module.get_submodule(path), path) for path in dict.fromkeys(called)}
    owners: dict[Any, str] = {}
    tensors: dict[str, Tensor] = {}
    entries = []
    for name, tensor, kind in _tensors(module):
        stored = owners.setdefault((kind, *_place(tensor)), name)
        entries.append(Entry(name, stored, kind, tensor.requires_grad))
        tensors.setdefault(stored, tensor.detach().cpu().contiguous())
    return Stored(layers, tuple(entries), tensors)


def _tensors(module: fx.GraphModule) -> Iterator[tuple[str, Tensor, str]]:
    for name, parameter in module.named_parameters(remove_duplicate=False):
        yield name, parameter, "parameter"
    lasting = set(module.state_dict(keep_vars=True))
    known = set()
    for name, buffer in module.named_buffers(remove_duplicate=False):
        known.add(name)
        yield name, buffer, "buffer" if name in lasting else "constant"
    for target in dict.fromkeys(str(n.target) for n in module.graph.nodes if n.op == "get_attr"):
        owner, _, leaf = target.rpartition(".")
        value = getattr(module.get_submodule(owner), leaf)
        if not isinstance(value, Tensor):
            raise ArtefactError(f"{target} is a {type(value).__name__}, not a tensor")
        if target not in known and not isinstance(value, nn.Parameter):
            yield target, value, "constant"


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same memory read in the same way."""
    if not tensor.numel():
        return (id(tensor),)
    view = (tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.requires_grad)
    return (str(tensor.device), tensor.data_ptr(), *view)


def encode_graph(module: fx.GraphModule, stored: Stored) -> Json:
    """The graph, layers and tensor names of a network as JSON values."""
    if type(module.graph._codegen) is not fx.graph.CodeGen:
        raise ArtefactError("the network's inputs or outputs are repacked by torch.export")
    return {
        "format": "pleas_fx.graph",
        "version": VERSION,
        "layers": [
            {
                "path": path,
                "class": layer.kind,
                "args": [allowed.encode(a) for a in layer.args],
                "kwargs": {k: allowed.encode(v) for k, v in layer.kwargs},
            }
            for path, layer in stored.layers.items()
        ],
        "tensors": [
            {"name": e.name, "stored": e.stored, "kind": e.kind, "trainable": e.trainable}
            for e in stored.entries
        ],
        "nodes": [_encode_node(node) for node in module.graph.nodes],
    }


def _encode_node(node: fx.Node) -> Json:
    try:
        target = allowed.function_name(node.target) if node.op == "call_function" else node.target
        return {
            "name": node.name,
            "op": node.op,
            "target": target,
            "args": [allowed.encode(a) for a in node.args],
            "kwargs": {k: allowed.encode(v) for k, v in node.kwargs.items()},
        }
    except ArtefactError as error:
        raise ArtefactError(f"node {node.name}: {error}") from error


# -- reading --------------------------------------------------------------------------------------


def decode_graph(data: Json, tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    """The network that ``data`` describes, in eval mode.

    Raises:
        ArtefactError: the data isn't a graph, names something not allowed, or lacks a tensor.
    """
    try:
        if data["format"] != "pleas_fx.graph" or data["version"] != VERSION:
            raise ArtefactError(f"isn't a graph of version {VERSION}")
        root = _decode_modules(data["layers"])
        _attach_tensors(root, data["tensors"], tensors)
        graph = _decode_nodes(data["nodes"], root)
        graph.lint()
        return fx.GraphModule(root, graph, "MergedNetwork").eval()
    except _MALFORMED as error:
        raise ArtefactError(f"isn't a graph: {type(error).__name__}: {error}") from error


def _decode_modules(layers: list[Json]) -> nn.Module:
    root = nn.Module()
    for entry in layers:
        args = tuple(allowed.decode(a, {}) for a in entry["args"])
        kwargs = tuple((str(k), allowed.decode(v, {})) for k, v in entry["kwargs"].items())
        layer = Constructor(entry["class"], args, kwargs).build()
        owner, _, leaf = allowed.path(entry["path"]).rpartition(".")
        container(root, owner).add_module(leaf, layer)
    return root


def _attach_tensors(root: nn.Module, entries: list[Json], tensors: Mapping[str, Tensor]) -> None:
    shapes = {k: tuple(t.shape) for k, t in root.state_dict().items()}
    made: dict[str, Tensor] = {}
    for e in entries:
        entry = Entry(allowed.path(e["name"]), e["stored"], e["kind"], bool(e["trainable"]))
        if entry.stored not in tensors:
            raise ArtefactError(f"names the tensor {entry.stored}, which isn't stored")
        if shapes.get(entry.name) not in (None, tuple(tensors[entry.stored].shape)):
            raise ArtefactError(f"{entry.name} has another shape than its layer")
        key = f"{entry.kind} {entry.stored}"
        if key not in made:
            made[key] = _tensor(entry, tensors[entry.stored])
        owner, _, leaf = entry.name.rpartition(".")
        _register(container(root, owner), leaf, made[key], entry.kind)
    empty = [n for n, t in (*root.named_parameters(), *root.named_buffers()) if t.is_meta]
    if empty:
        raise ArtefactError(f"lacks the tensor {empty[0]}")


def _tensor(entry: Entry, values: Tensor) -> Tensor:
    own = values.clone()
    return nn.Parameter(own, requires_grad=entry.trainable) if entry.kind == "parameter" else own


def _register(owner: nn.Module, leaf: str, tensor: Tensor, kind: str) -> None:
    owner._parameters.pop(leaf, None)
    owner._buffers.pop(leaf, None)
    if kind == "parameter":
        assert isinstance(tensor, nn.Parameter)
        owner.register_parameter(leaf, tensor)
    elif kind in ("buffer", "constant"):
        owner.register_buffer(leaf, tensor, persistent=kind == "buffer")
    else:
        raise ArtefactError(f"{leaf} is a {kind!r}, not a parameter or buffer")


def _decode_nodes(nodes: list[Json], root: nn.Module) -> fx.Graph:
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}
    for entry in nodes:
        name = allowed.identifier(entry["name"])
        args = tuple(allowed.decode(a, made) for a in entry["args"])
        kwargs = {
            allowed.identifier(k): allowed.decode(v, made) for k, v in entry["kwargs"].items()
        }
        target = _decode_target(entry["op"], entry["target"], root)
        if target is getattr and (len(args) < 2 or args[1] not in allowed.ATTRIBUTES):
            raise ArtefactError(f"node {name} reads an attribute that isn't allowed")
        made[name] = graph.create_node(entry["op"], target, args, kwargs, name=name)
    return graph


def _decode_target(op: object, target: object, root: nn.Module) -> Any:
    if op == "call_function":
        return allowed.function(target)
    if op == "call_method":
        return allowed.method(target)
    if op == "placeholder":
        return allowed.identifier(target)
    if op == "output":
        return "output"
    if op == "call_module":
        root.get_submodule(allowed.path(target))
        return target
    if op == "get_attr":
        owner, _, leaf = allowed.path(target).rpartition(".")
        if not isinstance(getattr(root.get_submodule(owner), leaf), torch.Tensor):
            raise ArtefactError(f"reads {target!r}, which isn't a tensor")
        return target
    raise ArtefactError(f"has a node of kind {op!r}")
