"use strict";
// The first look: what is broken, the matrix of all paths, what has changed.
(() => {
  const { h, duration, percent, interval, clock, badge, plural, worst, SIGNS, STATES } = np;
  const METRICS = { loss: "Loss", delay_p50: "Median delay", delay_p99: "p99 delay" };
  const STALE_NS = 600e9;
  // Where too much is undecided no loss is stated (docs/json.md), but what is lost for certain decides the order.
  const byLoss = (a, b) => STATES.indexOf(a.state) - STATES.indexOf(b.state) || (b.loss_low || 0) - (a.loss_low || 0);

  function pairsOf(paths, vantage) {
    const pairs = new Map();
    for (const p of paths) {
      if (vantage && p.vantage !== vantage) continue;
      const key = `${p.src}\u0000${p.dst}`;
      if (!pairs.has(key)) pairs.set(key, []);
      pairs.get(key).push(p);
    }
    return pairs;
  }
  // Of all paths of a pair the worst.
  function cellOf(found, metric, newest) {
    if (!found) return null;
    const state = worst(found.map((p) => p.state));
    const delays = found.filter((p) => p.delivered).map((p) => (p.delay_p99 === null && p.samples ? Infinity : p.delay_p99)).filter((x) => x !== null);
    const medians = found.filter((p) => p.delivered).map((p) => (p.delay_p50 === null && p.samples ? Infinity : p.delay_p50)).filter((x) => x !== null);
    const top = (list) => (list.length ? Math.max(...list) : null);
    const bad = found.slice().sort(byLoss)[0];
    const lossText = bad.loss_ratio === null && bad.lost ? "loss ?" : percent(bad.loss_ratio);
    const show = (ns) => (ns === null ? "–" : duration(ns === Infinity ? null : ns));
    const text = metric === "loss" ? lossText : show(top(metric === "delay_p99" ? delays : medians));
    const error = Math.max(...found.map((p) => p.clock_error || 0));
    const at = Math.max(...found.map((p) => p.started_ns));
    const label = `${bad.src} to ${bad.dst}: ${state}; loss ${percent(bad.loss_ratio)} (${interval(bad.loss_low, bad.loss_high)}), median ${show(top(medians))}, p99 ${show(top(delays))}${error ? `, ± ${duration(error)} between two clocks` : ""}`
      + (found.length > 1 ? `; the worst of ${found.length} paths` : "") + (newest - at > STALE_NS ? "; an old result" : "");
    return { state, text, sign: state === "reachable" ? null : SIGNS[state], label, stale: newest - at > STALE_NS, path: bad.path };
  }
  const names = (list) => [...new Set(list)].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));

  function summary(paths) {
    const count = Object.fromEntries(STATES.map((s) => [s, 0]));
    for (const p of paths) count[p.state] += 1;
    return h("ul", { class: "summary" }, STATES.slice().reverse().map((s) => h("li", { class: count[s] ? s : "zero" }, h("b", {}, count[s].toLocaleString("en")), " ", s)));
  }
  function where(p) {
    return p.first_missing ? `${p.last_seen} … ${p.first_missing}` : p.state === "unobserved" ? `last seen at ${p.last_seen || "no point"}` : "";
  }
  function broken(app, paths) {
    const bad = paths.filter((p) => p.state !== "reachable")
      .sort(byLoss);
    const items = bad.slice(0, 12).map((p) => h("li", {}, h("a", { href: app.link(["path", p.path]) },
      h("span", { class: "ends" }, badge(p.state, p.is_watched), ` ${p.src} → ${p.dst}`),
      h("small", {}, [where(p), p.lost ? (p.loss_ratio === null ? `${p.lost} lost` : `${percent(p.loss_ratio)} lost`) : "", p.reason ? p.reason.code : "", p.since_ns ? `since ${clock(p.since_ns)}` : ""].filter(Boolean).join(" · ")))));
    return h("section", { class: "panel", "aria-labelledby": "broken-title" }, h("h2", { id: "broken-title" }, bad.length ? `Not fine (${bad.length.toLocaleString("en")})` : "All fine"),
      items.length ? h("ol", { class: "list" }, items) : h("p", { class: "muted" }, "Every path that was probed delivers all it should."),
      bad.length > items.length ? h("p", { class: "muted" }, `and ${plural(bad.length - items.length, "path")} more, in the matrix`) : null);
  }
  function changed(app, changes) {
    const byName = new Map(app.overview.paths.map((p) => [`${p.name}\u0000${p.src}\u0000${p.dst}`, p.path]));
    const nameOf = (c) => `${c.name}\u0000${c.src}\u0000${c.dst}`;
    // That a path was found to be fine at the start is no news.
    const news = changes.filter((c, i) => !(c.before === "unobserved" && c.after === "reachable" && !changes.slice(i + 1).some((o) => nameOf(o) === nameOf(c))));
    const items = news.slice(0, 12).map((c) => {
      const path = byName.get(`${c.name}\u0000${c.src}\u0000${c.dst}`);
      const words = [h("span", { class: "ends" }, h("time", {}, clock(c.since_ns)), ` ${c.src} → ${c.dst}`), h("small", {}, badge(c.before), " → ", badge(c.after),
        c.first_missing ? ` ${c.last_seen} … ${c.first_missing}` : "", c.reason && c.reason.code !== "unknown" ? ` · ${c.reason.code}` : "")];
      return h("li", {}, path ? h("a", { href: app.link(["path", path]) }, words) : h("div", {}, words));
    });
    return h("section", { class: "panel", "aria-labelledby": "changed-title" }, h("h2", { id: "changed-title" }, "Last changes"),
      items.length ? h("ol", { class: "list" }, items) : h("p", { class: "muted" }, "None. ", h("code", {}, "netprobe watch"), " tells of changes."));
  }

  // The matrix with its choices. `open(path)` is told which path was chosen.
  function matrix(paths, query, choose, open) {
    const vantages = names(paths.map((p) => p.vantage));
    const vantage = vantages.includes(query.vantage) ? query.vantage : "";
    const metric = METRICS[query.show] ? query.show : "loss";
    const pairs = pairsOf(paths, vantage);
    const rows = names(paths.map((p) => p.src)), cols = names(paths.map((p) => p.dst));
    const newest = Math.max(...paths.map((p) => p.started_ns));
    const cache = new Map();
    const cell = (r, c) => {
      const key = `${rows[r]}\u0000${cols[c]}`;
      if (!cache.has(key)) cache.set(key, cellOf(pairs.get(key), metric, newest));
      return cache.get(key);
    };
    const grid = np.grid({ label: `Paths from source (rows) to destination (columns): ${METRICS[metric]}`, corner: "from \\ to", rows, cols, cell,
      open: (r, c) => { const found = cell(r, c); if (found) open(found.path); else np.say(`nothing is known of ${rows[r]} to ${cols[c]}`); } });
    const pick = (name, label, options, value) => h("label", {}, `${label} `, h("select", { onchange: (e) => choose({ [name]: e.target.value || null }) },
      options.map(([v, word]) => h("option", { value: v, selected: v === value }, word))));
    return { grid, rows, cols, node: h("section", { class: "panel", "aria-labelledby": "matrix-title" },
      h("div", { class: "bar" }, h("h2", { id: "matrix-title" }, `${plural(paths.length, "path")}, ${plural(rows.length, "source")}`),
        h("div", { class: "choices" }, pick("show", "Show", Object.entries(METRICS), metric),
          vantages.length > 1 ? pick("vantage", "Vantage", [["", "worst of all"], ...vantages.map((v) => [v, v])], vantage) : h("span", { class: "muted" }, `vantage ${vantages[0]}`))),
      grid.node,
      h("p", { class: "legend" }, STATES.slice().reverse().map((s) => [h("span", { class: `key ${s}`, "aria-hidden": "true" }, s === "reachable" ? "\u00a0" : SIGNS[s]), ` ${s} `]),
        "· arrow keys move, Enter opens")) };
  }
  np.meshParts = { matrix, summary };

  let last = null;  // where the focus was, for the way back
  np.views.mesh = async (app, _rest, query) => {
    const paths = app.overview.paths;
    if (!paths.length) {
      return { title: "Mesh", nodes: [h("div", { class: "head" }, h("h1", {}, "Mesh")), h("section", { class: "panel" }, h("h2", {}, "Nothing has been probed yet"),
        h("p", {}, "This page shows what is in the store. Fill it with ", h("code", {}, "netprobe watch PLAN"), ", ", h("code", {}, "netprobe run PLAN"), " or ", h("code", {}, "netprobe trace SRC DST"), "."))] };
    }
    const { grid, rows, cols, node } = matrix(paths, query, (extra) => app.go(["mesh"], { ...query, ...extra }, true), (path) => {
      last = grid.active().map((i, k) => (k ? cols : rows)[i]);
      app.go(["path", path]);
    });
    if (last) {
      const [r, c] = [rows.indexOf(last[0]), cols.indexOf(last[1])];
      if (r >= 0 && c >= 0) grid.select(r, c);
    }
    const gone = app.overview.forgotten;
    return { title: "Mesh", focus: () => grid.focus(), nodes: [
      h("div", { class: "head" }, h("h1", {}, "Mesh"), summary(paths), gone ? h("p", { class: "muted" }, `${plural(gone, "older path")} not shown`) : null),
      h("div", { class: "with-side" }, node, h("div", { class: "side" }, broken(app, paths), changed(app, app.overview.changes || []))),
    ] };
  };
})();
