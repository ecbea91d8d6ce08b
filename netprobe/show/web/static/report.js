"use strict";
// The pictures of a report: the live page's own, from the data in this file.
(() => {
  const { h, badge, typeP } = np;
  const data = JSON.parse(document.getElementById("data").textContent), place = document.getElementById("pictures");
  const anchor = (number) => `path-${number}`;

  // What a section is called by must have an id of its own: there are many such sections in one file.
  function apart(node, number) {
    for (const section of [node, ...node.querySelectorAll("[aria-labelledby]")]) {
      const id = section.getAttribute("aria-labelledby"), title = id && section.querySelector(`#${id}`);
      if (!title) continue;
      title.id = `${id}-${number}`;
      section.setAttribute("aria-labelledby", title.id);
    }
    return node;
  }
  function one(found) {
    const s = found.session, row = data.rows[found.number];
    const section = h("div", { id: anchor(found.number), class: "session", tabindex: -1 });
    const view = { leg: "forward", segment: null, choose: (leg, segment) => { view.leg = leg; view.segment = segment; draw(segment); } };
    function draw(focusOn) {
      const { leg, chosen, nodes } = np.pathParts.session({ session: s }, view);
      const hasHistory = found.history && found.history.run_id && found.history.run_id.length > 1;
      section.replaceChildren(...[
        h("div", { class: "head" }, h("h2", { class: "title" }, `${s.src} → ${s.dst}`), badge(row.state, false),
          h("p", { class: "muted" }, `${s.name} · vantage ${s.vantage} · ${typeP(s.type_p)}`)),
        ...nodes,
        np.pathParts.segmentPart(chosen, null),
        hasHistory ? h("section", { class: "panel" }, h("h2", {}, "End to end, over time"), np.pathParts.historyPart(found.history, null)) : null,
        found.faults ? np.pathParts.faultsPart(found.faults, [], null) : null,
        np.pathParts.small(s, { started_ns: Date.parse(data.document.started) * 1e6, run_id: data.document.run, stopped: data.document.stopped }),
      ].filter(Boolean));
      apart(section, found.number);
      const again = focusOn && section.querySelector(`[data-segment="${CSS.escape(focusOn)}"]`);
      if (again) again.focus({ preventScroll: true });
    }
    draw(null);
    return section;
  }
  function paths() {
    const nodes = [h("div", { class: "head" }, np.meshParts.summary(data.rows))];
    const shown = new Set(data.sessions.map((f) => String(f.number)));
    const matrix = h("div", {});
    const query = {};
    const draw = () => matrix.replaceChildren(np.meshParts.matrix(data.rows, query, (extra) => { Object.assign(query, extra); draw(); }, (number) => {
      const target = document.getElementById(anchor(number));
      if (target && shown.has(number)) { target.scrollIntoView(); target.focus({ preventScroll: true }); }
      else np.say("this path is in the tables only");
    }).node);
    if (data.rows.length > 1) { draw(); nodes.push(matrix); }
    nodes.push(...data.sessions.map(one));
    if (data.left_out) nodes.push(h("p", { class: "muted" }, `${data.left_out} more are in the matrix and in the tables only.`));
    return nodes;
  }
  function policy() {
    const d = data.document, parts = np.policyParts, [state, text] = parts.answer(d.counts);
    const at = h("div", {});
    const show = (number) => {
      const finding = d.findings.find((f) => f.number === number);
      if (!finding) return;
      at.replaceChildren(apart(parts.evidence(finding), `chosen-${number}`));
      at.scrollIntoView();
    };
    const told = h("p", { class: "muted", role: "status" }, "Choose a cell to see its finding, or what passed.");
    const grid = parts.matrix(d, (cell, src, dst) => {
      if (cell && cell.finding) show(cell.finding);
      else if (cell && cell.row) told.textContent = `${src} → ${dst}: ${cell.row.passes.join(", ") || "nothing passed"}`;
    });
    return [h("p", { class: `answer ${state}` }, text), ...d.findings.slice(0, 20).map((f) => apart(parts.evidence(f), f.number)), grid ? h("section", { class: "panel" }, h("h2", {}, "Who reached whom"), grid.node, told, at) : null, parts.numbers(d)].filter(Boolean);
  }
  if (data.document.matrix || data.rows.length) place.replaceChildren(...(data.document.matrix ? policy() : paths()));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => np.charts.redraw());
})();
