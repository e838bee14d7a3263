"""Write a network as Python source that a person can read and torch alone can run."""

from __future__ import annotations

import math
import re
from types import ModuleType
from typing import Any

import torch
from torch import fx

from pleas_fx.allowed import function_name
from pleas_fx.errors import ArtefactError
from pleas_fx.graph_json import Entry, Stored

HEADER = '''"""{title}

Written by pleas_fx; needs torch and nothing else:

    from model import load
    network = load("model.safetensors")
    {outputs} = network({inputs})
"""

import json
{imports}from pathlib import Path

import torch
from torch import nn


class MergedNetwork(nn.Module):
    """{title}"""

'''

AT = '''
    def _at(self, path):
        """The submodule of a dotted path, made when there is none."""
        module = self
        for name in path.split("."):
            if name not in module._modules:
                module.add_module(name, nn.Module())
            module = module._modules[name]
        return module
'''

LOAD = '''

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}


def load(path=Path(__file__).with_name("model.safetensors")):
    """The network with the weights of a safetensors file: a JSON header, then the raw values."""
    data = Path(path).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    stored = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            begin, end = (start + offset for offset in entry["data_offsets"])
            stored[name] = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
            if begin < end:
                values = torch.frombuffer(bytearray(data[begin:end]), dtype=stored[name].dtype)
                stored[name] = values.reshape(entry["shape"])
'''

PLAIN_END = """    with torch.device("meta"):  # without storage: every tensor comes from the file
        network = MergedNetwork().eval()
    network.load_state_dict(stored, assign=True)
    return network
"""

TIED_END = """    for name, other in TIED.items():
        stored[name] = stored[other]
    with torch.device("meta"):  # without storage: every tensor comes from the file
        network = MergedNetwork().eval()
    network.load_state_dict(stored, assign=True)
    for name, other in TIED.items():
        (owner, leaf), (first, kept) = (n.rpartition(".")[::2] for n in (name, other))
        shared = getattr(network.get_submodule(first), kept)
        setattr(network.get_submodule(owner), leaf, shared)
    return network
"""


def model_source(module: fx.GraphModule, stored: Stored, title: str, outputs: str) -> str:
    """The source of ``model.py``.

    Raises:
        ArtefactError: a function of the network has no name in source.
    """
    forward, imports = _forward(module.graph)
    inputs = ", ".join(str(n.target) for n in module.graph.nodes if n.op == "placeholder")
    header = HEADER.format(title=_plain(title), inputs=inputs, outputs=outputs, imports=imports)
    tied = {e.name: e.stored for e in stored.entries if e.name != e.stored}
    rows = "".join(f"    {_quoted(name)}: {_quoted(other)},\n" for name, other in tied.items())
    table = f"\n\nTIED = {{  # tensors that are another one\n{rows}}}\n" if tied else ""
    at = AT if any("." in n for n in _added(stored)) else ""
    end = LOAD + (TIED_END if tied else PLAIN_END)
    return f"{header}{_constructor(stored)}{at}\n{forward}{table}{end}"


def _plain(title: str) -> str:
    """One line that ends no docstring."""
    return " ".join(title.replace("\\", "/").replace('"', "'").split())


def _quoted(name: str) -> str:
    return f'"{name}"'  # names of modules hold neither quotes nor backslashes, see `allowed.path`


def _added(stored: Stored) -> list[str]:
    """What the constructor makes: layers, and the tensors outside of layers."""
    inside = tuple(f"{path}." for path in stored.layers)
    return [*stored.layers, *(e.name for e in stored.entries if not e.name.startswith(inside))]


def _constructor(stored: Stored) -> str:
    entries = {e.name: e for e in stored.entries}
    lines = ["def __init__(self):", "    super().__init__()"]
    for path in _added(stored):
        parent, _, leaf = path.rpartition(".")
        owner = f"self._at({_quoted(parent)})" if parent else "self"
        if path not in stored.layers:
            statement = _bare_tensor(owner, leaf, entries[path], stored)
        elif leaf.isidentifier():
            statement = f"{owner}.{leaf} = {stored.layers[path]}"
        else:
            statement = f"{owner}.add_module({_quoted(leaf)}, {stored.layers[path]})"
        lines.append("    " + statement)
    return "".join(f"    {line}\n" for line in lines)


def _bare_tensor(owner: str, leaf: str, entry: Entry, stored: Stored) -> str:
    tensor = stored.tensors[entry.stored]
    shape = ", ".join(map(str, tensor.shape)) if tensor.dim() else "()"
    dtype = "" if tensor.dtype is torch.float32 else f", dtype={tensor.dtype}"
    empty = f"torch.empty({shape}{dtype})"
    if entry.kind != "parameter":
        return f"{owner}.register_buffer({_quoted(leaf)}, {empty})"
    frozen = "" if entry.trainable else ", requires_grad=False"
    return f"{owner}.register_parameter({_quoted(leaf)}, nn.Parameter({empty}{frozen}))"


# -- forward --------------------------------------------------------------------------------------


def _forward(graph: fx.Graph) -> tuple[str, str]:
    """torch.fx's own source of the graph, without its clean-up, and what it imports."""
    plain = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copies[node] = plain.node_copy(node, lambda n: copies[n])
        copies[node].type = None  # annotations would need imports
    code = plain.python_code("self")
    source = re.sub(r";  [\w = ]+ = None$", "", code.src.strip(), flags=re.MULTILINE)
    for shown, readable in _readable(plain):
        source = source.replace(shown, readable)
    lines = [_import(name, value) for name, value in code.globals.items() if _used(name, source)]
    imports = "".join(f"{line}\n" for line in sorted(filter(None, lines)))
    body = "".join(f"    {line}\n" if line.strip() else "\n" for line in source.split("\n"))
    return body, imports


def _readable(graph: fx.Graph) -> list[tuple[str, str]]:
    """What torch.fx writes in a roundabout way, and how a person would."""
    pairs = {}
    for node in graph.nodes:
        if node.op == "call_module" and not all(p.isidentifier() for p in node.target.split(".")):
            shown = fx.graph._format_target("self", node.target)
            pairs[f"{shown}("] = f"self.get_submodule({_quoted(node.target)})("
        elif node.op == "call_function" and not _is_builtin(node.target):
            shown, public = (
                torch.fx.node._get_qualified_name(node.target),
                function_name(node.target),
            )
            pairs[f" {shown}("] = (
                " " + public.replace("torch.nn.functional.", "nn.functional.") + "("
            )
    return [(shown, readable) for shown, readable in pairs.items() if shown != readable]


def _is_builtin(function: Any) -> bool:
    return getattr(function, "__module__", "") in ("_operator", "builtins")


def _used(name: str, source: str) -> bool:
    return name != "torch" and re.search(rf"\b{re.escape(name)}\b", source) is not None


def _import(name: str, value: Any) -> str:
    if value is getattr:
        return ""
    if isinstance(value, ModuleType):
        return f"import {value.__name__}" + (f" as {name}" if name != value.__name__ else "")
    if isinstance(value, float):
        return f"from math import {'nan' if math.isnan(value) else 'inf'}"
    if value is torch.device:
        return "from torch import device"
    public = function_name(value)
    if not public.startswith("operator."):
        raise ArtefactError(f"{public} has no name in source")
    return f"from operator import {public.removeprefix('operator.')} as {name}"
