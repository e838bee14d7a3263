"""model.py reads like code a person wrote, and computes exactly what the graph does."""

from __future__ import annotations

import ast
import gc
import re
import tempfile
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import save
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from passes.trace import trace
from pleas_fx import forward_source
from pleas_fx.graph_json import take_apart
from pleas_fx.model_source import model_source
from tests.networks import STORABLE, Network, noise
from tests.random_networks import RandomNetwork, networks
from tests.randomise import seeded
from tests.results import outputs, same


class Lanes(nn.Module):
    """Two lanes in nested containers, with a parameter and a buffer beside the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem_AB = nn.Conv2d(3, 4, 1)
        block = nn.ModuleDict({f"conv_{s}": nn.Conv2d(4, 4, 1) for s in "AB"})
        block["0_A"] = nn.BatchNorm2d(4)
        self.stages = nn.ModuleList([nn.ModuleList([block])])
        block.scale = nn.Parameter(torch.ones(4, 1, 1, dtype=torch.float64), requires_grad=False)
        block.register_buffer("shift", torch.zeros(()))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        block = self.stages[0][0]
        x = self.stem_AB(image)
        a, b = block["conv_A"](x), block["conv_B"](x)
        a = block["0_A"](a).relu() + a
        return (a * block.scale + block.shift)[:, 0, ...], torch.cat([b, x], 1)[..., ::2]


class Awkward(nn.Module):
    """Names that nn.ModuleDict keeps for itself, that aren't identifiers, and that hide others."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("0", nn.Conv2d(3, 3, 1))
        self.inner = nn.Module()
        self.inner.add_module("items", nn.Conv2d(3, 3, 1))
        self.inner.add_module("a b", nn.Conv2d(3, 3, 1))
        self.inner.register_parameter("1", nn.Parameter(torch.ones(1)))
        self.only = nn.ParameterList([nn.Parameter(torch.ones(1))])

    def forward(self, nn: Tensor, x1: Tensor) -> Tensor:
        x = self.get_submodule("0")(nn) + x1
        x = self.inner.get_submodule("items")(x) * getattr(self.inner, "1")
        x = torch.nn.functional.interpolate(self.inner.get_submodule("a b")(x), scale_factor=2.0)
        x = torch.linalg.vector_norm(x, dim=1).clamp(-float("inf"), 3.0)
        return torch.special.expit(torch.fft.fft2(x).abs()) * self.only[0]


def graph_of(module: nn.Module) -> fx.GraphModule:
    """A network as the compiler traces it."""
    return fx.symbolic_trace(seeded(lambda: module, 0)).eval()


def source_of(module: fx.GraphModule) -> str:
    """The source of its model.py."""
    return model_source(module, take_apart(module), "A title.", "y")


def executed(module: fx.GraphModule, folder: Path) -> nn.Module:
    """The network that the source makes of the stored tensors."""
    (folder / "model.safetensors").write_bytes(save(dict(take_apart(module).tensors)))
    namespace: dict[str, Any] = {"__name__": "model", "__file__": str(folder / "model.py")}
    exec(compile(source_of(module), "model.py", "exec"), namespace)
    network: nn.Module = namespace["load"]()
    return network


def lines_of(module: fx.GraphModule) -> list[str]:
    """The lines of the class, without indentation."""
    text = source_of(module).split("class MergedNetwork")[1].split("DTYPES")[0]
    return [line.strip() for line in text.splitlines()]


# -- what it computes ----------------------------------------------------------------------------


@pytest.mark.parametrize(("module", "shapes"), [(Lanes, 1), (Awkward, 2)])
def test_source_computes_what_the_graph_does(
    module: type[nn.Module], shapes: int, tmp_path: Path
) -> None:
    """Containers, bare tensors, slices, infinities and awkward names come out exactly equal."""
    graph, inputs = graph_of(module()), noise(*[(2, 3, 6, 6)] * shapes)
    again = executed(graph, tmp_path)
    assert same(outputs(again, inputs), outputs(graph, inputs))
    assert again.state_dict().keys() == graph.state_dict().keys()
    assert {n: p.requires_grad for n, p in again.named_parameters()} == {
        n: p.requires_grad for n, p in graph.named_parameters()
    }


@settings(max_examples=40)
@given(networks())
def test_source_of_random_networks_computes_what_the_graph_does(network: RandomNetwork) -> None:
    """No name is taken over while its value is still needed."""
    module = trace(network.make(0), network.inputs()).module
    with tempfile.TemporaryDirectory() as folder:
        again = executed(module, Path(folder))
    assert same(outputs(again, network.inputs()), outputs(module, network.inputs()))


