"""An ONNX file either computes what the network does, at any batch size, or isn't written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, fx, nn

from passes import export
from passes._parity import larger, relative_error, resized
from passes.export import Export, export_onnx
from passes.trace import trace
from pleas_fx.errors import ExportError
from tests.networks import NETWORKS, Network, noise
from tests.randomise import seeded
from tests.results import Merged

QUICK = "narrow_resnet channel_shuffle detector unet_transposed cnn3d two_inputs".split()
BY_PROGRAM, BY_SCRIPT, NOT_OPTIMISED, *_ = export.EXPORTERS

# No TorchScript symbolics: RMSNorm; writes into slices; for batches of any size, instance norm with
# running statistics and windows put together (fold).
UNSCRIPTABLE = "instance_norm_statistics rms_norm rotary patches keypoints smooth".split()
SCRIPTABLE = [n for n in NETWORKS.values() if n.name not in UNSCRIPTABLE]


class Nested(nn.Module):
    """A dictionary with a tuple in it, and something that is no tensor."""

    def forward(self, x: Tensor) -> dict[str, object]:
        return {"b": (x * 2, x + 1), "a": x.sum(1), "n": 3}


class Baked(nn.Module):
    """Works at batch 2 only."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


class Constant(nn.Module):
    """Gives the same value whatever goes in."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return x * 0 + self.value


class Limited(nn.Module):
    """One value clamped for two readers, and a norm that TorchScript doesn't know."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("least", torch.tensor(-0.5))
        self.register_buffer("most", torch.tensor(0.7))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.rms_norm(self.linear(x), (8,))
        return y.clamp(self.least, self.most), y.clamp(self.least, self.most)


def program(network: Network) -> fx.GraphModule:
    """The network as the compiler traces it."""
    return trace(network.make(0), network.inputs()).module


def small() -> fx.GraphModule:
    """A network with two outputs."""
    return fx.symbolic_trace(seeded(Merged, 0)).eval()


def images(batch: int = 2) -> tuple[Tensor]:
    """Inputs of :func:`small`."""
    return noise((batch, 3, 8, 8))  # type: ignore[return-value]


def only(monkeypatch: pytest.MonkeyPatch, *exporters: tuple[str, export.Exporter]) -> None:
    """Leave these exporters only."""
    monkeypatch.setattr(export, "EXPORTERS", exporters)


def failing(*_: object) -> None:
    """An exporter that takes no network."""
    raise ValueError("no such operator")


# -- what is written -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUICK)
def test_network_and_file_agree(name: str, tmp_path: Path) -> None:
    """The preferred exporter writes the network, in parity at two batch sizes."""
    network = NETWORKS[name]
    parity = export_onnx(program(network), network.inputs(), tmp_path / "m.onnx")
    assert parity.max_error < 1e-5
    assert parity.batches == (2, 3)
    assert parity.exporter == "torch.export"


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS.values(), ids=str)
def test_every_network_goes_through_torch_export(network: Network, tmp_path: Path) -> None:
    """No network of the zoo needs the fallback."""
    parity = export_onnx(program(network), network.inputs(), tmp_path / "m.onnx")
    assert parity.max_error < 1e-5
    assert parity.exporter == "torch.export"


