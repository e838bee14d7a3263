"""The report says what the merge did, to people and to programs, whatever it was."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from passes.export import Parity
from pleas_fx.ir import Axis, Certificate, Count, Frozen, GroupId, LayerFit, Plan, Report, Symmetry
from pleas_fx.report import render, view
from pleas_fx.report.tables import (
    certificate_table,
    plain,
    plan_table,
    ratio,
    report_table,
    result_table,
    to_json,
)
from pleas_fx.result import MergeResult
from tests.results import NAN, lane, plan, report, result, symmetry

PARITY = Parity(3e-7, (("output_a", 1e-7), ("output_b", 3e-7)), (2, 3), "torch.export")
EVIL = """<script>alert("1")</script><img src=x onerror='x'>&amp;</style>"""
VOID = frozenset("meta link br hr img input".split())


class Page(HTMLParser):
    """Reads a page, insists that every element is closed in order, and keeps what is in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        self.text = " ".join(self.text.split())
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += f" {data} "


def widths(html: str) -> list[float]:
    """The lengths of all bars, percent."""
    return [float(w) for w in re.findall(r'style="(?:width|left):([^"%]*)%"', html)]


def hostile() -> MergeResult:
    """A result whose every free text is an attack."""
    base = symmetry()
    return result(
        symmetry=Symmetry(
            groups=tuple(replace(g, axes=(Axis(EVIL + ".weight", 0),)) for g in base.groups),
            frozen=(Frozen(Axis(EVIL, 0), EVIL, EVIL),),
            certificate=base.certificate,
        ),
        report=replace(
            report(),
            layers=(LayerFit(EVIL, 0.1, 1, 1, 1.0, 1),),
            seconds={EVIL: 1.0},
            warnings=(EVIL,),
        ),
        plan=replace(plan(), note=EVIL),
        output_names=(EVIL,),
        recipe={"models": [EVIL, EVIL], "method": EVIL, EVIL: EVIL},
    )


# -- the page ------------------------------------------------------------------------------------


def test_page_is_well_formed_and_stands_alone() -> None:
    """Every element is closed, and nothing is fetched: no script, link, image, address or font."""
    html = render(result(), PARITY)
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    assert not {"src", "href", "srcset"} & {name for name, _ in page.attributes}
    assert not re.search(r"https?:|//|url\(|@import|@font-face", html)


def test_unclosed_pages_are_noticed() -> None:
    """Negative control: the check of form fails on a page that has none."""
    html = render(result(), PARITY)
    with pytest.raises(AssertionError):
        Page(html.replace("</section>", "", 1))


def test_page_says_what_was_measured() -> None:
    """Ratios, counts, residuals, groups, frozen axes, seconds, warnings and recipe are there."""
    text = Page(render(result(), PARITY)).text
    for said in (
        "a.pt + b.pt", "1.20× of one source", "1.10× of one source", "0.60× of all sources",
        "passed max error 2.5e-15 over 3 random permutations 87.5 % of", "max error 3.0e-07",
        "stem.0 +2 4 5 1.25× 2 A 1 · B 2 A 1 · B 0 0.91 0.0125", "g1 3 3 1.00× 3 0 0 – –",
        "AB merged · 5", "A only · 1", "B only · 2", "dropped · 1", "g1 stays whole",
        "stem.0 0.0123 4,608 27 27 310", "left – 0 6 0 –",
        "order of the network's outputs output left.weight.0", "trace 0.02 s fit 1.5 s",
        "few images", "At most 4.1 kB of activations", "width: 1.2 seed: 0",
    ):  # fmt: skip
        assert said in text, said


def test_every_colour_is_defined_in_both_schemes() -> None:
    """What anything is painted with exists in the light and in the dark scheme."""
    html = render(result(), PARITY)
    used = set(re.findall(r"var\((--[\w-]+)\)", html))
    light, dark = html.split("prefers-color-scheme: dark")
    defined = [set(re.findall(r"(--[\w-]+):", part)) for part in (light, dark)]
    assert used == defined[0] == defined[1]


def test_bars_stay_inside_their_tracks() -> None:
    """Lengths are numbers between 0 and 100; a group's parts end where the longest bar does."""
    html = render(result(), PARITY)
    assert len(widths(html)) > 10
    assert all(0 <= w <= 100 for w in widths(html))
    longest = max(sum(p.percent for p in row.parts) for row in view.group_rows(result()))
    assert longest == pytest.approx(100)


def test_memberships_of_three_sources_have_their_own_colours() -> None:
    """All together, two of three, and each alone are told apart."""
    styles = [view.style(m, 3) for m in range(1, 8)]
    assert len(set(styles)) == 7


def test_a_layer_that_was_exact_is_not_called_deficient() -> None:
    """Its weights stayed: the rank of a system that nobody solved says nothing."""
    kept = LayerFit("kept", 0.0, 100, 9, 1.0, 0, "prior")
    short = LayerFit("short", 0.1, 100, 9, 1.0, 7, "truncated")
    assert [row.rank for row in view.layer_rows([kept, short])] == [
        "exact already",
        "7 (deficient)",
    ]


