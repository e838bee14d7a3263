"""What is measured for one network, step by step; a step that fails leaves its error's text."""

from __future__ import annotations

import gc
import os
import resource
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import pleas_fx
from benchmarks.zoo import models
from benchmarks.zoo.randomise import randomise
from passes.certify import certify
from passes.groups import groups
from passes.trace import trace
from pleas_fx.ir import Certificate, Program, Symmetry

CALIBRATION, EXAMPLES, HELD_OUT = 8, 2, 3
Inputs = tuple[Tensor, ...]


@dataclass(slots=True)
class FrozenBy:
    """How many weight axes one reason holds at one kind of operator."""

    operator: str
    reason: str
    axes: int


@dataclass(slots=True)
class Record:
    """Everything found out about one network; None where a step wasn't reached or failed."""

    name: str
    status: str = "running"  # analysed, finished, or what ended the process
    shape: tuple[int, ...] | None = None
    parameters: int | None = None
    nodes: int | None = None
    groups: int | None = None
    block_groups: int | None = None
    certificate: Certificate | None = None
    frozen: list[FrozenBy] = field(default_factory=list)
    analysis_in_forwards: float | None = None
    planted_error: float | None = None
    planted_merged: float | None = None  # share of the slots that stand for both sources
    ensemble_error: float | None = None
    ensemble_flops: float | None = None
    merge_flops: float | None = None
    onnx_error: float | None = None
    onnx_rounding: float | None = None  # of the network itself, where the error is large
    exporter: str | None = None
    warnings: list[str] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_mb: int | None = None


@dataclass(slots=True)
class Worker:
    """Runs the steps on one network and hands the record out after each."""

    record: Record
    emit: Callable[[Record], None]
    count: int = 2  # sources; the analysis needs one
    sources: tuple[nn.Module, ...] = ()
    data: Inputs = ()
    held_out: Inputs = ()
    symmetry: Symmetry | None = None
    merged: pleas_fx.MergeResult | None = None

    def run(self, analysis_only: bool) -> None:
        """All steps; the merges need the analysis."""
        self.count = 1 if analysis_only else 2
        self._run(self.build, self.analyse)
        if self.record.errors:
            self.record.status = "finished"
        elif analysis_only:
            self.record.status = "analysed"
        else:
            self._run(self.planted, self.ensemble, self.merge, self.onnx)
            self.record.status = "finished"
        self.emit(self.record)

    def _run(self, *steps: Callable[[], None]) -> None:
        for step in steps:
            with self._step(step.__name__):
                step()

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        start = time.process_time()
        try:
            yield
        except Exception as error:  # noqa: BLE001 (the table shows it)
            text = str(error).strip().splitlines()
            self.record.errors[name] = f"{type(error).__name__}: {text[0] if text else ''}"[:400]
        self.record.seconds[name] = round(time.process_time() - start, 3)
        self.record.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        gc.collect()  # the step's networks
        self.emit(self.record)

    def build(self) -> None:
        """Sources with random weights, at the smallest input the network takes."""
        name = self.record.name
        first = models.build(name).eval()
        shape = _smallest(first, name)
        self.record.shape = shape
        self.data = models.example(shape, CALIBRATION, seed=0)
        self.held_out = models.example(shape, HELD_OUT, seed=1)
        self.sources = (first, *(models.build(name) for _ in range(self.count - 1)))
        for seed, model in enumerate(self.sources):
            randomise(model, self.data, seed)
        self.record.parameters = sum(p.numel() for p in first.parameters())

    def analyse(self) -> None:
        """Groups, what is frozen, and the certificate; the groups' time in forward passes."""
        if not self.sources:
            return
        inputs = tuple(x[:EXAMPLES] for x in self.data)
        groups(trace(nn.Flatten(), inputs))  # what is imported late isn't the network's time
        program = trace(self.sources[0], inputs)
        self.record.nodes = len(program.module.graph.nodes)
        forward = min(_timed(lambda: _outputs(program.module, inputs)) for _ in range(2))
        start = time.thread_time()
        found = groups(program)
        spent = time.thread_time() - start
        self.record.seconds |= {"forward": round(forward, 4), "groups": round(spent, 3)}
        self.record.analysis_in_forwards = round(spent / forward, 1)
        self.symmetry = certify(program, found, trials=2, seed=0)
        self.record.groups = len(self.symmetry.groups)
        self.record.block_groups = sum(g.blocks is not None for g in self.symmetry.groups)
        self.record.certificate = self.symmetry.certificate
        self.record.frozen = _frozen(self.symmetry, program)

    def planted(self) -> None:
        """A permuted copy merges into the original at width 1."""
        model = self.sources[0]
        assert self.symmetry is not None
        copy = self.symmetry.apply(model, self.symmetry.random(3))
        result = self._merged([model, copy], width=1.0, heads="shared")
        slots = sum(g.slots for g in result.plan.groups)
        both = sum(len(g.merged) for g in result.plan.groups)
        self.record.planted_merged = round(both / slots, 4) if slots else None
        wanted = _outputs(model, self.held_out)
        self.record.planted_error = _error(_outputs(result.model, self.held_out), wanted)

    def ensemble(self) -> None:
        """Nothing merged gives the outputs of both, for the sum of their FLOPs."""
        result = self._merged(self.sources, width=2.0)
        self.record.ensemble_flops = _flops(result)
        wanted = [t for model in self.sources for t in _outputs(model, self.held_out)]
        self.record.ensemble_error = _error(_outputs(result.model, self.held_out), wanted)

    def merge(self) -> None:
        """A merge at a quarter more FLOPs than one source."""
        self.merged = self._merged(self.sources, flops=1.25)
        self.record.merge_flops = _flops(self.merged)
        self.record.warnings = list(self.merged.report.warnings)

    def onnx(self) -> None:
        """ONNX Runtime computes what the merged network computes."""
        if self.merged is None:
            raise RuntimeError("no merged network")
        self.sources = ()  # as a user's would be by now
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "merged.onnx"
            inputs = tuple(x[:EXAMPLES] for x in self.data)
            parity = pleas_fx.export_onnx(self.merged.model, inputs, file)
        self.record.onnx_error, self.record.exporter = parity.max_error, parity.exporter
        self.record.onnx_rounding = parity.rounding or None

    def _merged(self, sources: Any, **options: Any) -> pleas_fx.MergeResult:
        # Random statistics are nobody's: nothing is made from them.
        return pleas_fx.merge(sources, self.data[0], progress=False, synthetic=0, **options)


