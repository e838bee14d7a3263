"""What is asked for besides networks and data, and where the time goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pleas_fx.budget import Budget
from pleas_fx.errors import ResourceError
from pleas_fx.heads import Classes
from pleas_fx.shortage import shortage


@dataclass(frozen=True, slots=True)
class Options:
    """What a user can ask for."""

    budget: Budget
    heads: str = "separate"
    classes: Classes | None = None
    method: str = "pleas"
    seed: int = 0
    ridge: float = 1e-4
    rows_per_unknown: int = 8
    synthetic: int | None = None  # inputs made for every source; None: as the data are
    contest: bool = True  # whether other plans are tried (pleas_fx/candidates, pleas_fx/contest)
    distil: int = 0  # steps of training all layers together, once they are fitted
    trials: int | None = None  # of other weights of groups; None: only sources, where that is quick

    def contests(self, sources: int) -> bool:
        """Whether plans may compete: for a share of a resource that not all sources fit in."""
        return self.contest and self.method == "pleas" and self.budget.relative < sources


@dataclass(slots=True)
class Clock:
    """Seconds per pass, and a place to report progress to."""

    report: Callable[[str], None] = lambda _: None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Count what is done inside, and name it where memory or the disk is too small for it."""
        self.report(name)
        start = time.perf_counter()
        try:
            yield
        except Exception as error:
            if (lacking := shortage(error)) is None:
                raise
            raise ResourceError(f"{name}: {lacking}") from error
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