@pytest.mark.parametrize("network", SCRIPTABLE, ids=str)
def test_every_network_goes_through_the_fallback(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older exporter is a working fallback for nearly all of the zoo."""
    only(monkeypatch, BY_SCRIPT)
    parity = export_onnx(program(network), network.inputs(), tmp_path / "m.onnx")
    assert parity.max_error < 1e-5


def test_inputs_and_outputs_are_named_and_batches_dynamic(tmp_path: Path) -> None:
    """Arguments name the inputs; every first dimension is symbolic; the opset is what we say."""
    network = NETWORKS["two_inputs"]
    model = program(network)
    Export(output_names=("scores",)).run(model, network.inputs(), tmp_path / "m.onnx")
    written = onnx.load(tmp_path / "m.onnx")
    arguments = [str(n.target) for n in model.graph.nodes if n.op == "placeholder"]
    assert [v.name for v in written.graph.input] == arguments
    assert [v.name for v in written.graph.output] == ["scores"]
    for value in (*written.graph.input, *written.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert {o.domain: o.version for o in written.opset_import}[""] >= 18


def test_nested_outputs_are_flattened_in_order(tmp_path: Path) -> None:
    """Dictionaries and tuples become outputs in the order in which they stand."""
    x = noise((2, 3))[0]
    names = ("b0", "b1", "a")
    export_onnx(Nested(), x, tmp_path / "m.onnx", output_names=names)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    found = session.run(list(names), {"x": x.numpy()})
    for value, expected in zip(found, (x * 2, x + 1, x.sum(1)), strict=True):
        assert torch.allclose(torch.as_tensor(value), expected)


def test_batch_of_one_as_example_stays_dynamic(tmp_path: Path) -> None:
    """An example of one image doesn't make one the only batch size."""
    assert export_onnx(small(), images(1), tmp_path / "m.onnx").batches == (1, 3)


def test_double_networks_are_written_in_single_precision(tmp_path: Path) -> None:
    """Weights and inputs of any float type become float32."""
    x = images()[0].double()
    export_onnx(small().double(), x, tmp_path / "m.onnx")
    written = onnx.load(tmp_path / "m.onnx")
    assert written.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_large_weights_go_to_a_second_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit of protobuf the weights stand beside the graph, and the pair runs."""
    export_onnx(small(), images(), tmp_path / "one.onnx")
    monkeypatch.setattr(export, "SINGLE_FILE", 0)
    export_onnx(small(), images(), tmp_path / "two.onnx")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["one.onnx", "two.onnx", "two.onnx.data"]
    onnxruntime.InferenceSession(tmp_path / "two.onnx")


def test_model_is_untouched(tmp_path: Path) -> None:
    """Weights, type, mode, hooks and code of the model are what they were."""
    model = small().double().train()
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    before, code = {k: v.clone() for k, v in model.state_dict().items()}, model.code
    export_onnx(model, images(), tmp_path / "m.onnx")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert model.code == code
    assert len(model._forward_hooks) == 1


def test_exporters_say_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing reaches standard output or standard error, even from native code."""
    export_onnx(small(), images(), tmp_path / "m.onnx")
    network = NETWORKS["instance_norm_statistics"]
    only(monkeypatch, BY_SCRIPT)
    with pytest.raises(ExportError):
        export_onnx(program(network), network.inputs(), tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")


# -- what isn't ----------------------------------------------------------------------------------


def test_a_file_that_computes_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong exporter is caught, with the figures, and what was at the path stays."""

    def wrong(job: export._Job, inputs: tuple[Tensor, ...], path: Path) -> None:
        with torch.no_grad():
            job.network.get_parameter("left.weight").mul_(1.01)
        BY_PROGRAM[1](job, inputs, path)

    only(monkeypatch, ("wrong", wrong))
    (tmp_path / "m.onnx").write_bytes(b"old")
    with pytest.raises(ExportError, match=r"output_0 \d\.\d+e-0[23], output_1 .* at batch 2 and 3"):
        export_onnx(small(), images(), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "m.onnx"]


def test_a_wrong_file_falls_back_to_the_other_exporter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the first exporter fails, the second one's file is what is written."""
    only(monkeypatch, ("failing", failing), BY_SCRIPT)
    assert export_onnx(small(), images(), tmp_path / "m.onnx").exporter == "TorchScript"


@pytest.mark.parametrize("name", sorted({*QUICK} - {"cnn3d"}))  # a bias of a wrong size: caught
def test_networks_are_written_without_an_optimiser(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last exporter is a working one, too."""
    only(monkeypatch, NOT_OPTIMISED)
    network = NETWORKS[name]
    parity = export_onnx(program(network), network.inputs(), tmp_path / "m.onnx")
    assert parity.max_error < 1e-5
    assert parity.batches == (2, 3)


def test_what_an_optimiser_breaks_is_written_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clamps read limits that nothing gives; the control: the other exporters fail."""
    torch.manual_seed(0)
    network, x = Limited().eval(), noise((2, 8))[0]
    parity = export_onnx(network, x, tmp_path / "m.onnx")
    assert parity.max_error < 1e-5
    assert parity.exporter == NOT_OPTIMISED[0]
    only(monkeypatch, BY_PROGRAM, BY_SCRIPT)
    with pytest.raises(ExportError, match="topologically sorted"):
        export_onnx(network, x, tmp_path / "m.onnx")


def test_failures_of_all_exporters_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says in one line what each exporter said, and nothing is left behind."""
    only(monkeypatch, ("first", failing), ("second", failing))
    with pytest.raises(ExportError, match=r"first: .*no such operator; second: ") as caught:
        export_onnx(small(), images(), tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_batch_size_baked_in_is_caught(tmp_path: Path) -> None:
    """A network that only works at the example's batch isn't exported as if it were dynamic."""
    with pytest.raises(ExportError, match="batch"):
        export_onnx(Baked(), noise((2, 3))[0], tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_nan_outputs_are_refused(tmp_path: Path) -> None:
    """NaN never passes for agreement."""
    with pytest.raises(ExportError, match="nan"):
        export_onnx(Constant(float("nan")), noise((2, 3))[0], tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("model", "inputs", "names", "match"),
    [
        (small(), images(), ("a",), "1 output names for 2 outputs"),
        (small(), images(), ("x", "y"), "must differ"),
        (small(), noise((2, 4, 8, 8)), (), "the network fails at batch 2"),
        (small(), (), (), "tensor or a tuple"),
        ("resnet", images(), (), "expected a torch.nn.Module, got str"),
    ],
    ids=["too few names", "name taken", "wrong shape", "no inputs", "no module"],
)
def test_bad_arguments_are_one_clear_line(
    model: nn.Module, inputs: tuple[Tensor, ...], names: tuple[str, ...], match: str, tmp_path: Path
) -> None:
    """What a caller can get wrong is an ExportError that says so."""
    with pytest.raises(ExportError, match=match) as caught:
        export_onnx(model, inputs, tmp_path / "m.onnx", output_names=names)
    assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk fails, the file that was there stays and no temporary one does."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "m.onnx").write_bytes(b"old")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ExportError, match="No space left"):
        export_onnx(small(), images(), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == [tmp_path / "m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == b"old"


@pytest.mark.parametrize("exporter", export.EXPORTERS[:3], ids=lambda e: e[0])
def test_a_file_holds_nothing_of_this_machine(
    exporter: tuple[str, export.Exporter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No path of a source file gets in, so that the same network always gives the same file."""
    monkeypatch.setattr(export, "EXPORTERS", (exporter,))
    for name in ("a.onnx", "b.onnx"):
        export_onnx(small(), images(), tmp_path / name)
    written = (tmp_path / "a.onnx").read_bytes()
    assert written == (tmp_path / "b.onnx").read_bytes()
    assert torch.__path__[0].encode() not in written
    assert str(Path(__file__).parent).encode() not in written


def test_paths_in_a_file_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: what torch.export's exporter writes by itself does hold paths."""
    monkeypatch.setattr(export, "_forget_origin", lambda _: None)
    export_onnx(small(), images(), tmp_path / "m.onnx")
    assert torch.__path__[0].encode() in (tmp_path / "m.onnx").read_bytes()


# -- figures -------------------------------------------------------------------------------------


def test_errors_are_relative_to_the_largest_value() -> None:
    """Scale doesn't matter, shape does, NaN is never small."""
    x = torch.tensor([1.0, -4.0])
    assert relative_error(x, torch.tensor([1.0, -4.4])) == pytest.approx(0.1)
    assert relative_error(1000 * x, torch.tensor([1000.0, -4400.0])) == pytest.approx(0.1)
    assert relative_error(x, x[None]) == float("inf")
    assert relative_error(0 * x, x) == float("inf")
    assert relative_error(x[:0], x[:0]) == 0.0
    assert not relative_error(x, torch.tensor([1.0, float("nan")])) <= 1.0


def test_nan_is_larger_than_everything() -> None:
    """The worst of several errors can't hide a NaN, whichever comes first."""
    nan = float("nan")
    assert larger(1.0, 2.0) == larger(2.0, 1.0) == 2.0
    for pair in ((nan, 1.0), (1.0, nan)):
        assert larger(*pair) != larger(*pair)


@pytest.mark.parametrize("seed", range(10))
def test_other_batches_are_no_larger_than_the_example(seed: int) -> None:
    """Not even if the example was drawn with the generator's own seed: networks may amplify it."""
    example = torch.randn((2, 3, 32, 32), generator=torch.Generator().manual_seed(seed))
    (other,) = resized((example,), 3)
    assert len({float(row.sum()) for row in other}) == 3
    assert float(other.std()) < 1.1 * float(example.std())


def test_other_batches_have_distinct_rows_of_the_same_kind() -> None:
    """Rows differ even when the example is all zeros; whole numbers stay in the example's range."""
    zeros, ids = resized((torch.zeros(1, 4), torch.tensor([[7], [9]])), 3)
    assert len({tuple(row) for row in zeros.tolist()}) == 3
    assert set(ids.flatten().tolist()) <= {7, 9}
    assert ids.shape == (3, 1)


class Magnifying(nn.Module):
    """A network that makes much of its last digits, whoever computes it."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.conv, self.factor = nn.Conv2d(3, 6, 3), factor

    def forward(self, x: Tensor) -> Tensor:
        return (self.factor * self.conv(x).sigmoid()).sin()


def test_a_network_that_rounds_much_itself_is_compared_with_its_own_rounding(
    tmp_path: Path,
) -> None:
    """Its float32 outputs are no closer to its float64 ones than ONNX Runtime's are."""
    torch.manual_seed(0)
    wild = export_onnx(Magnifying(2e4), torch.randn(2, 3, 9, 9), tmp_path / "a.onnx")
    assert 1e-4 < wild.max_error <= 4 * wild.rounding
    calm = export_onnx(Magnifying(1.0), torch.randn(2, 3, 9, 9), tmp_path / "b.onnx")
    assert calm.max_error < 1e-4
    assert calm.rounding == 0.0
