"use strict";
// Words, numbers and elements. Whatever comes from the network becomes text nodes and attributes, never markup.
window.np = (() => {
  const SVG = "http://www.w3.org/2000/svg";

  function put(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "style") for (const [k, v] of Object.entries(value)) node.style.setProperty(k, v);
      else node.setAttribute(name, value === true ? "" : String(value));
    }
    for (const child of children.flat(Infinity)) {
      if (child === null || child === undefined || child === false) continue;
      node.append(child instanceof Node ? child : document.createTextNode(String(child)));
    }
    return node;
  }
  const h = (tag, attributes, ...children) => put(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) => put(document.createElementNS(SVG, tag), attributes, children);

  function duration(ns) {
    if (ns === null || ns === undefined) return "∞";
    const size = Math.abs(ns);
    if (size < 1e3) return `${Math.round(ns)} ns`;
    if (size < 1e6) return `${figures(ns / 1e3)} µs`;
    if (size < 1e9) return `${figures(ns / 1e6)} ms`;
    return `${figures(ns / 1e9)} s`;
  }
  const figures = (x) => (Math.abs(x) >= 100 ? x.toFixed(0) : Math.abs(x) >= 10 ? x.toFixed(1) : x.toFixed(2));
  function percent(share) {
    if (share === null || share === undefined) return "–";
    const p = 100 * share;
    if (p === 0 || p === 100) return `${p} %`;
    return p < 0.01 ? "< 0.01 %" : p > 99.99 ? "> 99.99 %" : `${p < 10 ? p.toFixed(2) : p.toFixed(1)} %`;
  }
  // Two durations with one unit where they have the same; a low of null is nothing above zero, a high of null infinite.
  function span(low, high) {
    if (high === null) return low === null ? "∞" : `≥ ${duration(low)}`;
    if (low === null) return `< ${duration(high)}`;
    const [from, unit] = duration(low).split(" "), to = duration(high);
    return `${to.endsWith(` ${unit}`) ? from : duration(low)} – ${to}`;
  }
  const interval = (low, high) => `${(100 * low).toFixed(2)} – ${(100 * high).toFixed(2)} %`;
  const pad = (n, width = 2) => String(n).padStart(width, "0");
  function clock(ns, withDate = false) {
    const at = new Date(ns / 1e6);
    const time = `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`;
    const isToday = at.toDateString() === new Date().toDateString();
    return withDate || !isToday ? `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())} ${time}` : time;
  }
  function age(ns, now) {
    const s = Math.max(0, (now - ns) / 1e9);
    if (s < 60) return `${Math.round(s)} s`;
    if (s < 5400) return `${Math.round(s / 60)} min`;
    return s < 172800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} days`;
  }
  function typeP(t) {
    if (!t) return "";
    const mark = t.dscp === null || t.dscp === undefined ? "no class mark" : `DSCP ${t.dscp}`;
    return `${t.proto}${t.dst_port ? `/${t.dst_port}` : ""}, IPv${t.family}, ${t.size_bytes} bytes, ${mark}`;
  }
  const plural = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many || `${one}s`}`;
  const STATES = ["unreachable", "degraded", "unobserved", "reachable"];
  const SIGNS = { unreachable: "✕", degraded: "▲", unobserved: "?", reachable: "✓" };
  const worst = (states) => STATES.find((s) => states.includes(s)) || "unobserved";

  function badge(state, watched = true) {
    const word = watched || state === "unobserved" ? state : { degraded: "with loss" }[state] || state;
    return h("span", { class: `badge ${state}` }, h("span", { "aria-hidden": "true" }, SIGNS[state], " "), word);
  }
  function table(head, rows, caption) {
    return h("div", { class: "wide" }, h("table", {},
      caption && h("caption", {}, caption),
      h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, rows)));
  }
  function ledger(s) {
    const delivered = s.received === undefined ? s.delivered : s.received;
    return `${s.planned} planned = ${s.unsent} unsent + ${delivered} delivered + ${s.lost} lost + ${s.unobserved} unobserved`
      + ` + ${s.pending} pending${s.late ? `; ${s.late} of the lost came late` : ""}`;
  }
  function say(text) {
    const place = document.getElementById("said");
    if (place) place.textContent = text;
  }
  return { h, svg, duration, span, percent, interval, clock, age, typeP, plural, badge, table, ledger, say, worst, STATES, SIGNS,
           views: {} };
})();
