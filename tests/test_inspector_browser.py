"""The inspector's page in a real browser: it is legible, and it answers to a click."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pleas_fx.inspector import layout, page, render
from tests.inspected import hostile, laid_out, page_of, view_of
from tests.test_report import EVIL

Browse = Callable[..., tuple[str, list[str]]]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")

OVERLAPS = """
addEventListener("load", () => {
  const texts = [...document.querySelectorAll("#net text")].map((t) => [t, t.getBBox()]);
  let over = 0, out = 0;
  texts.forEach(([t, a], k) => {
    const card = t.closest(".b").querySelector(".card, .pill").getBBox();
    if (a.x < card.x || a.x + a.width > card.x + card.width) out += 1;
    for (const [, b] of texts.slice(k + 1))
      if (a.x < b.x + b.width && b.x < a.x + a.width
          && a.y + 2 < b.y + b.height && b.y + 2 < a.y + a.height) over += 1;
  });
  document.body.dataset.checked = `${texts.length > 5} ${over} ${out}`;
});
"""


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """Open a page in a headless browser: the document afterwards, and what its console said."""

    def open_page(html: str, address: str = "") -> tuple[str, list[str]]:
        file = tmp_path / "page.html"
        file.write_text(html, encoding="utf-8")
        assert CHROMIUM is not None
        done = subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
             f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000",
             "--dump-dom", f"file://{file}{address}"],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return open_page


@pytest.fixture
def with_script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Add to the page's own script, so that the policy lets it run."""
    files = page._file

    def add(more: str) -> None:
        monkeypatch.setattr(page, "_file", lambda n: files(n) + (more if n == "page.js" else ""))

    return add


def lit(dom: str) -> set[str]:
    """The groups of everything that is highlighted."""
    found = set()
    for element in re.findall(r"<\w+ [^>]*>", dom):
        keys = re.search(r'data-g="([^"]*)"', element)
        style = re.search(r'class="([^"]*)"', element)
        if keys and style and "on" in style[1].split():
            found.add(keys[1])
    return found


@in_a_browser
@pytest.mark.parametrize("name", ["resnet", "densenet", "detector"])
def test_text_never_overlaps(browse: Browse, with_script: Callable[[str], None], name: str) -> None:
    """As the browser sets it: no two texts meet, none leaves its box; the console is silent."""
    with_script(OVERLAPS)
    dom, console = browse(render(view_of(name), laid_out(name), name))
    assert console == []
    assert 'data-checked="true 0 0"' in dom


@in_a_browser
def test_an_address_selects_a_group(browse: Browse) -> None:
    """Everything that carries it lights up, nothing else does."""
    view = view_of("resnet")
    key = view.groups[0].key
    dom, console = browse(page_of("resnet"), f"#group={key}")
    assert console == []
    expected = {" ".join(part.keys) for part in (*view.boxes, *view.edges) if key in part.keys}
    assert lit(dom) == expected | {key}
    assert re.search(r'<body class="[^"]*pick', dom)
    assert f"{view.groups[0].name}: runs through " in dom


@in_a_browser
@pytest.mark.parametrize("address", ["", "#group=999", "#group=<b>", "#frozen=99", "#x"])
def test_other_addresses_select_nothing(browse: Browse, address: str) -> None:
    """Nor do they break anything."""
    dom, console = browse(page_of("resnet"), address)
    assert (console, lit(dom)) == ([], set())
    assert not re.search(r'<body class="[^"]*pick', dom)


@in_a_browser
@pytest.mark.parametrize(
    ("gesture", "address"),
    [
        ('document.querySelector(\'#groups a[href="#group=KEY"]\').click();', "group"),
        ("document.querySelector('#net .strip[data-g=\"KEY\"] rect')"
         ".dispatchEvent(new MouseEvent('click', {bubbles: true}));", "group"),
    ],
)  # fmt: skip
def test_a_click_selects_a_group(
    browse: Browse,
    with_script: Callable[[str], None],
    gesture: str,
    address: str,
) -> None:
    """In the table or on an axis; the address then says which, and a second click lets go."""
    key = view_of("resnet").groups[1].key
    gesture = gesture.replace("KEY", key)
    note = "\ndocument.body.dataset.address = location.hash;"
    with_script(gesture + note)
    dom, console = browse(render(view_of("resnet"), laid_out("resnet"), "x"))
    assert console == []
    assert all(key in keys.split() for keys in lit(dom))
    assert len(lit(dom)) > 2
    assert f'data-address="#{address}={key}"' in dom
    with_script(gesture + gesture)
    twice, _ = browse(render(view_of("resnet"), laid_out("resnet"), "x"))
    assert lit(twice) == set()


@in_a_browser
def test_layers_are_found_by_name(browse: Browse, with_script: Callable[[str], None]) -> None:
    """All words must occur, in any case; the first hit is counted."""
    with_script(
        "const field = document.getElementById('find'); field.value = 'LAYER1 conv';"
        "field.dispatchEvent(new Event('input'));"
    )
    dom, console = browse(render(view_of("resnet"), laid_out("resnet"), "x"))
    assert console == []
    hits = re.findall(r'<g class="b layer hit"[^>]*aria-label="([^":]*)', dom)
    assert hits
    assert all(name.startswith("layer1") for name in hits)
    assert re.search(rf'<output id="found">1 of {len(hits)}</output>', dom)


@in_a_browser
def test_hostile_pages_run_nothing(browse: Browse) -> None:
    """No alert, no foreign element, no complaint about the policy."""
    view = hostile()
    dom, console = browse(render(view, layout(view), EVIL))
    assert console == []
    assert "<img" not in dom


@in_a_browser
def test_errors_in_the_script_are_noticed(
    browse: Browse, with_script: Callable[[str], None]
) -> None:
    """Negative control: what goes wrong is in the console."""
    with_script("nobody.knows();")
    _, console = browse(render(view_of("resnet"), laid_out("resnet"), "x"))
    assert "nobody is not defined" in console[0]
