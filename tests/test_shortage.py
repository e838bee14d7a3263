"""What runs out on the way: memory, or room on the disk; our own error that names the pass."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import pleas_fx as pf
from pleas_fx import complement, planning
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
    monkeypatch.setattr(planning, "observe", failing(error))
    with pytest.raises(pf.ResourceError, match=said) as found:
        merged(sources)
    assert found.value.__cause__ is error
    for model, state in zip(sources, before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_any_other_error_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a defect isn't taken for a shortage."""
    monkeypatch.setattr(planning, "observe", failing(RuntimeError("a defect")))
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


class Hungry(nn.Module):
    """Asks for more bytes than a processor can address, but not for two images."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.zeros(x.shape[0] ** 9)[:1]


def test_memory_that_really_runs_out_gives_one_clear_error() -> None:
    """Refused by the allocator, in the middle of a pass; the control is left with two images."""

    def merge(images: int) -> pf.MergeResult:
        sources = [nn.Sequential(nn.Linear(4, 6), Hungry(), nn.Linear(6, 2)) for _ in range(2)]
        return pf.merge(sources, torch.randn(images, 4), flops=1.0, progress=False)

    assert merge(2).report.merged.flops > 0
    with pytest.raises(pf.ResourceError, match="observe: needs more memory than there is"):
        merge(64)
