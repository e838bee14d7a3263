"""What runs out on the way: memory, or room on the disk; our own error that names the pass."""

from __future__ import annotations

import errno
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest
import torch
from torch import nn

import pleas_fx as pf
from pleas_fx import compiler, complement
from tests.merging import clone
from tests.networks import NETWORKS

NETWORK = NETWORKS["narrow_resnet"]
OUT_OF_MEMORY = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: …"


def failing(error: BaseException) -> Callable[..., object]:
    """Somebody's function that can't go on."""

    def fail(*_: object, **__: object) -> object:
        raise error

    return fail


def merged(sources: list[nn.Module]) -> pf.MergeResult:
    """At one source's FLOPs."""
    data = NETWORK.batch(8, seed=1)[0]
    return pf.merge(sources, data, flops=1.0, synthetic=8, progress=False)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError(OUT_OF_MEMORY), "observe: needs more memory"),
        (MemoryError(), "observe: needs more memory"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory."), "observe: needs more memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "observe: no room left"),
    ],
    ids=["torch", "python", "cuda", "disk"],
)
def test_a_shortage_names_the_pass_and_leaves_the_sources(
    error: BaseException, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cause is kept; sources are as before."""
    sources = [NETWORK.make(0), NETWORK.make(1)]
    before = [clone(model) for model in sources]
    monkeypatch.setattr(compiler, "observe", failing(error))
    with pytest.raises(pf.ResourceError, match=said) as found:
        merged(sources)
    assert found.value.__cause__ is error
    for model, state in zip(sources, before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_any_other_error_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a defect isn't taken for a shortage."""
    monkeypatch.setattr(compiler, "observe", failing(RuntimeError("a defect")))
    with pytest.raises(RuntimeError, match="a defect"):
        merged([NETWORK.make(0), NETWORK.make(1)])


def test_a_shortage_isnt_taken_for_a_network_that_takes_no_such_inputs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where inputs are made, other errors of the network only mean that there are none."""
    monkeypatch.setattr(complement, "synthesise", failing(RuntimeError(OUT_OF_MEMORY)))
    with pytest.raises(pf.ResourceError, match="synthesise: needs more memory"):
        merged([NETWORK.make(0), NETWORK.make(1)])
    monkeypatch.setattr(complement, "synthesise", failing(RuntimeError("batch of one only")))
    assert any(
        "batch of one only" in w for w in merged([NETWORK.make(0), NETWORK.make(1)]).report.warnings
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of a process")
def test_a_process_with_little_memory_gets_one_clear_error() -> None:
    """Two wide networks, and room for neither the merged one nor its plans."""
    script = """
        import resource
        import torch
        import pleas_fx as pf
        from pleas_fx import api

        torch.set_num_threads(1)
        def make():
            return torch.nn.Sequential(torch.nn.Linear(1500, 1500), torch.nn.ReLU(),
                torch.nn.Linear(1500, 1500), torch.nn.ReLU(), torch.nn.Linear(1500, 10)).eval()
        sources, data = [make(), make()], torch.randn(64, 1500)
        small = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        pf.merge([small, small], torch.randn(64, 4), flops=1.0, progress=False)  # imports
        used = next(int(l.split()[1]) for l in open("/proc/self/status") if l[:7] == "VmData:")
        resource.setrlimit(resource.RLIMIT_DATA, ((used << 10) + (40 << 20),) * 2)
        try:
            pf.merge(sources, data, flops=1.0, progress=False)
        except pf.ResourceError as error:
            print("said:", error)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=300
    )
    assert "said: " in run.stdout, run.stderr[-2000:]
    assert "needs more memory than there is" in run.stdout
