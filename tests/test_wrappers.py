"""What stands around a model: wrappers of torch's, hooks, precision, modes of the caller."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import pleas_fx as pf
from tests.merging import clone, outputs, worst
from tests.networks import noise
from tests.randomise import randomise
from tests.small_networks import two_convolutions as network

IMAGES = noise((24, 3, 9, 9))[0]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # what torch advises against


class InHalf(nn.Module):
    """Computes in bfloat16 where it may."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        """Autocast by its own code."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = self.inner(x)
        return result.float()


class PartCompiled(nn.Module):
    """A compiled backbone, of which an attribute is asked."""

    def __init__(self) -> None:
        super().__init__()
        inner = network()
        self.backbone = torch.compile(inner[:6], backend="eager")
        self.backbone.width = 6
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Pooled by hand."""
        return self.head(self.backbone(x).mean((2, 3)).reshape(-1, self.backbone.width))


def on_layer(register: Callable[[nn.Module], object]) -> Callable[[], nn.Module]:
    """The network with something done to its second convolution."""

    def make() -> nn.Module:
        model = network()
        register(model[3])
        return model

    return make


def on_root(register: Callable[[nn.Module], object]) -> Callable[[], nn.Module]:
    """The network with something done to itself."""

    def make() -> nn.Module:
        model = network()
        register(model)
        return model

    return make


def doubling(module: nn.Module) -> object:
    """A hook that changes an output."""
    return module.register_forward_hook(lambda _, __, result: 2 * result + 1)


def shifting(module: nn.Module) -> object:
    """A hook that changes an input."""
    return module.register_forward_pre_hook(lambda _, given: (0.5 * given[0] + 1,))


COMPUTING: dict[str, Callable[[], nn.Module]] = {
    "compiled": lambda: torch.compile(network(), backend="eager"),  # type: ignore[return-value]
    "compiled inside": PartCompiled,
    "data parallel": lambda: nn.DataParallel(network()),
    "norms of several processes": lambda: nn.SyncBatchNorm.convert_sync_batchnorm(network()),
    "a hook on an output": on_layer(doubling),
    "a hook on an input": on_layer(shifting),
    "a hook on what goes in": on_root(shifting),
    "a hook on what comes out": on_root(doubling),
    "weight norm by hooks": on_layer(nn.utils.weight_norm),
    "weight norm": on_layer(parametrizations.weight_norm),
    "spectral norm by hooks": on_layer(nn.utils.spectral_norm),
    "pruned": on_layer(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)),
}


def sources(make: Callable[[], nn.Module]) -> list[nn.Module]:
    """Two, with random parameters and statistics."""
    torch.manual_seed(0)
    models = [make().eval() for _ in range(2)]
    for model in models:
        randomise(model)
        outputs(model, (IMAGES,))  # hooks compute their weights
    return models


def merged(models: list[nn.Module], images: Tensor = IMAGES, **options: object) -> pf.MergeResult:
    """In silence, and without made inputs: the statistics are nobody's."""
    options = {"progress": False, "synthetic": 0, **options}
    return pf.merge(models, images, **options)  # type: ignore[arg-type]


def each(models: list[nn.Module], images: Tensor = IMAGES) -> list[Tensor]:
    """What the models compute by themselves."""
    return [result for model in models for result in outputs(model, (images,))]


@pytest.mark.parametrize("kind", COMPUTING)
def test_what_surrounds_a_model_takes_part(kind: str) -> None:
    """Nothing merged computes what both do, hooks and all; the sources stay as they are."""
    models = sources(COMPUTING[kind])
    before, wanted = [clone(model) for model in models], each(models)
    result = merged(models, width=2.0)
    assert worst(outputs(result.model, (IMAGES,)), wanted) < 1e-5
    assert all(
        torch.equal(value, model.state_dict()[key])
        for model, kept in zip(models, before, strict=True)
        for key, value in kept.items()
    )
    assert worst(each(models), wanted) == 0


