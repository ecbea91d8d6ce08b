"use strict";
// Verifications: who reached whom, and each finding with its evidence.
(() => {
  const { h, clock, plural, table } = np;
  const BAD = ["leak", "overblock", "wrong place", "divergence"];
  const tone = (kind) => (BAD.includes(kind) ? "unreachable" : "degraded");
  const tag = (kind) => h("span", { class: `badge ${tone(kind)}` }, kind);

  function answer(counts) {
    const found = Object.entries(counts).filter(([, n]) => n);
    if (!found.length) return ["reachable", "The policy is enforced: no findings."];
    const words = found.map(([kind, n]) => `${n} ${kind}`).join(", ");
    if (found.every(([kind]) => kind === "unproven")) return ["degraded", `Nothing speaks against the policy, but not all is proved: ${words}.`];
    return ["unreachable", `The policy is not enforced as it is meant: ${words}.`];
  }
  function matrix(document, open) {
    const rows = [...new Set(document.matrix.flatMap((m) => [m.src, m.dst]))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    if (!rows.length) return null;
    const key = (a, b) => `${a}\u0000${b}`;
    const cells = new Map(document.matrix.map((m) => [key(m.src, m.dst), m]));
    const worstOf = new Map();
    for (const f of document.findings) {
      const k = key(f.src, f.dst);
      const one = worstOf.get(k) || { first: f, count: 0 };
      one.count += 1 + (f.repeats || 0);
      worstOf.set(k, one);
    }
    const cell = (r, c) => {
      const k = key(rows[r], rows[c]), m = cells.get(k), f = worstOf.get(k);
      if (!m && !f) return null;
      const reach = !m ? "not tried" : m.reachable === null ? "undecided" : m.reachable ? `${plural(m.classes, "class", "classes")} of packets passed` : "nothing passed";
      const text = f ? plural(f.count, "finding") : !m || m.reachable === null ? "?" : m.reachable ? `${m.classes} pass` : "–";
      return { state: f ? tone(f.first.kind) : !m || m.reachable === null ? "unobserved" : m.reachable ? "reachable" : "closed", text, sign: f ? "!" : null,
        label: `${rows[r]} to ${rows[c]}: ${reach}${f ? `; ${plural(f.count, "finding")}, first ${f.first.kind}` : ""}`, finding: f && f.first.number, row: m };
    };
    return np.grid({ label: "Who reached whom, from source (rows) to destination (columns)", corner: "from \\ to", rows, cols: rows, cell,
      open: (r, c) => open(cell(r, c), rows[r], rows[c]) });
  }
  const pair = (name, value) => (value === "" || value === null || value === undefined ? null : h("div", {}, h("dt", {}, name), h("dd", {}, value)));
  function where(e) {
    return e.missing ? (e.last_seen ? `between ${e.last_seen} and ${e.missing}` : `before ${e.missing}`) : "nowhere";
  }
  function decided(d) {
    if (!d) return "nobody could be asked";
    if (d.is_allowed === null) return `cannot say: ${d.detail}`;
    return `${d.host} ${d.is_allowed ? "lets it pass" : "drops it"} (${d.evidence}): ${[d.place, d.match, d.cookie, d.rule, d.detail].filter(Boolean).join("; ")}`;
  }
  // A finding with all that stands behind it.
  function evidence(f) {
    const e = f.evidence;
    return h("section", { class: "panel evidence", "aria-labelledby": "finding-title" },
      h("h2", { id: "finding-title", tabindex: -1 }, tag(f.kind), ` Finding ${f.number}${f.src ? `: ${f.src} → ${f.dst}` : ""}`),
      e && e.sent ? h("ol", { class: "hops", "aria-label": "Hop by hop" },
        h("li", {}, h("b", {}, "went in"), `${plural(e.sent, "packet")}${e.last_seen ? `, seen at ${e.last_seen}` : ", seen nowhere on their way"}`),
        h("li", { class: e.arrived ? "reachable" : "unreachable" }, h("b", {}, "came out"), `${plural(e.arrived, "packet")}${e.rejected ? `; ${e.rejected} times the sender was told` : ""}`),
        h("li", { class: e.missing ? "unreachable" : "" }, h("b", {}, "stopped"), where(e))) : null,
      h("dl", { class: "figures one" },
        pair("packet", f.packet), pair("should", f.rule ? `${f.expected}: ${f.rule}${f.rule_id ? ` [${f.rule_id}]` : ""}` : f.expected), pair("did", f.observed),
        pair("the enforcement's own model", decided(f.decided)), pair("why", f.detail), pair("scenario", f.scenario ? `${f.scenario}, packet ${f.step + 1} of it` : ""),
        pair("alike", f.repeats ? `${f.repeats} more: ${(f.alike || []).slice(0, 10).join(", ")}${f.alike.length > 10 ? " …" : ""}` : "")));
  }
  function list(document, chosen, link) {
    const rows = document.findings.slice(0, 200).map((f) => h("tr", { class: f.number === chosen ? "chosen" : null },
      h("td", {}, link ? h("a", { href: link(f.number), "aria-current": f.number === chosen ? "true" : null }, `#${f.number}`) : `#${f.number}`), h("td", {}, tag(f.kind)),
      h("td", {}, f.src ? `${f.src} → ${f.dst}` : ""), h("td", { class: "long" }, f.packet || f.expected), h("td", {}, f.packet ? `should ${f.expected}; ${f.observed}` : f.detail), h("td", {}, f.rule || (f.decided && f.decided.rule) || "")));
    return table(["#", "finding", "pair", "packet", "what became of it", "rule"], rows);
  }
  function numbers(document) {
    const plan = document.plan;
    return h("section", { class: "panel", "aria-labelledby": "numbers-title" }, h("h2", { id: "numbers-title" }, "How it was proved"),
      h("p", {}, `${document.policy.rules} rules in ${document.policy.groups} groups, ${document.policy.acls} ACLs, ${document.policy.ports} ports (${document.backend}, vantage ${document.vantage}): `
        + `${plan.scenarios} scenarios, ${plan.probes.toLocaleString("en")} packets (at least ${plan.lower_bound.toLocaleString("en")}; all pairs × all ports: ${plan.naive.toLocaleString("en")}).`),
      h("p", {}, `${document.sent} packets sent in ${document.rounds} rounds, ${document.seconds.toFixed(1)} s. What passes is lost less often than ${+(100 * document.loss.upper).toPrecision(2)} %, so ${document.loss.misses_needed} misses in a row are a drop`
        + ` (alpha ${document.alpha} for all together; Tmax ${document.tmax_ms} ms; seed ${document.seed}).`),
      document.differences.length ? [h("h3", {}, `By nature of ${document.backend}`), h("ul", { class: "notes" }, document.differences.map((d) => h("li", {}, `${d.text} (${plural(d.steps, "packet")})`)))] : null,
      [...plan.shadowed.map((r) => `shadowed: ${r.rule}: ${r.why}`), ...plan.unproven.map((r) => `unproven: ${r.what}: ${r.why}`), ...document.strayed, ...document.notes]
        .map((text) => h("p", { class: "muted" }, text)));
  }
  np.policyParts = { answer, matrix, evidence, list, numbers };

  np.views.policy = async (app, [run, number], query) => {
    const all = app.overview.verifications || [];
    const head = (...rest) => h("div", { class: "head" }, h("h1", {}, "Policy"), ...rest);
    if (!all.length) {
      return { title: "Policy", nodes: [head(), h("section", { class: "panel" }, h("h2", {}, "No policy has been verified yet"), h("p", {}, h("code", {}, "netprobe verify POLICY"), " proves one, and it is shown here."))] };
    }
    const id = run || all[0].run_id;
    const document = await app.get(`/api/verify/${encodeURIComponent(id)}`);
    const chosen = number ? +number : null;
    const finding = document.findings.find((f) => f.number === chosen);
    const [state, text] = answer(document.counts);
    let told = null;
    const grid = matrix(document, (cell, src, dst) => {
      if (cell && cell.finding) app.go(["policy", id, String(cell.finding)]);
      else if (cell && cell.row) { told.textContent = `${src} → ${dst}: ${cell.row.passes.length ? `passed: ${cell.row.passes.join(", ")}` : "nothing passed"}; ${cell.row.dropped} dropped, ${cell.row.undecided} undecided`; }
    });
    told = h("p", { class: "muted", role: "status" }, "Choose a cell to see what passed, or its finding.");
    const when = h("label", {}, "Verification ", h("select", { onchange: (e) => app.go(["policy", e.target.value]) },
      all.map((v) => h("option", { value: v.run_id, selected: v.run_id === id }, `${clock(v.started_ns)} · ${v.source || v.backend}`))));
    const link = (n) => app.link(["policy", id, String(n)]);
    return { title: "Policy", nodes: [
      head(h("div", { class: "choices" }, when)),
      h("p", { class: `answer ${state}` }, text, document.stopped ? ` It ended early: ${document.stopped}.` : ""),
      finding ? evidence(finding) : null,
      document.findings.length ? h("section", { class: "panel", "aria-labelledby": "findings-title" }, h("h2", { id: "findings-title" }, plural(document.findings.length, "finding")), list(document, chosen, link)) : null,
      grid ? h("section", { class: "panel", "aria-labelledby": "who-title" }, h("h2", { id: "who-title" }, "Who reached whom"), grid.node, told) : null,
      numbers(document),
    ] };
  };
})();
