"use strict";
// Where one is (the part behind # in the address), what is new (server-sent events), and light or dark.
(() => {
  const { h, age } = np;
  const main = document.getElementById("main"), fresh = document.getElementById("fresh"), problem = document.getElementById("problem");
  const app = { overview: null, get, go, link, skewNs: 0 };
  let isLive = false, turn = 0, shown = "";

  async function get(place) {
    const answer = await fetch(place, { headers: { accept: "application/json" } });
    const document_ = await answer.json().catch(() => ({ error: `HTTP ${answer.status}` }));
    if (!answer.ok) throw new Error(document_.error || `HTTP ${answer.status}`);
    return document_;
  }
  function link(parts, query = {}) {
    const words = Object.entries(query).filter(([, v]) => v !== null && v !== undefined && v !== "").map(([k, v]) => `${encodeURIComponent(k)}=${encodeURIComponent(v)}`);
    return `#/${parts.map(encodeURIComponent).join("/")}${words.length ? `?${words.join("&")}` : ""}`;
  }
  function go(parts, query = {}, replace = false) {
    const to = link(parts, query);
    if (!replace) { location.hash = to; return; }
    history.replaceState(null, "", to);
    show(true);
  }
  function here() {
    const [place, words] = location.hash.replace(/^#\/?/, "").split("?");
    const decode = (text) => { try { return decodeURIComponent(text); } catch (_) { return text; } };
    const parts = place.split("/").filter(Boolean).map(decode);
    return { view: np.views[parts[0]] ? parts[0] : "mesh", rest: parts.slice(1), query: Object.fromEntries(new URLSearchParams(words || "")) };
  }
  // Where the focus is, so that it is there again after the view was made anew.
  function holdFocus() {
    const on = document.activeElement;
    if (!on || !main.contains(on)) return null;
    if (on.dataset.r !== undefined) return { grid: true };
    if (on.dataset.segment) return { selector: `[data-segment="${CSS.escape(on.dataset.segment)}"]` };
    if (on.getAttribute("href")) return { selector: `a[href="${CSS.escape(on.getAttribute("href"))}"]` };
    const order = [...main.querySelectorAll("button, select, a, [tabindex]")];
    return { index: order.indexOf(on) };
  }
  function giveFocus(held) {
    if (!held) return;
    const node = held.grid ? main.querySelector('[data-r][tabindex="0"]') : held.selector ? main.querySelector(held.selector)
      : [...main.querySelectorAll("button, select, a, [tabindex]")][held.index];
    if (node) node.focus({ preventScroll: true });
  }
  async function show(isSame) {
    const mine = ++turn, { view, rest, query } = here();
    if (!app.overview) return;
    let made;
    try {
      made = await np.views[view](app, rest, query, (nodes) => { if (!isSame && mine === turn) { main.replaceChildren(...nodes); scrollTo(0, 0); } });
    } catch (error) {
      made = { title: "netprobe", nodes: [h("div", { class: "head" }, h("a", { class: "back", href: "#/mesh" }, "← Mesh")), h("section", { class: "panel" }, h("h1", {}, "This cannot be shown"), h("p", {}, error.message))] };
    }
    if (mine !== turn) return;  // somebody went on meanwhile
    const held = isSame ? holdFocus() : null, boxes = isSame ? [...main.querySelectorAll(".scroller")].map((s) => [s.scrollLeft, s.scrollTop]) : [];
    const top = scrollY;
    main.replaceChildren(...made.nodes.filter(Boolean));
    document.title = made.title === "netprobe" ? made.title : `${made.title} – netprobe`;
    main.querySelectorAll(".scroller").forEach((s, i) => { if (boxes[i]) [s.scrollLeft, s.scrollTop] = boxes[i]; });
    for (const a of document.querySelectorAll("nav a")) {
      if (a.dataset.view === (view === "path" ? "mesh" : view)) a.setAttribute("aria-current", "page");
      else a.removeAttribute("aria-current");
    }
    if (isSame) { scrollTo(0, top); giveFocus(held); }
    else {
      scrollTo(0, 0);
      if (shown) (made.focus || (() => main.focus({ preventScroll: true })))();
      np.say(made.title);
    }
    shown = location.hash || "#/mesh";
    main.dataset.ready = `${view} ${app.overview.version}`;
  }
  async function renew() {
    try {
      app.overview = await get("/api/overview");
      app.skewNs = app.overview.now_ns - Date.now() * 1e6;
      problem.hidden = !app.overview.problem;
      problem.textContent = app.overview.problem || "";
    } catch (error) {
      problem.hidden = false;
      problem.textContent = `No news: ${error.message}`;
      return;
    }
    tick();
    await show(Boolean(shown));
  }
  function tick() {
    const newest = app.overview && app.overview.runs && app.overview.runs[0];
    const now = Date.now() * 1e6 + app.skewNs;
    fresh.className = `fresh ${isLive ? "live" : "cut"}`;
    fresh.textContent = `${isLive ? "live" : "not connected"}${newest ? ` · newest result begun ${age(newest.started_ns, now)} ago` : ""}`;
  }
  function listen() {
    const events = new EventSource("/api/events");
    let known = null, busy = false, again = false;
    const take = async () => {
      if (busy) { again = true; return; }
      busy = true;
      await renew();
      busy = false;
      if (again) { again = false; take(); }
    };
    events.onmessage = (event) => {
      const { version } = JSON.parse(event.data);
      isLive = true;
      if (version !== known) { known = version; take(); }
      else tick();
    };
    events.onerror = () => { isLive = false; known = null; tick(); };
  }
  function themes() {
    const button = document.getElementById("theme"), dark = matchMedia("(prefers-color-scheme: dark)");
    const isDark = () => (document.documentElement.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
    const name = () => { button.textContent = isDark() ? "Light" : "Dark"; button.setAttribute("aria-label", `Change to ${isDark() ? "light" : "dark"} colours`); };
    button.addEventListener("click", () => {
      document.documentElement.dataset.theme = isDark() ? "light" : "dark";
      try { localStorage.setItem("netprobe-theme", document.documentElement.dataset.theme); } catch (_) { /* not kept, then */ }
      name();
      np.charts.redraw();
    });
    dark.addEventListener("change", () => { name(); np.charts.redraw(); });
    name();
  }
  addEventListener("hashchange", () => show(false));
  addEventListener("keydown", (event) => { if (event.key === "Escape" && here().view === "path" && !event.defaultPrevented) go(["mesh"]); });
  document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
  themes();
  listen();
  setInterval(tick, 1000);
})();
