"use strict";
// The pictures that uPlot draws: a segment's distribution, and delay and loss over time. Colours come from the style sheet.
(() => {
  const { h, duration, percent } = np;
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const drawn = new Set();

  function axis(extra) {
    const line = { stroke: colour("line"), width: 1 };
    return { stroke: colour("muted"), grid: line, ticks: { ...line, size: 5 }, font: "11px system-ui", ...extra };
  }
  // A chart as wide as its place; `make` gives uPlot's options and data and is asked again when the colours change.
  function chart(label, height, make) {
    const place = h("div", { class: "chart", role: "img", "aria-label": label });
    let plot = null;
    const draw = () => {
      if (plot) plot.destroy();
      const { options, data } = make();
      plot = new uPlot({ width: Math.max(260, place.clientWidth), height, ...options }, data, place);
    };
    const resize = new ResizeObserver(() => {
      if (!place.isConnected) return;
      if (!plot) draw();
      else if (Math.abs(plot.width - place.clientWidth) > 2) plot.setSize({ width: Math.max(260, place.clientWidth), height });
    });
    resize.observe(place);
    const one = { place, draw: () => place.isConnected && draw() };
    drawn.add(one);
    return place;
  }
  function redraw() {
    for (const one of drawn) {
      if (one.place.isConnected) one.draw();
      else drawn.delete(one);
    }
  }

  const high = (low) => (low < 1 ? 1 : low + Math.max(1, 2 ** Math.floor(Math.log2(low)) / 8));
  function distribution(delay) {
    const buckets = delay.histogram || [];
    if (!buckets.length) return h("p", { class: "muted" }, "No distribution is stored for this segment.");
    const marks = [["p50", delay.p50], ["p90", delay.p90], ["p99", delay.p99]].filter(([, ns]) => ns !== null);
    const label = `Distribution of ${np.plural(delay.samples, "delay")}: from ${duration(delay.min)} to ${duration(delay.max)}, `
      + marks.map(([name, ns]) => `${name} ${duration(ns)}`).join(", ");
    const first = Math.max(1, buckets[0][0]), last = high(buckets[buckets.length - 1][0]);
    const peak = Math.max(...buckets.map((b) => b[1]));
    return chart(label, 320, () => ({
      data: [buckets.map((b) => Math.max(1, b[0])), buckets.map((b) => b[1])],
      options: {
        legend: { show: false }, cursor: { show: false }, padding: [16, 12, 0, 0],
        scales: { x: { time: false, distr: 3, log: 10, range: () => [first / 1.15, last * 1.15] }, y: { range: () => [0, peak * 1.08] } },
        series: [{}, { paths: () => null, points: { show: false } }],
        axes: [
          axis({ splits: () => niceLog(first / 1.15, last * 1.15), filter: (_, v) => v, values: (_, v) => v.map((x) => (x === null ? "" : duration(x))), space: 60 }),
          axis({ size: 46, label: "probes", incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6], labelSize: 18, labelFont: "11px system-ui", stroke: colour("muted") }),
        ],
        hooks: { draw: [(u) => bars(u, buckets, marks)] },
      },
    }));
  }
  function niceLog(low, top) {
    const found = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(top)); e++) {
      for (const m of top / low > 30 ? [1] : top / low > 6 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8]) {
        const at = m * 10 ** e;
        if (at >= low && at <= top) found.push(at);
      }
    }
    return found;
  }
  function bars(u, buckets, marks) {
    const ctx = u.ctx, ratio = devicePixelRatio;
    ctx.save();
    ctx.fillStyle = colour("accent");
    for (const [low, count] of buckets) {
      const x0 = u.valToPos(Math.max(1, low), "x", true), x1 = u.valToPos(high(Math.max(1, low)), "x", true);
      const y = u.valToPos(count, "y", true), base = u.valToPos(0, "y", true);
      ctx.fillRect(x0 + ratio * 0.5, y, Math.max(ratio, x1 - x0 - ratio), base - y);
    }
    ctx.strokeStyle = ctx.fillStyle = colour("ink");
    ctx.font = `${11 * ratio}px system-ui`;
    ctx.textAlign = "center";
    let lastX = -1e9;
    for (const [name, ns] of marks) {
      const x = u.valToPos(Math.max(1, ns), "x", true);
      ctx.setLineDash([3 * ratio, 3 * ratio]);
      ctx.beginPath(); ctx.moveTo(x, u.bbox.top); ctx.lineTo(x, u.bbox.top + u.bbox.height); ctx.stroke();
      if (x - lastX > 26 * ratio) { ctx.fillText(name, x, u.bbox.top - 4 * ratio); lastX = x; }
    }
    ctx.restore();
  }

  // Hours from 0 to 23; seconds only where there is room for their difference, the date where a day begins.
  function clocks(_, splits, __, ___, step) {
    let day = "";
    return splits.map((t) => {
      const at = new Date(t * 1e3), two = (n) => String(n).padStart(2, "0"), date = at.toDateString();
      const time = `${two(at.getHours())}:${two(at.getMinutes())}${step < 60 ? `:${two(at.getSeconds())}` : ""}`;
      const isNew = day && date !== day;
      day = date;
      return step >= 86400 || isNew ? `${two(at.getMonth() + 1)}-${two(at.getDate())}${step >= 86400 ? "" : ` ${time}`}` : time;
    });
  }
  const seconds = (points) => points.started_ns.map((t) => t / 1e9);
  function timeOptions(points, extra) {
    const x = seconds(points);
    const span = x.length > 1 ? x[x.length - 1] - x[0] : 0;
    const margin = span ? span * 0.02 : 30;
    return {
      cursor: { sync: { key: "netprobe", setSeries: false }, drag: { x: true, y: false }, points: { size: 6 } },
      legend: { show: true, live: true },
      scales: { x: { time: true, range: () => [x[0] - margin, x[x.length - 1] + margin] }, ...extra.scales },
      series: [{ value: (_, v) => (v === null ? "" : np.clock(v * 1e9)) }, ...extra.series],
      axes: [axis({ space: 80, values: clocks }), axis({ size: 62, ...extra.axis })],
      hooks: extra.hooks || {},
    };
  }
  const shown = (name, points) => (points[name] || []).map((v) => (v === undefined ? null : v));
  function delayHistory(points, pick) {
    const colours = { p50: "accent", p90: "second", p99: "third" };
    const series = () => ["p50", "p90", "p99"].map((name) => ({
      label: name, stroke: colour(colours[name]), width: 1.5, points: { show: points.run_id.length < 60, size: 5 },
      value: (_, v) => (v === null ? "–" : duration(v)),
    }));
    const all = ["delay_p50", "delay_p99"].flatMap((n) => shown(n, points)).filter((v) => v !== null);
    if (!all.length) return h("p", { class: "muted" }, "No delay is stated in these results.");
    const label = `Delay over time, ${np.plural(points.run_id.length, "result")}; p50 between `
      + `${duration(Math.min(...all))} and ${duration(Math.max(...all))} for p99`;
    return picking(points, pick, chart(label, 210, () => ({
      data: [seconds(points), shown("delay_p50", points), shown("delay_p90", points), shown("delay_p99", points)],
      options: timeOptions(points, {
        series: series(), axis: { values: (_, v) => v.map((x) => (x === null ? "" : duration(x))) },
        scales: { y: { range: (_, __, top) => [0, (top || 1) * 1.1] } },
      }),
    })));
  }
  function lossHistory(points, pick) {
    const ratio = points.lost.map((lost, i) => (lost + points.received[i] ? lost / (lost + points.received[i]) : null));
    const top = Math.max(0.01, ...points.loss_high.filter((v, i) => v !== null && points.sent[i]));
    const label = `Loss over time with its 95 % interval, up to ${percent(Math.max(0, ...ratio.filter((v) => v !== null)))}`;
    return picking(points, pick, chart(label, 150, () => ({
      data: [seconds(points), ratio],
      options: timeOptions(points, {
        series: [
          { label: "loss", stroke: colour("bad"), width: 1.5, points: { show: points.run_id.length < 60, size: 5 }, 
            value: (_, v, __, i) => (i === null || i === undefined || v === null ? "–" : `${percent(v)} (${np.interval(points.loss_low[i], points.loss_high[i])})`) },
        ],
        axis: { values: (_, v) => v.map((x) => `${+(100 * x).toPrecision(3)} %`) },
        scales: { y: { range: () => [0, Math.min(1, top * 1.05)] } },
        hooks: { drawAxes: [(u) => spans(u, points)] },
      }),
    })));
  }
  // The interval of each result as a bar: what the probes cannot tell apart.
  function spans(u, points) {
    const ctx = u.ctx, ratio = devicePixelRatio;
    ctx.save();
    ctx.fillStyle = colour("band");
    const width = Math.max(2 * ratio, Math.min(10 * ratio, u.bbox.width / points.run_id.length - ratio));
    points.started_ns.forEach((t, i) => {
      if (!points.sent[i]) return;
      const x = u.valToPos(t / 1e9, "x", true);
      const y0 = u.valToPos(points.loss_low[i], "y", true), y1 = u.valToPos(points.loss_high[i], "y", true);
      ctx.fillRect(x - width / 2, y1, width, Math.max(ratio, y0 - y1));
    });
    ctx.restore();
  }
  // A click on a time opens the result of that time.
  function picking(points, pick, place) {
    if (!pick) return place;
    place.addEventListener("click", (event) => {
      const over = place.querySelector(".u-over");
      if (!over || !over.contains(event.target)) return;
      const box = over.getBoundingClientRect();
      const x = seconds(points), span = x.length > 1 ? x[x.length - 1] - x[0] : 0;
      const margin = span ? span * 0.02 : 30;
      const at = x[0] - margin + ((event.clientX - box.left) / box.width) * (span + 2 * margin);
      let best = 0;
      x.forEach((t, i) => { if (Math.abs(t - at) < Math.abs(x[best] - at)) best = i; });
      pick(points.run_id[best]);
    });
    place.classList.add("pickable");
    return place;
  }
  np.charts = { distribution, delayHistory, lossHistory, redraw };
})();
