"""The inspector says all there is to say about a network, and trusts no name in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pleas_fx.api import analyse
from pleas_fx.inspector import build, layout, page, palette, render
from pleas_fx.inspector.drawing import fitted, hint, legend_of, path, strands
from pleas_fx.inspector.markup import clean, tag
from pleas_fx.inspector.view import Share
from pleas_fx.ir import Axis
from tests import command_line
from tests.command_line import Call
from tests.inspected import every_drawing, hostile, laid_out, page_of, view_of
from tests.networks import NETWORKS
from tests.test_report import EVIL, Page

run, here = command_line.run, command_line.here


# -- what is shown -------------------------------------------------------------------------------


@every_drawing
def test_every_axis_is_on_a_box(name: str) -> None:
    """With the groups that lie on it: nothing that moves or is frozen is left out."""
    network = NETWORKS[name]
    _, symmetry = analyse(network.make(0), network.inputs())
    shown = {use.axis: use.keys for box in view_of(name).boxes for use in box.axes}
    assert set(shown) == set(symmetry.layout.axes)
    for group in symmetry.groups:
        for axis in group.axes:
            if axis in shown:
                assert str(int(group.id)) in shown[axis]


@every_drawing
def test_strips_are_the_groups_of_the_weights(name: str) -> None:
    """What a layer reads and writes is what its weight says, where that has the channels."""
    view = view_of(name)
    checked = 0
    for box in view.boxes:
        uses = {use.axis: set(use.keys) for use in box.axes}
        weight = uses.get(Axis(f"{box.name}.weight", 0))
        if weight and box.text.startswith(("conv", "linear")):
            assert {s.key for s in box.leaving if s.key} == weight
            checked += 1
    assert checked or name in ("sliding_attention",)


@every_drawing
def test_edges_lead_on_and_carry_what_was_written(name: str) -> None:
    """From earlier to later boxes; a value has the channels that its box leaves, or a part."""
    view = view_of(name)
    for edge in view.edges:
        assert edge.source < edge.target
        leaving = view.boxes[edge.source].leaving
        totals = [sum(share.count for share in shares) for shares in (edge.shares, leaving)]
        assert {share.key for share in edge.shares} <= {share.key for share in leaving}
        assert edge.shares == leaving or totals[0] < totals[1]


def test_residual_streams_are_recognised() -> None:
    """The stage of a ResNet is joined at adds, the channels inside a block are not."""
    trunks = [g for g in view_of("resnet").groups if g.trunk]
    assert len(trunks) == 4
    assert all(g.adds == 1 for g in trunks)
    inner = [g for g in view_of("resnet").groups if not g.trunk]
    assert len(inner) == 4
    assert not any(g.trunk for g in view_of("densenet").groups)


def test_neither_a_bias_nor_a_gate_is_a_residual_stream() -> None:
    """Adding a parameter joins nothing, and a product isn't a sum."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(4, 6), nn.Linear(6, 3)
            self.shift = nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.enter(x) + self.shift)
            return self.leave(x * torch.sigmoid(x))

    view = build(*analyse(Gated(), (torch.randn(2, 4),)))
    assert [g.adds for g in view.groups] == [0]
    assert "shift" in {use.axis.key for box in view.boxes for use in box.axes}


def test_a_layer_takes_what_only_follows_it_into_its_box() -> None:
    """Norm and activation of a convolution, but neither a pool nor what others read as well."""
    view = view_of("resnet")
    texts = [box.text for box in view.boxes]
    assert texts[1].endswith(" · bn · relu")
    assert texts[2] == "maxpool"
    assert any(text == "add · relu" for text in texts)


# -- the picture ---------------------------------------------------------------------------------


def test_text_is_cut_to_its_box() -> None:
    """The end of a path is kept, and the beginning of a description."""
    assert fitted("layer", 60.0, 10.0) == "layer"
    assert fitted("abcdefgh", 60.0, 10.0) == "abcde…"
    assert fitted("abcdefgh", 60.0, 10.0, end=True) == "…defgh"


def test_several_groups_are_several_lines() -> None:
    """One a group in order, the largest ones if there are too many."""
    assert strands(()) == ("",)
    assert strands((Share("1", 3), Share("2", 1), Share("1", 2))) == ("1", "2")
    many = tuple(Share(str(k), k) for k in range(1, 30))
    assert strands(many) == tuple(str(k) for k in range(22, 30))


@pytest.mark.parametrize("way", [1, -1])
def test_strands_of_a_cable_never_cross(way: int) -> None:
    """Around both corners the distance of two strands stays what it was."""
    corners = ((0.0, 0.0), (0.0, 50.0), (80.0 * way, 50.0), (80.0 * way, 100.0))
    lines = [_numbers(path(corners, offset)) for offset in (-2.0, 2.0)]
    left, right = (line[0][0] for line in lines), (line[-1][0] for line in lines)
    assert next(iter(left)) == -2.0
    assert next(iter(right)) == 80.0 * way - 2.0
    levels = [{y for _, y in line} - {0.0, 100.0} for line in lines]
    middle = [50.0 + 2.0 * way, 50.0 - 2.0 * way]
    assert all(m in found for m, found in zip(middle, levels, strict=True))


def _numbers(text: str) -> list[tuple[float, float]]:
    found = [float(n) for n in re.findall(r"-?[\d.]+", text)]
    return list(zip(found[::2], found[1::2], strict=True))


@pytest.mark.parametrize("colours", [palette.LIGHT, palette.DARK])
def test_numbers_can_be_read_on_every_colour(colours: tuple[str, ...]) -> None:
    """Contrast of at least 4.5 to 1 (WCAG 2 AA), no colour twice, one for every group's number."""
    assert len(set(colours)) == len(colours) == 20
    assert min(palette.contrast(c, palette.ink(c)) for c in colours) >= 4.5


