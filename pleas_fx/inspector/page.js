"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const view = at("view"), net = at("net"), find = at("find"), found = at("found"), chosen = at("chosen");
  const boxes = all("#net .b"), idle = chosen.textContent;
  const marked = all("[data-g]").map((part) => [part, new Set(part.dataset.g.split(" "))]);
  let kept = null;

  // Groups: pointing shows one, choosing keeps it, and the address says which.
  const show = (key) => {
    document.body.classList.toggle("pick", key !== null);
    for (const [part, keys] of marked) part.classList.toggle("on", key !== null && keys.has(key));
    const row = key === null ? null : document.querySelector(`tbody tr[data-g="${key}"]`);
    if (!row) chosen.textContent = idle;
    else {
      const name = row.querySelector("th").textContent.trim();
      const cards = boxes.filter((box) => box.classList.contains("on") && box.classList.contains("layer")).length;
      chosen.textContent = `${key[0] === "f" ? "frozen: " : ""}${name}: runs through ${cards} card${cards === 1 ? "" : "s"}`;
    }
    return row;
  };
  const known = (key) => key !== null && document.querySelector(`tbody tr[data-g="${key}"]`) !== null;
  const keep = (key) => {
    const address = key === null ? location.pathname + location.search
      : key[0] === "f" ? `#frozen=${key.slice(1)}` : `#group=${key}`;
    history.replaceState(null, "", address);
    choose();
  };
  const choose = (scroll) => {
    const match = /^#(group|frozen)=(\d+)$/.exec(location.hash);
    const key = match && (match[1] === "frozen" ? `f${match[2]}` : match[2]);
    kept = known(key) ? key : null;
    const row = show(kept);
    if (!row) return;
    row.scrollIntoView({block: "nearest"});
    if (scroll) reveal(boxes.find((box) => box.classList.contains("on")));
  };
  const pointed = (event) => {
    const part = event.target.closest("[data-g]");
    if (!part) return null;
    const inner = part.dataset.g.split(" ").filter(Boolean);
    return inner.length === 1 || !part.matches(".b") ? inner[0] || null : leaving(part);
  };
  const leaving = (box) => {
    const keys = all(`#${box.id} .strip[data-g]`).map((part) => part.dataset.g);
    return keys.length ? keys[keys.length - 1] : box.dataset.g.split(" ")[0] || null;
  };
  document.addEventListener("mouseover", (event) => { if (kept === null) show(pointed(event)); });
  document.addEventListener("click", (event) => {
    if (dragged || event.target.closest("summary, input, button")) return;
    const key = pointed(event);
    if (key !== null) { event.preventDefault(); keep(key === kept ? null : key); }
    else if (event.target.closest("#view")) keep(null);
  });
  addEventListener("hashchange", () => choose(true));

  // Size: the picture keeps its proportions, and the point under the pointer stays.
  const natural = {width: net.viewBox.baseVal.width, height: net.viewBox.baseVal.height};
  let scale = 1;
  const zoom = (to, x = view.clientWidth / 2, y = view.clientHeight / 2) => {
    const before = scale;
    scale = Math.min(4, Math.max(0.04, to));
    const left = (view.scrollLeft + x) * scale / before - x, top = (view.scrollTop + y) * scale / before - y;
    net.setAttribute("width", natural.width * scale);
    net.setAttribute("height", natural.height * scale);
    view.scrollTo(left, top);
    at("actual").textContent = `${Math.round(100 * scale)} %`;
  };
  const fitted = () => view.clientWidth / natural.width;
  const whole = () => Math.min(fitted(), view.clientHeight / natural.height);
  view.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const area = view.getBoundingClientRect();
    zoom(scale * Math.exp(-event.deltaY / 300), event.clientX - area.left, event.clientY - area.top);
  }, {passive: false});
  const sizes = {smaller: () => zoom(scale / 1.25), larger: () => zoom(scale * 1.25), actual: () => zoom(1),
    width: () => zoom(fitted()), whole: () => zoom(whole())};
  for (const [id, act] of Object.entries(sizes)) at(id).addEventListener("click", act);

  // Dragging moves the picture.
  let held = null, dragged = false;
  view.addEventListener("pointerdown", (event) => {
    dragged = false;
    if (event.pointerType === "mouse" && event.button === 0)
      held = [event.clientX, event.clientY, view.scrollLeft, view.scrollTop];
  });
  addEventListener("pointermove", (event) => {
    if (!held) return;
    const dx = event.clientX - held[0], dy = event.clientY - held[1];
    if (Math.abs(dx) + Math.abs(dy) > 4) dragged = true;
    if (dragged) { view.scrollTo(held[2] - dx, held[3] - dy); getSelection().removeAllRanges(); }
  });
  addEventListener("pointerup", () => { held = null; });

  // Finding layers by name.
  let hits = [], turn = -1;
  const reveal = (box) => { if (box) box.scrollIntoView({block: "center", inline: "nearest"}); };
  const seek = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    hits = words.length ? boxes.filter((box) => words.every((word) => box.dataset.n.includes(word))) : [];
    turn = -1;
    document.body.classList.toggle("seek", hits.length > 0);
    for (const box of boxes) box.classList.toggle("hit", hits.includes(box));
    found.textContent = words.length ? `${hits.length || "nothing"} found` : "";
    if (hits.length) next(1);
  };
  const next = (step) => {
    if (!hits.length) return;
    turn = (turn + step + hits.length) % hits.length;
    reveal(hits[turn]);
    found.textContent = `${turn + 1} of ${hits.length}`;
  };
  find.addEventListener("input", seek);

  // Keys.
  const focus = (box) => {
    if (!box) return;
    for (const other of boxes) other.setAttribute("tabindex", other === box ? "0" : "-1");
    box.focus({preventScroll: true});
    reveal(box);
  };
  const step = {ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1};
  const plain = {"+": sizes.larger, "=": sizes.larger, "-": sizes.smaller, "0": sizes.actual, w: sizes.width,
    f: sizes.whole, "/": () => find.focus()};
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const box = event.target.closest(".b");
    if (event.key === "Escape") {
      if (event.target === find) { find.value = ""; seek(); find.blur(); } else keep(null);
    } else if (event.target === find) {
      if (event.key === "Enter") { event.preventDefault(); next(event.shiftKey ? -1 : 1); }
    } else if (box && step[event.key]) {
      event.preventDefault();
      focus(boxes[boxes.indexOf(box) + step[event.key]]);
    } else if (box && (event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      const key = leaving(box);
      keep(key === kept ? null : key);
    } else if (plain[event.key]) {
      event.preventDefault();
      plain[event.key]();
    }
  });

  zoom(Math.min(1, Math.max(0.5, fitted())));
  view.scrollTo((view.scrollWidth - view.clientWidth) / 2, 0);
  choose(true);
})();
