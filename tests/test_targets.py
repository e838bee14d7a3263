"""What outputs are fitted to: the owner of an image counts beside the mean of all sources."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import pleas_fx as pf
from passes import _targets

OWN = torch.eye(2).repeat_interleave(64, 0)  # an image says which source it is of
ANSWERS = ((900.0, 100.0), (100.0, 500.0))  # far from zero: no classes to choose from


def constant(values: Sequence[float]) -> nn.Module:
    """A network that answers the same to every image."""
    head = nn.Linear(2, len(values))
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor(values))
    return nn.Sequential(nn.Identity(), head)


def made(data: pf.PerSource | Tensor, **options: object) -> tuple[list[float], list[float]]:
    """What the merged network answers to an image of the first source, and of the second."""
    models = [constant(values) for values in ANSWERS]
    result = pf.merge(models, data, width=1.0, progress=False, synthetic=0, **options)  # type: ignore[arg-type]
    first, second = result.model(torch.eye(2)).tolist()
    return first, second


def per_source() -> pf.PerSource:
    """Images with owners."""
    return pf.PerSource(list(OWN.chunk(2)))


def test_shared_outputs_are_fitted_halfway_from_the_mean_to_the_owner() -> None:
    """The control: without owners everything is the mean."""
    first, second = made(per_source(), heads="shared")
    assert first == pytest.approx([700, 200], abs=1)
    assert second == pytest.approx([300, 400], abs=1)
    for image in made(OWN, heads="shared"):
        assert image == pytest.approx([500, 300], abs=1)


@pytest.mark.parametrize(("share", "wanted"), [(1.0, [900, 100]), (0.0, [500, 300])])
def test_the_share_of_the_owner_is_one_constant(
    share: float, wanted: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the mean to the owner alone."""
    monkeypatch.setattr(_targets, "OWNER", share)
    assert made(per_source(), heads="shared")[0] == pytest.approx(wanted, abs=1)


def test_an_output_that_sources_share_beside_others_is_the_owners_alone() -> None:
    """Logits among other classes aren't to be compared; what the owner lacks is a low constant."""
    first, second = made(per_source(), heads="joint", classes=[["a", "b"], ["b", "c"]])
    assert first[:2] == pytest.approx([900, 100], abs=1)
    assert second[1:] == pytest.approx([100, 500], abs=1)