# -- the page ------------------------------------------------------------------------------------


@every_drawing
def test_page_is_well_formed_and_says_everything(name: str) -> None:
    """Every group with its number, every frozen reason, every layer; and the certificate."""
    view, found = view_of(name), Page(page_of(name))
    for group in view.groups:
        assert f" {group.name} " in found.text
        assert ("href", f"#group={group.key}") in found.attributes
        for use in group.layers:
            assert use.layer in found.text
    for frozen in view.frozen:
        assert frozen.reason in found.text
        assert all(f"{key}.{dim}" in found.text for key, dim in frozen.axes)
    assert "✓ passed" in found.text
    assert f"{100 * view.certificate.coverage:.1f} % of the weight axes can move" in found.text


@every_drawing
def test_page_stands_alone(name: str) -> None:
    """Nothing is fetched, and a policy forbids it."""
    html = page_of(name)
    found = Page(html)
    assert not {"link", "img", "iframe", "object", "base"} & set(found.tags)
    assert {value[0] for key, value in found.attributes if key == "href"} <= {"#"}
    assert not re.search(r"https?:|@import|@font-face|url\((?!#hatch\))", html)
    assert "default-src &#39;none&#39;" in html
    assert found.tags.count("script") == 1


def test_frozen_reasons_are_tooltips() -> None:
    """On the box whose axis is frozen."""
    view = view_of("resnet")
    texts = [hint(legend_of(view), box) for box in view.boxes]
    assert "fc.weight.0: frozen: network output (node output)" in texts[-2]
    assert "fc.weight.1: g" in texts[-2]


def test_hostile_names_are_only_text() -> None:
    """No name opens an element, ends the script or adds an attribute."""
    view = hostile()
    html = render(view, layout(view), f"</script><b>{EVIL}")
    found, plain = Page(html), Page(page_of("resnet"))
    assert set(found.tags) == set(plain.tags)
    assert found.tags.count("script") == 1
    assert {key for key, _ in found.attributes} == {key for key, _ in plain.attributes}
    assert "<b>" not in html
    assert "<img" not in html


def test_invisible_characters_are_made_visible() -> None:
    """They could reverse or hide what stands beside them."""
    assert clean("a\u202eb\x00\n") == "a\ufffdb\ufffd\ufffd"
    assert tag("text", "one\ntwo\x07", data_n='"') == '<text data-n="&quot;">one\ntwo\ufffd</text>'
    html = render(view_of("resnet"), laid_out("resnet"), "a\u202eb")
    assert "\u202e" not in html


def test_a_failed_certificate_is_called_failed() -> None:
    """And figures that don't exist are a dash."""
    view = view_of("resnet")
    nan = float("nan")
    certificate = replace(
        view.certificate, passed=False, max_error=nan, coverage=nan, negative_control_caught=False
    )
    text = Page(render(replace(view, certificate=certificate), laid_out("resnet"), "x")).text
    assert "✗ failed" in text
    assert "not caught" in text
    assert "nan" not in text


def test_every_colour_is_defined_in_both_schemes() -> None:
    """What anything is painted with exists in the light and in the dark scheme."""
    styles = page._styles()
    used = set(re.findall(r"var\((--[\w-]+)[),]", styles))
    dark = "".join(styles.split("prefers-color-scheme: dark")[1:])
    light = styles.split("@media")[0] + styles.split(".c0 {")[1]
    for part in (light, dark):
        assert used <= set(re.findall(r"(--[\w-]+):", part)) | {"--c", "--i", "--natural"}


# -- the command ---------------------------------------------------------------------------------


class TestCommand:
    """``pleas-fx groups MODEL --html FILE``."""

    def test_writes_the_page(self, run: Callable[..., Call], here: Path) -> None:
        """Beside the table, and into a folder that isn't there yet."""
        call = run("groups", "nets.py:a", "--input", "1,3,8,8", "--html", "new/page.html")
        assert call.status == 0, call.err
        assert "written to new/page.html" in call.out
        assert "certificate passed" in call.out
        Page((here / "new" / "page.html").read_text(encoding="utf-8"))
        assert [p.name for p in (here / "new").iterdir()] == ["page.html"]

    def test_says_so_in_json(self, run: Callable[..., Call], here: Path) -> None:
        """With layers and adds of every group; without the option there is no page."""
        found = run("groups", "nets.py:a", "--input", "1,3,8,8", "--html", "p.html", "--json")
        assert found.document["html"] == "p.html"
        (group,) = [g for g in found.document["groups"] if g["size"] == 6]
        assert (group["layers"], group["adds"]) == (["conv", "fc"], 0)
        assert "html" not in run("groups", "nets.py:a", "--input", "1,3,8,8", "--json").document

    @pytest.mark.parametrize("target", [".", "nets.py/page.html"])
    def test_unwritable_files_get_one_line(
        self, run: Callable[..., Call], here: Path, target: str
    ) -> None:
        """A folder, or a path through a file; nothing is left behind."""
        before = sorted(here.iterdir())
        call = run("groups", "nets.py:b", "--input", "1,3,8,8", "--html", target)
        assert call.status == 1
        assert call.err.splitlines()[-1].startswith(f"error: can't write {target}: ")
        assert call.err.count("\n") == 1
        assert [p for p in sorted(here.iterdir()) if p.name != "__pycache__"] == before

    def test_an_old_page_survives_a_failure(
        self, run: Callable[..., Call], here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is replaced whole or not at all."""
        (here / "p.html").write_text("old")

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.replace", full)
        call = run("groups", "nets.py:b", "--input", "1,3,8,8", "--html", "p.html")
        assert call.err == "error: can't write p.html: No space left on device\n"
        assert (here / "p.html").read_text() == "old"
