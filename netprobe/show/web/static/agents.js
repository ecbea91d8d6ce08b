"use strict";
// Agents and their health, and what netprobe itself could not see.
(() => {
  const { h, age, clock, plural, table } = np;
  np.views.agents = async (app) => {
    const found = await app.get("/api/agents"), c = found.collector, away = (c && c.away) || [];
    const shed = app.overview.paths.filter((p) => p.overflow), dark = app.overview.paths.filter((p) => p.undecided);
    const link = (p) => h("li", {}, h("a", { href: app.link(["path", p.path]) }, h("span", { class: "ends" }, `${p.src} → ${p.dst}`),
      h("small", {}, [p.undecided ? `${p.undecided} of ${p.planned} undecided` : "", p.overflow ? "frames were shed" : ""].filter(Boolean).join(" · "))));
    const doubtful = [...new Set([...shed, ...dark])];
    return { title: "Agents", nodes: [
      h("div", { class: "head" }, h("h1", {}, "Agents")),
      c ? h("section", { class: "panel", "aria-labelledby": "agents-title" }, h("h2", { id: "agents-title" }, `${plural(c.agents.length, "agent")} connected`),
        c.agents.length || away.length ? table(["agent", "host", "connected for", "guests", "health"], [...c.agents.map((a) => h("tr", {}, h("th", { scope: "row" }, a.name), h("td", {}, a.host || "–"), h("td", {}, age(a.since_ns, found.now_ns)),
          h("td", {}, a.guests.join(", ") || "–"), h("td", {}, h("span", { class: `badge ${a.trouble ? "degraded" : "reachable"}` }, a.trouble ? "in trouble" : "fine"), a.trouble ? ` ${a.trouble}` : ""))), ...away.map((a) => h("tr", {}, h("th", { scope: "row" }, a.name), h("td", {}, a.host || "–"), h("td", {}, "–"), h("td", {}, "–"),
          h("td", {}, h("span", { class: "badge unreachable" }, "not connected"))))]) : h("p", { class: "muted" }, "No agent has dialled in."),
        h("h3", {}, "The collector's counters"),
        Object.keys(c.counters).length ? h("dl", { class: "figures" }, Object.entries(c.counters).sort().map(([k, n]) => h("div", {}, h("dt", {}, k.replaceAll("_", " ")), h("dd", {}, n)))) : h("p", { class: "muted" }, "Nothing was refused, and nothing failed."))
        : h("section", { class: "panel" }, h("h2", {}, "No collector here"), h("p", {}, "This page only reads the store, and agents report to a collector. ", h("code", {}, "netprobe serve --listen ADDR:PORT --web"), " is both.")),
      h("section", { class: "panel", "aria-labelledby": "doubt-title" }, h("h2", { id: "doubt-title" }, "What was not seen"),
        doubtful.length ? [h("ol", { class: "list two" }, doubtful.slice(0, 30).map(link)), doubtful.length > 30 ? h("p", { class: "muted" }, `and ${plural(doubtful.length - 30, "path")} more`) : null] : h("p", { class: "muted" }, "In the newest result of each path somebody looked everywhere, and nothing was shed.")),
      h("section", { class: "panel", "aria-labelledby": "runs-title" }, h("h2", { id: "runs-title" }, "Last runs"),
        (app.overview.runs || []).length ? table(["when", "command", "run"], app.overview.runs.slice(0, 15).map((r) => h("tr", {}, h("td", {}, clock(r.started_ns)), h("td", {}, r.command), h("td", {}, h("code", {}, r.run_id))))) : h("p", { class: "muted" }, "None.")),
    ] };
  };
})();