def test_figures_that_do_not_exist_are_a_dash() -> None:
    """NaN and infinity never reach the page, nor the style of a bar."""
    odd = LayerFit("x", float("inf"), 0, 0, float("inf"), 0)
    base = replace(
        result(),
        symmetry=replace(symmetry(), certificate=Certificate(NAN, 0, NAN, False, False)),
        report=replace(report(), layers=(odd,), seconds={"fit": NAN}),
        plan=replace(plan(), predicted_error=NAN),
    )
    html = render(base, replace(PARITY, max_error=NAN))
    assert not re.search(r"\b(nan|inf|infinity)\b", html, re.IGNORECASE)
    assert "max error – over 0" in Page(html).text
    assert all(0 <= w <= 100 for w in widths(html))


@pytest.mark.parametrize(
    ("passed", "caught", "badge"),
    [
        (True, True, "passed"),
        (True, False, "passed, control not caught"),
        (False, True, "failed"),
        (False, False, "failed"),
    ],
)
def test_badge_says_what_the_certificate_does(passed: bool, caught: bool, badge: str) -> None:
    """A certificate that failed, or that couldn't fail, isn't shown as passed."""
    certificate = Certificate(0.5, 2, 0.5, passed, caught, (GroupId(3),))
    html = render(result(symmetry=replace(symmetry(), certificate=certificate)))
    assert re.findall(r'<span class="badge \w+">([^<]*)</span>', html) == [badge]
    assert "frozen by the certificate: g3" in Page(html).text


def test_hostile_text_is_escaped() -> None:
    """Names, reasons, warnings and recipe values are text, never markup."""
    html = render(hostile(), replace(PARITY, exporter=EVIL))
    page = Page(html)
    assert not {"script", "img"} & set(page.tags)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert html.count("&lt;script&gt;") >= 10


@pytest.mark.parametrize(
    "nothing",
    [Report((), (), Count(0, 0), {}), Report((), (Count(0, 0),), Count(0, 0), {"trace": 0.0})],
    ids=["no sources", "empty source"],
)
def test_a_merge_of_nothing_renders(nothing: Report) -> None:
    """No groups, layers, sources, seconds or recipe: still a page, without a division by zero."""
    bare = Symmetry((), (), Certificate(0.0, 0, 0.0, True, True))
    Page(render(result(report=nothing, plan=Plan((), 2), symmetry=bare, recipe={})))
    assert report_table(nothing)["ratio"] == {"params": None, "flops": None}


def test_long_names_keep_their_ends() -> None:
    """Beside a bar a path is cut at its beginning: the end tells groups apart."""
    long = replace(
        symmetry(),
        groups=tuple(
            replace(g, axes=(Axis(f"{'deep.' * 20}block{g.id}.weight", 0),))
            for g in symmetry().groups
        ),
    )
    names = [row.short for row in view.group_rows(result(symmetry=long))]
    assert [name[-6:] for name in names] == ["block0", "block1"]
    assert all(len(name) == view.LONGEST_NAME and name.startswith("…") for name in names)


# -- for programs --------------------------------------------------------------------------------


def test_tables_are_strict_json() -> None:
    """Everything survives a strict parser unchanged; what is no number is null."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    for table in (result_table(result(), PARITY), certificate_table(symmetry())):
        assert json.loads(to_json(table), parse_constant=refuse) == table
    layers = report_table(report())["layers"]
    assert layers[1]["residual"] is None
    assert layers[0]["residual"] == 0.0123


def test_plan_table_counts_every_channel() -> None:
    """Merged, kept and dropped channels add up to what each source has."""
    for group in plan_table(plan())["groups"]:
        for kept, dropped in zip(group["kept"], group["dropped"], strict=True):
            assert group["merged"] + kept + dropped == group["size"]
        assert sum(group["slots_by_membership"].values()) == group["slots"]
    first = plan_table(plan())["groups"][0]
    assert first["channels"] == {"AB": [[0, 1], [1, 0]], "A": [2], "B": [2, 3]}


def test_lanes_of_one_membership_are_counted_together() -> None:
    """Two lanes with the same members are one entry."""
    group = replace(plan().groups[0], lanes=(lane(1, (0, -1)), lane(1, (3, -1))))
    table = plan_table(Plan((group,), 2))["groups"][0]
    assert table["channels"] == {"A": [0, 3]}


def test_plain_knows_what_the_library_uses() -> None:
    """numpy scalars and arrays, tuples, sets, dataclasses, NaN and infinities."""
    value = {1: (np.int64(2), np.float32(0.5)), "a": np.array([[1.0, NAN]]), "s": {3, 1}}
    assert plain(value) == {"1": [2, 0.5], "a": [[1.0, None]], "s": [1, 3]}
    assert plain(Count(1, 2)) == {"params": 1, "flops": 2}
    assert plain([float("inf"), -float("inf"), True, None]) == [None, None, True, None]


def test_lists_of_numbers_stand_on_one_line() -> None:
    """Long lists of channels don't fill pages, and text that looks like one is left alone."""
    value = {"pairs": [[0, 1], [2, 3]], "text": "[\n 1,\n 2\n]", "none": [None, 1.5e-7]}
    text = to_json(value)
    assert '"pairs": [[0, 1], [2, 3]]' in text
    assert json.loads(text) == value


def test_ratio_is_relative_to_the_mean_source() -> None:
    """Two sources of different size: the merged network is compared with their mean."""
    assert ratio(Count(30, 0), (Count(10, 0), Count(30, 0)), "params") == 1.5


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (0.0125, "0.0125"), (2.5e-15, "2.5e-15"), (123456.0, "1.2e+05"), (NAN, "–")],
)
def test_numbers_are_short(value: float, shown: str) -> None:
    """Three digits, an exponent only far from one."""
    assert view.number(value) == shown
