"use strict";
// One path: the verdict, the line of points with what happened between them, one segment's figures, what was before.
(() => {
  const { h, svg, duration, span, percent, interval, clock, badge, table, typeP } = np;

  // Between two clocks a figure may be all that is certain: what the true one lies between.
  function figure(segment, key) {
    if (segment.delay_ns) return duration(segment.delay_ns[key]);
    return segment.delay_bounds_ns ? span(...segment.delay_bounds_ns[key]) : "–";
  }
  // How sure a figure is: what is seen, and the word for those who do not see. Of two clocks their error is the larger part.
  function sureness(segment, key) {
    const d = segment.delay_ns;
    if (!d) return segment.delay_bounds_ns ? ["for certain", "between two clocks"] : null;
    const bounds = segment.delay_bounds_ns && segment.delay_bounds_ns[key];
    if (segment.clock_error_ns !== null) return d[key] === null ? bounds && [span(...bounds), "between two clocks"] : [`± ${duration(segment.clock_error_ns)}`, "clock error"];
    const range = d[`${key}_interval_95`];
    return range ? [span(...range), "95 % interval"] : [`n = ${d.samples}`, "samples"];
  }
  function sure(segment, key) {
    const found = sureness(segment, key);
    return h("span", { class: "sure" }, found && [h("span", { class: "unseen" }, `${found[1]} `), found[0]]);
  }
  const inWords = (segment, key) => { const found = sureness(segment, key); return `${figure(segment, key)}${found ? ` (${found[0]})` : ""}`; };
  const health = (s) => (s.lost ? (s.received ? "degraded" : "unreachable") : s.sent && !s.received ? "unobserved" : s.sent ? "reachable" : "unobserved");

  // The chain of segments from the first point on, and wider spans. Where nobody looked in between, the span takes the
  // place of what it spans (`via`: those points); where somebody did, what lies within a lossy span is marked (`within`).
  function chain(segments) {
    let line = [];
    const wide = [], within = new Map(), via = new Map();
    for (const segment of segments) {
      const last = line[line.length - 1];
      if (!last || last.to === segment.from) line.push(segment);
      else wide.push(segment);
    }
    const apart = [];
    for (const span of wide) {
      const first = line.findIndex((x) => x.from === span.from), end = line.findIndex((x) => x.to === span.to) + 1;
      const inner = first < 0 || end <= first ? [] : line.slice(first, end);
      if (inner.length && inner.every((x) => !x.delay_ns && !x.delay_bounds_ns && !x.lost)) {
        via.set(span.id, inner.slice(1).map((x) => x.from));
        line = [...line.slice(0, first), span, ...line.slice(end)];
      } else {
        apart.push(span);
        if (span.lost) for (const x of inner) within.set(x.id, span);
      }
    }
    return { line, wide: apart, within, via };
  }
  function verdict(s) {
    const unsure = s.unobserved + s.pending ? ` Of ${s.unobserved + s.pending} nobody can say.` : "";
    const unsent = s.unsent ? ` ${s.unsent} were not sent.` : "";
    if (s.lost && s.first_missing) {
      const late = (s.reason || {}).code === "late" ? "came too late" : s.lost > 1 ? "were lost" : "was lost";
      return `${s.lost} of ${s.planned - s.unsent} probes ${late}${s.lost > 1 ? ", most of them" : ""} between ${s.last_seen} and ${s.first_missing}.${unsure}${unsent}`;
    }
    if (!s.delivered) return `No answer: last seen at ${s.last_seen || "no point"}, and nobody can say more.${unsent}`;
    return `${s.received} of ${s.planned - s.unsent} probes arrived${s.complete ? ", seen at every point" : ""}.${unsure}${unsent}`;
  }
  function reason(r) {
    if (!r) return null;
    const parts = [`${r.code} (${r.evidence})`];
    if (r.rule) parts.push(`security group rule: ${r.rule}`);
    if (r.table !== null && r.table !== undefined) parts.push(`OpenFlow table ${r.table}, cookie ${r.cookie}${r.priority !== null && r.priority !== undefined ? `, priority ${r.priority}` : ""}`);
    if (r.match) parts.push(r.match);
    if (r.detail) parts.push(r.detail);
    return h("p", { class: "reason" }, h("strong", {}, "Reason: "), parts.join(" · "));
  }

  // Points as circles, segments as buttons between them.
  function drawLine({ line: segments, within, via }, whole, chosen, choose) {
    const total = (whole && whole.delay_ns && whole.delay_ns.p50) || segments.reduce((n, s) => n + ((s.delay_ns && s.delay_ns.p50) || 0), 0);
    const items = [];
    segments.forEach((segment, i) => {
      if (!i) items.push(point(segment.from, segment.sent));
      const share = total && segment.delay_ns && segment.delay_ns.p50 !== null ? Math.min(1, segment.delay_ns.p50 / total) : 0;
      const span = within.get(segment.id), between_ = via.get(segment.id);
      const state = span && !segment.lost ? "degraded" : health(segment);
      const loss = span && !segment.lost ? `${span.lost} lost in ${span.from} … ${span.to}` : segment.sent ? (segment.loss_ratio === null ? "loss ?" : `${percent(segment.loss_ratio)} lost`) : "none came so far";
      const bar = svg("svg", { class: "share", viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" },
        svg("rect", { width: 100, height: 4, class: "track" }), svg("rect", { width: (100 * share).toFixed(1), height: 4, class: "fill" }));
      items.push(h("li", { class: `segment ${state}` }, h("button", {
        type: "button", "aria-pressed": String(segment.id === chosen), "data-segment": segment.id, onclick: () => choose(segment.id),
      },
        h("span", { class: "unseen" }, `${segment.from} to ${segment.to}: `),
        h("span", { class: "kind" }, segment.kind, between_ ? h("i", { title: between_.join(", ") }, ` past ${between_.length} unseen`) : null),
        h("span", { class: "median" }, h("span", { class: "unseen" }, "median "), figure(segment, "p50")), sure(segment, "p50"),
        h("span", { class: "wire", "aria-hidden": "true" }, h("i", {})),
        h("span", { class: "p99" }, `p99 ${figure(segment, "p99")}`), sure(segment, "p99"),
        h("span", { class: "loss" }, state === "reachable" ? "0 % lost" : loss),
        h("span", { class: "sure" }, segment.sent ? [h("span", { class: "unseen" }, "95 % interval "), interval(...segment.loss_interval_95)] : ""),
        bar)));
      items.push(point(segment.to, segment.received));
    });
    return h("ol", { class: "line", "aria-label": "Points and segments, in travel order" }, items);
  }
  function point(id, seen) {
    const [owner, ...rest] = id.split(".");
    return h("li", { class: `point${seen ? "" : " dark"}` }, h("span", { class: "dot", "aria-hidden": "true" }),
      h("span", { class: "name" }, owner, rest.length ? h("br", {}) : null, rest.length ? h("small", {}, rest.join(".")) : null),
      h("small", { class: "seen" }, `${seen} seen`));
  }

  function figures(segment) {
    const d = segment.delay_ns, rows = [
      ["sent → received", `${segment.sent} → ${segment.received}`],
      ["lost", `${segment.lost}${segment.undecided ? ` (${segment.undecided} undecided)` : ""}`],
      ["loss, 95 % interval", segment.sent ? `${percent(segment.loss_ratio)}  (${interval(...segment.loss_interval_95)})` : "none came so far"],
      ...["min", "p50", "p90", "p99", "max"].map((k) => [k, figure(segment, k)]),
    ];
    for (const k of ["p50", "p99"]) if (d && d[`${k}_interval_95`]) rows.push([`${k}, 95 % interval`, span(...d[`${k}_interval_95`])]);
    if (segment.pdv_ns) rows.push(["PDV p99", duration(segment.pdv_ns.p99)]);
    if (segment.clock_error_ns !== null) rows.push(["clocks", `± ${duration(segment.clock_error_ns)}`]);
    rows.push(["duplicated, reordered", `${segment.duplicated}, ${segment.reordered}`], ["stamped by", segment.stamp]);
    if (d) rows.push(["samples", d.samples]);
    return h("dl", { class: "figures" }, rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
  }
  function segmentPart(segment, history) {
    return h("section", { class: "panel", "aria-labelledby": "segment-title" },
      h("h2", { id: "segment-title" }, `${segment.from} → ${segment.to}`),
      segment.clock_problem && h("p", { class: "warn" }, segment.clock_problem),
      h("div", { class: "split" },
        figures(segment),
        h("div", {}, h("h3", {}, "Distribution of delay"), segment.delay_ns ? np.charts.distribution(segment.delay_ns)
          : h("p", { class: "muted" }, "No delay is stated: no probe has a time at both ends, or the clocks do not allow it."))),
      history);
  }
  function historyPart(points, pick) {
    if (!points.run_id || points.run_id.length < 2) return h("p", { class: "muted" }, "History begins with the second result of this path.");
    return h("div", { class: "histories" },
      h("h3", {}, "Delay over time", pick && h("small", {}, " – click a time to see that result")), np.charts.delayHistory(points, pick),
      h("h3", {}, "Loss over time, with its 95 % interval"), np.charts.lossHistory(points, pick));
  }
  function faultsPart(faults, changes, link) {
    const rows = faults.map((f) => h("tr", {},
      h("td", {}, link ? h("a", { href: link(f.run_id) }, clock(f.started_ns)) : clock(f.started_ns)), h("td", {}, `${f.lost} of ${f.sent}`),
      h("td", {}, f.first_missing ? `${f.last_seen} … ${f.first_missing}` : f.last_seen || "–"), h("td", {}, f.reason ? f.reason.code : "–"), h("td", {}, (f.reason && f.reason.rule) || "")));
    const told = changes.map((c) => h("li", {}, h("time", {}, clock(c.since_ns)), " ", badge(c.before), " → ", badge(c.after),
      c.first_missing ? ` between ${c.last_seen} and ${c.first_missing}` : "", c.reason ? ` · ${c.reason.code}${c.reason.rule ? `: ${c.reason.rule}` : ""}` : ""));
    return h("section", { class: "panel", "aria-labelledby": "faults-title" }, h("h2", { id: "faults-title" }, "Last faults"),
      told.length ? h("ol", { class: "told" }, told) : null,
      rows.length ? table(["when", "lost", "between", "reason", "rule"], rows) : h("p", { class: "muted" }, "None of the kept results lost a probe."));
  }
  function small(session, run) {
    const rows = [
      ["vantage", session.vantage], ["Type-P", typeP(session.type_p)], ["Tmax", `${session.tmax_ms} ms`], ["seed", session.seed],
      ["schedule", `${session.schedule}, ${session.rate_pps} per second`], ["begun", clock(run.started_ns, true)], ["run", run.run_id],
    ];
    if (session.epoch) rows.push(["epoch", `${session.epoch.number + 1} of ${session.epoch.of}${session.epoch.because ? `: ${session.epoch.because}` : ""}`]);
    if (run.stopped) rows.push(["ended early", run.stopped]);
    if (session.pacing) rows.push(["pacing error", `p50 ${duration(session.pacing.p50_ns)}, p99 ${duration(session.pacing.p99_ns)}`]);
    const counted = Object.entries(session.counters).filter(([, n]) => n);
    if (counted.length) rows.push(["counters", counted.map(([k, n]) => `${k} ${n}`).join(", ")]);
    const shed = Object.entries(session.overflowed || {});
    return h("section", { class: "panel", "aria-labelledby": "how-title" }, h("h2", { id: "how-title" }, "How it was measured"),
      shed.length ? h("p", { class: "warn" }, `Frames were shed, so this result is incomplete: ${shed.map(([p, w]) => `${p}: ${w}`).join("; ")}`) : null,
      session.forged ? h("p", { class: "warn" }, `${session.forged} records claimed to be ours and were not counted.`) : null,
      session.remarked_at ? h("p", { class: "warn" }, `The class mark was rewritten: first seen changed at ${session.remarked_at}.`) : null,
      h("dl", { class: "figures" }, rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
      h("p", { class: "ledger" }, np.ledger(session)),
      session.notes.length ? h("ul", { class: "notes" }, session.notes.map((note) => h("li", {}, note))) : null);
  }

  // Everything of one session (docs/json.md). `view`: chosen leg and segment, and what happens when others are chosen.
  function session(found, view) {
    const s = found.session, legs = { forward: s };
    if (s.return && s.return.planned) legs.return = s.return;
    const leg = legs[view.leg] ? view.leg : "forward";
    const drawn = chain(legs[leg].segments), { line, wide } = drawn;
    const all = [...line, ...wide, legs[leg].end_to_end].filter(Boolean);
    const busiest = [...line, ...wide].reduce((a, b) => (b.lost > a.lost ? b : a), line[0] || legs[leg].end_to_end);
    const chosen = all.find((x) => x.id === view.segment) || (s.lost && leg === "forward" ? busiest : null) || legs[leg].end_to_end;
    const e2e = legs[leg].end_to_end;
    return { leg, chosen, nodes: [
      h("section", { class: "panel", "aria-labelledby": "line-title" },
        h("div", { class: "bar" }, h("h2", { id: "line-title" }, leg === "forward" ? "Path" : "Answers"),
          legs.return && h("div", { class: "switch", role: "group", "aria-label": "Leg" }, Object.keys(legs).map((name) => h("button", {
            type: "button", "aria-pressed": String(name === leg), onclick: () => view.choose(name, null) }, name === "forward" ? "probes" : "answers")))),
        h("p", { class: "verdict" }, leg === "forward" ? verdict(s) : np.ledger(legs.return)),
        leg === "forward" && reason(s.reason),
        drawLine(drawn, e2e, chosen.id, (id) => view.choose(leg, id)),
        h("div", { class: "chips" }, [...wide.map((w) => [w, "wider span"]), [e2e, "end to end"]].map(([segment, word]) => h("button", {
          type: "button", class: `chip ${health(segment)}`, "aria-pressed": String(chosen.id === segment.id && chosen === segment), "data-segment": segment.id,
          onclick: () => view.choose(leg, segment.id) }, `${word}: ${word === "end to end" ? "" : `${segment.from} … ${segment.to}, `}p50 ${inWords(segment, "p50")}, p99 ${inWords(segment, "p99")}, ${percent(segment.loss_ratio)} lost${segment.sent ? ` (${interval(...segment.loss_interval_95)})` : ""}`))),
        h("p", { class: "legend" }, "Above the line the median. Beneath each figure its 95 % interval; ± is by how much two clocks may be off.")),
    ] };
  }
  np.pathParts = { session, segmentPart, historyPart, faultsPart, small, figures };

  function head(s, state, rest) {
    return h("div", { class: "head" },
      h("a", { class: "back", href: "#/mesh" }, "← Mesh"),
      h("h1", {}, h("span", {}, s.src), h("span", { class: "arrow", "aria-label": "to" }, " → "), h("span", {}, s.dst)),
      badge(state.state, state.is_watched),
      h("p", { class: "muted" }, `${s.name} · vantage ${s.vantage} · ${typeP(s.type_p)}`, rest));
  }

  // The page's view of one path. What is known already is shown while the store is asked.
  np.views.path = async (app, [id], query, early) => {
    const known = app.overview.paths.find((p) => p.path === id);
    const asked = app.get(`/api/path/${encodeURIComponent(id)}${query.run ? `?run=${encodeURIComponent(query.run)}` : ""}`);
    if (known && !query.run) early([head(known, known, " · …"), h("section", { class: "panel waiting" })]);
    const found = await asked;
    const row = app.overview.paths.find((p) => p.path === id);
    const s = found.session;
    const go = (extra, replace = true) => app.go(["path", id], { ...query, ...extra }, replace);
    const view = { leg: query.leg || "forward", segment: query.segment, choose: (leg, segment) => go({ leg: leg === "forward" ? null : leg, segment }) };
    const { leg, chosen, nodes } = session(found, view);
    const isWhole = chosen === (leg === "forward" ? s.end_to_end : s.return.end_to_end);
    const siblings = app.overview.paths.filter((p) => p.src === s.src && p.dst === s.dst && p.path !== id);
    const pick = (run) => go({ run }, false);
    // What was measured is shown at once, what was before when it has come.
    const before = h("div", {}, isWhole && leg === "forward" ? historyPart(found.history, pick) : h("p", { class: "muted" }, "…"));
    if (!isWhole || leg !== "forward") {
      app.get(`/api/path/${encodeURIComponent(id)}/segment?leg=${leg}&id=${encodeURIComponent(chosen.id)}`)
        .then((more) => before.replaceChildren(historyPart(more.history, pick)), (error) => before.replaceChildren(h("p", { class: "warn" }, error.message)));
    }
    const changes = app.overview.changes ? app.overview.changes.filter((c) => c.name === s.name && c.src === s.src && c.dst === s.dst).slice(0, 10) : [];
    const isOld = query.run && row && row.run_id !== query.run;
    return { title: `${s.src} → ${s.dst}`, nodes: [
      head(s, found, ` · ${isOld ? "result of" : "as of"} ${clock(found.started_ns)}${found.since_ns && !isOld ? ` · since ${clock(found.since_ns)}` : ""}`),
      isOld ? h("p", { class: "warn" }, "This is an earlier result. ", h("a", { href: app.link(["path", id], { ...query, run: null }) }, "Show the newest")) : null,
      siblings.length ? h("p", { class: "siblings" }, "Also: ", siblings.slice(0, 12).map((p, i) => [i ? " · " : "", h("a", { href: app.link(["path", p.path]) }, `${p.name} (${p.vantage}, ${typeP(p.type_p)})`)])) : null,
      ...nodes,
      segmentPart(chosen, before),
      faultsPart(found.faults, changes, (run) => app.link(["path", id], { run })),
      small(s, found),
    ] };
  };
})();
