"""The literal table of scenarios: which sources, which outputs, which calibration images."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.accuracy.tasks import Part, Task

IMAGES = 1024  # of calibration, over all sources


@dataclass(frozen=True, slots=True)
class Scenario:
    """One question to a merge.

    ``tagged``: it is known which calibration images belong to which source. ``calibration``: the
    image set they come from, when it isn't the training data. ``images``: 0 for no data at all.
    ``brief``: only what tags or images change is run.
    """

    name: str
    title: str
    parts: tuple[Part, ...]
    heads: str
    tuned: bool = False
    tagged: bool = True
    calibration: str | None = None
    images: int = IMAGES
    brief: bool = False

    @property
    def everything(self) -> Task:
        """What a single network is trained on with labels, as a ceiling."""
        return Task(tuple(dict.fromkeys(self.parts)))

    @property
    def same(self) -> bool:
        """Whether all sources do the same."""
        return len(set(self.parts)) == 1


GARMENTS = Part("fashion")
HALVES = (Part("fashion", (0, 1, 2, 3, 4)), Part("fashion", (5, 6, 7, 8, 9)))
OVERLAPPING = (Part("fashion", (0, 1, 2, 3, 4, 5, 6)), Part("fashion", (3, 4, 5, 6, 7, 8, 9)))

_SAME = Scenario("same-task", "same ten classes, two seeds", (GARMENTS,) * 2, "shared")
_DISJOINT = Scenario("disjoint", "classes 0-4 and 5-9, own outputs", HALVES, "separate")
_JOINT = Scenario("disjoint-joint", "classes 0-4 and 5-9, one output of ten", HALVES, "joint")
_TUNED = Scenario(
    "fine-tunes", "two fine-tunes of one base, own outputs", HALVES, "separate", tuned=True
)
_OVERLAP = Scenario("overlapping", "classes 0-6 and 3-9, one output of ten", OVERLAPPING, "joint")
_DOMAINS = Scenario(
    "domains", "letters in serif type and in handwriting", (Part("serif"), Part("handwriting")),
    "shared",
)  # fmt: skip
_SETS = Scenario(
    "data-sets", "garments and digits, own outputs", (GARMENTS, Part("mnist")), "separate"
)
_DIGITS = Scenario(
    "three-digits", "digits by hand, typeset, and on 8 x 8 pixels",
    (Part("mnist"), Part("typeset-digits"), Part("digits")), "shared",
)  # fmt: skip
_FOUR = Scenario(
    "four-domains", "letters in four kinds of typefaces",
    tuple(map(Part, ("serif", "sans", "mono", "handwriting"))), "shared",
)  # fmt: skip


def _untagged(scenario: Scenario) -> Scenario:
    title = f"{scenario.title}, owners unknown"
    return replace(
        scenario, name=f"{scenario.name}-untagged", title=title, tagged=False, brief=True
    )


def _few(scenario: Scenario, images: int) -> Scenario:
    title = f"{scenario.title}, {images or 'no'} calibration images"
    return replace(scenario, name=f"{scenario.name}-{images}", title=title, images=images,
                   brief=True)  # fmt: skip


def _free(scenario: Scenario) -> Scenario:
    title = f"{scenario.title}, calibrated on handwritten digits"
    return replace(
        scenario, name=f"{scenario.name}-free", title=title, calibration="mnist", tagged=False,
        brief=True,
    )  # fmt: skip


_MAIN = (_SAME, _DISJOINT, _TUNED, _JOINT, _OVERLAP, _DOMAINS, _SETS, _DIGITS, _FOUR)
_ALL = (
    *_MAIN,
    *(_untagged(s) for s in (_SAME, _JOINT, _OVERLAP, _DOMAINS, _DIGITS, _FOUR)),
    *(_few(s, n) for s in (_DISJOINT, _SAME) for n in (256, 64, 16, 0)),
    *(_free(s) for s in (_DISJOINT, _SAME, _DOMAINS, _FOUR)),
    _few(_DOMAINS, 0),
)
SCENARIOS = {scenario.name: scenario for scenario in _ALL}
ORIGINS = {  # by scenario, the first with the same sources: others differ in images or tags
    name: next(s.name for s in _ALL if (s.parts, s.tuned) == (own.parts, own.tuned))
    for name, own in SCENARIOS.items()
}
MAIN = tuple(scenario.name for scenario in _MAIN)
CURVES = ("same-task", "disjoint", "fine-tunes", "domains", "disjoint-joint")
SLOW = ("same-task", "disjoint")  # where methods that take long are tried
