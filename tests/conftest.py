"""Settings every test shares: one torch thread, and the same generated examples on every run."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from pleas_fx import complement

torch.set_num_threads(1)  # small networks gain nothing from more, and sums keep one order

settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("explore", parent=settings.get_profile("repeatable"), derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


AS_SHIPPED = {"FEW": complement.FEW, "FOREIGN": complement.FOREIGN}


@pytest.fixture(autouse=True, scope="session")
def only_their_data() -> Iterator[None]:
    """Networks with random statistics take every data set for a foreign one: nothing is made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(complement, "FEW", 0)
        patch.setattr(complement, "FOREIGN", float("inf"))
        yield
