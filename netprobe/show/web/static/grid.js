"use strict";
// A matrix that stays small: only the cells in sight are elements. One of them has the focus (roving tabindex).
(() => {
  const { h } = np;
  const HEAD = 116, MARGIN = 2;

  // rows, cols: names; cell(r, c): null, or {state, text, label, sign}; open(r, c).
  np.grid = ({ label, corner, rows, cols, cell, open, extent }) => {
    const few = Math.max(rows.length, cols.length);
    const size = extent || (few <= 4 ? [132, 56] : few <= 8 ? [92, 46] : few <= 24 ? [52, 34] : [24, 24]);
    const [width, height] = size;
    const isNarrow = width < 60;
    const headHeight = isNarrow ? 104 : 34;
    const inner = h("div", { class: `grid${isNarrow ? " tall" : ""}`, role: "grid", "aria-label": label,
      "aria-rowcount": rows.length + 1, "aria-colcount": cols.length + 1,
      style: { width: `${HEAD + cols.length * width}px`, height: `${headHeight + rows.length * height}px` } });
    const scroller = h("div", { class: "scroller", style: { "--cell-w": `${width}px`, "--cell-h": `${height}px`, "--head-h": `${headHeight}px`, "--head-w": `${HEAD}px` } }, inner);
    let active = [0, 0], range = "";

    const inSight = () => {
      const r0 = Math.max(0, Math.floor((scroller.scrollTop - headHeight) / height) - MARGIN);
      const c0 = Math.max(0, Math.floor((scroller.scrollLeft - HEAD) / width) - MARGIN);
      const r1 = Math.min(rows.length, Math.ceil((scroller.scrollTop + (scroller.clientHeight || 600)) / height) + MARGIN);
      const c1 = Math.min(cols.length, Math.ceil((scroller.scrollLeft + (scroller.clientWidth || 1000)) / width) + MARGIN);
      return [r0, r1, c0, c1];
    };
    function one(r, c) {
      const found = cell(r, c);
      const isActive = r === active[0] && c === active[1];
      const name = `${rows[r]} to ${cols[c]}`;
      return h("div", {
        role: "gridcell", class: `cell ${found ? found.state : "none"}${found && found.stale ? " stale" : ""}`, "aria-colindex": c + 2,
        tabindex: isActive ? 0 : -1, "data-r": r, "data-c": c, title: found ? found.label : null,
        "aria-label": found ? found.label : `${name}: nothing known`, style: { left: `${HEAD + c * width}px` },
      }, found && (width >= 50 ? [found.sign && h("span", { class: "sign" }, found.sign), found.text] : found.sign));
    }
    function render(force) {
      const [r0, r1, c0, c1] = inSight();
      const now = [r0, r1, c0, c1].join();
      if (!force && now === range) return;
      range = now;
      const hadFocus = inner.contains(document.activeElement);
      const list = [];
      const heads = [h("div", { role: "columnheader", class: "corner", "aria-colindex": 1 }, corner)];
      for (let c = c0; c < c1; c++) {
        heads.push(h("div", { role: "columnheader", class: "colhead", "aria-colindex": c + 2, title: cols[c], style: { left: `${HEAD + c * width}px` } }, h("span", {}, cols[c])));
      }
      list.push(h("div", { role: "row", class: "row heads", "aria-rowindex": 1 }, heads));
      for (let r = r0; r < r1; r++) {
        const cells = [h("div", { role: "rowheader", class: "rowhead", "aria-colindex": 1, title: rows[r] }, rows[r])];
        for (let c = c0; c < c1; c++) cells.push(one(r, c));
        list.push(h("div", { role: "row", class: "row", "aria-rowindex": r + 2, style: { top: `${headHeight + r * height}px` } }, cells));
      }
      inner.replaceChildren(...list);
      if (!at(...active)) {  // scrolled out of sight: the keyboard finds its way in at the first cell there is
        const first = inner.querySelector("[data-r]");
        if (first) first.tabIndex = 0;
      }
      if (hadFocus) focus();
    }
    const at = (r, c) => inner.querySelector(`[data-r="${r}"][data-c="${c}"]`);
    function reveal(r, c) {
      const top = r * height, left = c * width;
      if (top < scroller.scrollTop) scroller.scrollTop = top;
      const lowest = top + height + headHeight - scroller.clientHeight;
      if (lowest > scroller.scrollTop) scroller.scrollTop = lowest;
      if (left < scroller.scrollLeft) scroller.scrollLeft = left;
      const rightmost = left + width + HEAD - scroller.clientWidth;
      if (rightmost > scroller.scrollLeft) scroller.scrollLeft = rightmost;
    }
    function focus() {
      const node = at(...active);
      if (node) node.focus({ preventScroll: true });
    }
    function move(r, c) {
      const before = at(...active);
      active = [Math.max(0, Math.min(rows.length - 1, r)), Math.max(0, Math.min(cols.length - 1, c))];
      reveal(...active);
      render(false);
      if (before) before.tabIndex = -1;
      const node = at(...active);
      if (node) { node.tabIndex = 0; focus(); }
    }
    inner.addEventListener("click", (event) => {
      const node = event.target.closest("[data-r]");
      if (!node) return;
      move(+node.dataset.r, +node.dataset.c);
      open(...active);
    });
    inner.addEventListener("keydown", (event) => {
      const [r, c] = active, page = Math.max(1, Math.floor(scroller.clientHeight / height) - 2);
      const steps = { ArrowUp: [r - 1, c], ArrowDown: [r + 1, c], ArrowLeft: [r, c - 1], ArrowRight: [r, c + 1],
        PageUp: [r - page, c], PageDown: [r + page, c],
        Home: event.ctrlKey ? [0, 0] : [r, 0], End: event.ctrlKey ? [rows.length, cols.length] : [r, cols.length] };
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(r, c); return; }
      if (!steps[event.key] || event.altKey || event.metaKey) return;
      event.preventDefault();
      move(...steps[event.key]);
    });
    inner.addEventListener("focusin", (event) => {
      if (event.target.dataset.r !== undefined) active = [+event.target.dataset.r, +event.target.dataset.c];
    });
    let pending = false;
    scroller.addEventListener("scroll", () => {
      if (pending) return;
      pending = true;
      requestAnimationFrame(() => { pending = false; render(false); });
    });
    new ResizeObserver(() => render(false)).observe(scroller);
    render(true);
    return { node: scroller, refresh: () => render(true), focus, select: (r, c) => { active = [r, c]; reveal(r, c); render(true); }, active: () => active };
  };
})();