def _smallest(model: nn.Module, name: str) -> tuple[int, ...]:
    failure: Exception | None = None
    for shape in models.shapes(name):
        try:
            _outputs(model, models.example(shape, EXAMPLES, seed=0))
        except Exception as error:  # noqa: BLE001 (too small for it)
            failure = error
            continue
        return shape
    raise RuntimeError(f"runs at no size that was tried: {failure}")


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad():
        return [t for t in tree_leaves(model(*inputs)) if isinstance(t, Tensor)]


def _timed(call: Callable[[], object]) -> float:
    """Of this thread; a limit of processor time makes the process's own clock coarse."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def _error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Norm of the difference over the norm, the worst of all outputs."""
    pairs = [(a.double(), b.double()) for a, b in zip(found, wanted, strict=True)]
    return max(float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in pairs)


def _flops(result: pleas_fx.MergeResult) -> float | None:
    source = result.report.sources[0].flops
    return round(result.report.merged.flops / source, 4) if source else None


def _frozen(symmetry: Symmetry, program: Program) -> list[FrozenBy]:
    operators = {n.name: _operator(program, n) for n in program.module.graph.nodes}
    counts = Counter((operators.get(f.node, "-"), f.reason) for f in symmetry.frozen)
    return [FrozenBy(op, why, n) for (op, why), n in counts.most_common()]


def _operator(program: Program, node: Any) -> str:
    if node.op == "call_module":
        return type(program.module.get_submodule(node.target)).__name__
    return str(getattr(node.target, "__name__", node.target))


def work(name: str, analysis_only: bool, seconds: int, memory: int, records: Connection) -> None:
    """What the process of one network does: send its record after every step."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    warnings.simplefilter("ignore")
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        Worker(Record(name), lambda r: records.send(asdict(r))).run(analysis_only)
