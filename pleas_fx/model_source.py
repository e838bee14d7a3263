"""Write a network as Python source that a person can read and torch alone can run."""

from __future__ import annotations

from torch import fx

from pleas_fx.constructor_source import BRACKETS, HELPER, Parts, quoted
from pleas_fx.forward_source import forward_source
from pleas_fx.graph_json import Stored

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
{helper}

class MergedNetwork(nn.Module):
    """{title}"""

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
    parts = Parts(stored)
    constructor = parts.constructor()
    forward, imports = forward_source(module.graph, parts.access)
    inputs = ", ".join(str(n.target) for n in module.graph.nodes if n.op == "placeholder")
    header = HEADER.format(
        title=_plain(title),
        inputs=inputs,
        outputs=_plain(outputs),
        imports="".join(f"{line}\n" for line in imports),
        helper=HELPER if BRACKETS["plain"][0] in constructor else "",
    )
    tied = {e.name: e.stored for e in stored.entries if e.name != e.stored}
    rows = "".join(f"    {quoted(name)}: {quoted(other)},\n" for name, other in tied.items())
    table = f"\n\nTIED = {{  # tensors that are another one\n{rows}}}\n" if tied else ""
    end = LOAD + (TIED_END if tied else PLAIN_END)
    return f"{header}{constructor}\n{forward}{table}{end}"


def _plain(title: str) -> str:
    """One line that ends no docstring."""
    return " ".join(title.replace("\\", "/").replace('"', "'").split())