def test_names_taken_over_too_early_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: when the values of a lane overwrite each other, the outputs are others."""
    monkeypatch.setattr(forward_source._Names, "_free", lambda _, lane: lane)
    graph, inputs = graph_of(Lanes()), noise((2, 3, 6, 6))
    assert not same(outputs(executed(graph, tmp_path), inputs), outputs(graph, inputs))


def test_source_holds_no_more_values_than_the_graph_needs(tmp_path: Path) -> None:
    """A chain of fifty layers has few values alive at once; a name for each would keep them all."""
    chain = graph_of(nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(50)]))
    assert most_alive(executed(chain, tmp_path)) <= 3
    kept = nn.Sequential(*chain.children())
    keeper = type("Keeper", (nn.Module,), {"forward": lambda self, x: accumulated(kept, x)})
    assert most_alive(keeper()) >= 50  # negative control


def accumulated(layers: nn.Sequential, x: Tensor) -> Tensor:
    """The layers' result, with all values before it still held."""
    values = [x]
    for layer in layers:
        values.append(layer(values[-1]))
    return values[-1]


class Alive(TorchDispatchMode):
    """Counts the results of operators that still exist."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.alive.add(result)
        self.most = max(self.most, len(self.alive))
        return result


def most_alive(network: nn.Module) -> int:
    """The largest number of values that exist at once while a network runs."""
    gc.collect()
    with torch.no_grad(), Alive() as mode:
        network(*noise((1, 3, 4, 4)))
    return mode.most


# -- how it reads --------------------------------------------------------------------------------


def test_lanes_give_their_name_to_their_values() -> None:
    """What layer ``conv_A`` makes is called a, what joins lanes goes by its first part."""
    lines = lines_of(graph_of(Lanes()))
    assert "ab = self.stem_AB(image)" in lines
    assert "a = self.stages[0][0].conv_A(ab)" in lines
    assert "b = self.stages[0][0].conv_B(ab)" in lines
    assert 'a1 = self.stages[0][0]["0_A"](a)' in lines
    assert "a = a1 + a" in lines
    assert "a = a[:, 0, ...]" in lines


def test_containers_stand_in_containers() -> None:
    """Numbered parts make a list, named ones a dictionary; tensors beside them are set after."""
    lines = lines_of(graph_of(Lanes()))
    start = lines.index("self.stages = nn.ModuleList([")
    assert lines[start + 1 : start + 4] == [
        "nn.ModuleList([",
        "nn.ModuleDict({",
        '"conv_A": nn.Conv2d(4, 4, 1),',
    ]
    assert "self.stages[0][0].scale = nn.Parameter(" in "\n".join(lines)
    assert 'self.stages[0][0].register_buffer("shift", torch.empty(()))' in lines
    assert "_module(" not in source_of(graph_of(Lanes()))


def test_names_that_a_dictionary_keeps_for_itself_get_a_plain_module() -> None:
    """A part called ``items`` can't be in an nn.ModuleDict."""
    source = source_of(graph_of(Awkward()))
    assert "self.inner = _module({" in source
    assert "self.inner.items(" in source
    assert 'getattr(self.inner, "a b")(' in source
    assert 'self.add_module("0", nn.Conv2d(3, 3, 1))' in source


def test_inputs_keep_their_names() -> None:
    """A caller may pass inputs by name; no variable is in their way."""
    source = source_of(graph_of(Awkward()))
    assert "def forward(self, nn, x1):" in source
    assert "torch.nn.functional.interpolate(" in source  # nn is an input here
    assert "from math import inf" in source


@pytest.mark.parametrize("network", STORABLE, ids=str)
def test_source_is_python_without_leftovers(network: Network) -> None:
    """It parses, uses everything it imports, and has no ``= None``, getattr chain or long line."""
    source = source_of(trace(network.make(0), network.inputs()).module)
    tree = ast.parse(source)
    imported = {a.asname or a.name for n in ast.walk(tree) for a in getattr(n, "names", ())}
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    assert imported <= used
    forward = source.split("def forward")[1].split("DTYPES")[0]
    assert "= None" not in forward
    assert "getattr(getattr" not in forward
    assert not re.search(r"torch\._C|_operator|eval_with_key", source)
    assert max(map(len, source.splitlines())) <= 100