@pytest.mark.parametrize("kind", COMPUTING)
def test_what_surrounds_a_model_holds_nothing(kind: str) -> None:
    """The channels between the layers can be thinned like those of the bare network."""
    result = merged(sources(COMPUTING[kind]), flops=0.7)
    assert 0.6 < result.report.merged.flops / result.report.sources[0].flops <= 0.7
    assert result.symmetry.certificate.passed


def test_a_hook_that_computes_is_no_ornament() -> None:
    """The control: without its hook the model computes something else."""
    model = sources(on_layer(doubling))[0]
    before = outputs(model, (IMAGES,))
    model.get_submodule("3")._forward_hooks.clear()
    assert worst(outputs(model, (IMAGES,)), before) > 0.1


def test_hooks_that_only_watch_see_tensors() -> None:
    """Not what tracing puts in their place, and the network is that without them."""
    seen: list[object] = []
    make = on_layer(
        lambda layer: layer.register_forward_hook(lambda _, __, y: seen.append(y.numpy().sum()))
    )
    models = sources(make)
    result = merged(models, width=2.0)
    assert worst(outputs(result.model, (IMAGES,)), each(models)) < 1e-5
    assert not any(isinstance(value, torch.fx.Proxy) for value in seen)
    bare = pf.permutation_groups(network().eval(), IMAGES[:2])
    assert result.symmetry.groups == bare.groups


def test_autocast_is_left_to_whoever_runs_the_network() -> None:
    """The merged network computes in full precision what the sources round."""
    models = sources(InHalf)
    found = outputs(merged(models, width=2.0).model, (IMAGES,))
    assert worst(found, each(models)) < 0.05
    assert worst(found, each([m.inner for m in models])) < 1e-5  # type: ignore[misc]


def test_what_torch_exported_is_merged() -> None:
    """Of a graph of the dispatcher's operators, for any batch size."""
    plain = sources(network)
    batch = {0: torch.export.Dim("batch")}
    models = [
        torch.export.export(m, (IMAGES[:2],), dynamic_shapes=(batch,)).module() for m in plain
    ]
    result = merged(models, width=2.0)
    assert worst(outputs(result.model, (IMAGES,)), each(plain)) < 1e-5
    thin = merged(models, flops=0.7)
    assert thin.report.merged.flops / thin.report.sources[0].flops <= 0.7


MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": partial(torch.autocast, "cpu", dtype=torch.bfloat16),
    "another device": partial(torch.device, "meta"),
}


@pytest.mark.parametrize("mode", MODES)
def test_what_the_caller_has_switched_on_changes_nothing(mode: str) -> None:
    """The same network, to the bit."""
    models = sources(network)
    found = []
    for surroundings in (nullcontext, MODES[mode]):
        with surroundings():
            result = merged(models, flops=0.7)
        found.append(result.model.state_dict())
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


def test_models_and_images_made_in_inference_mode_are_merged() -> None:
    """Their tensors keep no versions and no gradients."""
    with torch.inference_mode():
        models, images = sources(network), IMAGES.clone()
        result = pf.merge(models, images, width=2.0, progress=False, synthetic=8)
        assert pf.permutation_groups(models[0], images[:2]).certificate.passed
    assert worst(outputs(result.model, (IMAGES,)), each(models)) < 1e-5


def test_images_may_be_of_a_subclass() -> None:
    """As those of torchvision's transforms are."""

    class Image(Tensor):
        pass

    models = sources(network)
    found = outputs(merged(models, IMAGES.as_subclass(Image), width=2.0).model, (IMAGES,))
    assert worst(found, each(models)) < 1e-5
    assert {type(t) for t in found} == {Tensor}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_inputs_are_made_for_sources_in_half_precision(dtype: torch.dtype) -> None:
    """Statistics of theirs overflow in half precision; what is made has it nevertheless."""
    models = [model.to(dtype) for model in sources(network)]
    result = merged(models, 300 * IMAGES.to(dtype), flops=0.7, synthetic=16)
    assert any("inputs that give" in note for note in result.report.warnings)
    assert {t.dtype for t in outputs(result.model, (IMAGES.to(dtype),))} == {dtype}
