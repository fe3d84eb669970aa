// Elements and charts. Text from data reaches the page through textContent and attributes only.

const SVG = "http://www.w3.org/2000/svg";

function put(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name === "colour") element.style.setProperty("--colour", value);
    else if (name === "share") element.style.setProperty("--share", value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...(children || []).filter((child) => child !== null && child !== undefined));
  return element;
}
const html = (tag, attributes, children) => put(document.createElement(tag), attributes, children);
const svg = (tag, attributes, children) => put(document.createElementNS(SVG, tag), attributes, children);
const colourOf = (run) => `var(--run-${run % 8})`;
const percent = (value, digits = 1) => `${value.toFixed(digits)}%`;
const count = (value) => value.toLocaleString("en-US");
const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

// A number with as many digits as tell it from its neighbours a step away; without a step, four.
function short(value, step) {
  const size = Math.abs(value);
  const digits = (unit) => Math.max(0, -Math.floor(Math.log10(step / unit) + 1e-9));
  if (!size) return "0";
  if (size >= 1e4) return `${step ? (value / 1000).toFixed(digits(1000)) : +(value / 1000).toPrecision(4)}k`;
  if (size < 1e-3 || (step < 1e-3 && size < 1e-2)) return value.toExponential(step ? digits(10 ** Math.floor(Math.log10(size) + 1e-9)) : 3).replace(/\.?0*e/, "e");
  return step ? value.toFixed(digits(1)) : String(+value.toPrecision(4));
}
const shortPercent = (value, step = 0.1) => `${short(value, step)}%`;

// Places of the ticks, 1, 2 or 5 times a power of ten apart, and how far; whole: only whole numbers.
function ticks(low, high, wanted, whole = false) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const fitting = [1, 2, 5, 10].find((m) => m * power >= rough * 0.999) * power;
  const step = whole ? Math.max(1, fitting) : fitting;
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
  return [found, step];
}

function figure(title, note, chart, extra) {
  const caption = html("figcaption", {}, [html("h3", { text: title }), note ? html("p", { class: "note", text: note }) : null]);
  return html("figure", { class: "panel" }, [caption, ...(extra || []), chart]);
}

function legend(items, kind = "") {
  return html("ul", { class: "legend" }, items.map(([name, colour, own]) =>
    html("li", {}, [html("span", { class: `swatch ${own || kind}`, colour }), html("span", { class: "data-text", text: name })])));
}

// A box that draws anew when its width changes, so that letters keep their size, and when it is told to.
function drawn(label, draw) {
  const box = html("div", { role: "img", "aria-label": label });
  let last = 0;
  box.redraw = () => last && box.replaceChildren(draw(last));
  const observer = new ResizeObserver(([entry]) => {
    const width = Math.round(entry.contentRect.width);
    if (width && width !== last) {
      last = width;
      box.redraw();
    }
  });
  observer.observe(box);
  return box;
}

const smoothing = { weight: 0, charts: [] };

// The mean of a point and those before it, each with `weight` times the weight of the next.
function smoothed(points, weight) {
  let sum = 0, total = 0;
  return points.map(([x, y]) => {
    sum = weight * sum + y;
    total = weight * total + 1;
    return [x, sum / total];
  });
}

const least = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
const most = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);

// The range of an axis: what is fixed stays, the rest gets a margin.
function range(values, axis) {
  let low = axis.low ?? least(values), high = axis.high ?? most(values);
  if (axis.low === undefined) low -= (high - low) * 0.06 || Math.abs(low) * 0.1 || 1;
  if (axis.high === undefined) high += (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return [low, high];
}

// What of the x axis is seen. Dragging takes a part, a double click, 0 or the button all; keys zoom and move.
function zoomable(title, full, smallest, chartOf) {
  const view = { low: full[0], high: full[1], zoomed: false };
  const all = html("button", { type: "button", class: "small", text: "Show all", hidden: true, onclick: () => { show(...full); plot.focus(); } });
  function show(low, high) {
    const size = Math.min(Math.max(high - low, smallest), full[1] - full[0]);
    view.low = Math.min(Math.max(low, full[0]), full[1] - size);
    view.high = view.low + size;
    view.zoomed = size < full[1] - full[0];
    all.hidden = !view.zoomed;
    chart.redraw();
  }
  function press(event) {
    const size = view.high - view.low;
    const by = { "+": [0.25, -0.25], "=": [0.25, -0.25], "-": [-0.5, 0.5], ArrowLeft: [-0.2, -0.2], ArrowRight: [0.2, 0.2], 0: [-Infinity, Infinity] }[event.key];
    if (!by || event.target !== plot || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    if (event.key === "0") show(...full);
    else show(view.low + by[0] * size, view.high + by[1] * size);
  }
  const chart = chartOf(view, show);
  const says = `${title}. Plus and minus zoom, arrow keys move, 0 shows all.`;
  const plot = html("div", { class: "plot", role: "group", tabindex: "0", "aria-label": says, onkeydown: press, ondblclick: () => show(...full) }, [chart]);
  return [plot, all, chart];
}

// series: [{name, colour, points: [[x, y]], band: [[x, low, high]], dots}]; x and y: {label, low, high, format, whole}
// options: {references: [[x1, y1, x2, y2]], baselines: [{value, kind}], smooth, says}
function lineChart(title, series, x, y, options = {}) {
  const points = series.flatMap((one) => one.points), baselines = options.baselines || [];
  const first = x.low ?? least(points.map((p) => p[0]));
  const full = [first, Math.max(x.high ?? most(points.map((p) => p[0])), first + 1e-9)];
  const format = { x: x.format || (x.whole ? count : short), y: y.format || short };
  const last = series.filter((one) => one.points.length).map((one) => `${one.name}: ${format.y(one.points.at(-1)[1])}`);
  const readout = html("p", { class: "readout", "aria-hidden": "true" });
  const label = `${y.label} over ${x.label}. ${options.says || `At the end: ${last.join("; ")}`}.`;
  const smallest = Math.min(full[1] - full[0], Math.max((full[1] - full[0]) / 200, x.whole ? 2 : 0));
  const clip = `clip-${lineChart.made = (lineChart.made || 0) + 1}`;

  const [plot, showAll, chart] = zoomable(title, full, smallest, (view, show) => drawn(label, (width) => {
    const left = 50, right = 16, top = 30, bottom = 40, height = 250;
    const shown = series.map((one) => ({ ...one, mean: options.smooth && smoothing.weight ? smoothed(one.points, smoothing.weight) : null }));
    const all = shown.flatMap((one) => [...one.points, ...(one.mean || [])]);
    const inside = all.filter((p) => p[0] >= view.low && p[0] <= view.high);
    const seen = (inside.length ? inside : all).map((p) => p[1]);
    const [yLow, yHigh] = range(view.zoomed ? seen : [...seen, ...baselines.map((one) => one.value)], y);
    const toX = (v) => left + ((v - view.low) / (view.high - view.low)) * (width - left - right);
    const toY = (v) => height - bottom - ((v - yLow) / (yHigh - yLow)) * (height - top - bottom);
    const line = (list) => `M${list.map((p) => `${toX(p[0]).toFixed(1)},${toY(p[1]).toFixed(1)}`).join("L")}`;
    const axes = [svg("text", { x: 0, y: 12, text: y.label })], parts = [];
    const [rows, rowStep] = ticks(yLow, yHigh, 7);
    for (const v of rows) {
      axes.push(svg("line", { class: "grid", x1: left, x2: width - right, y1: toY(v), y2: toY(v) }));
      axes.push(svg("text", { class: "y-tick", x: left - 8, y: toY(v) + 4, "text-anchor": "end", text: format.y(v, rowStep) }));
    }
    const [columns, columnStep] = ticks(view.low, view.high, width < 420 ? 5 : 8, x.whole);
    for (const v of columns) {
      axes.push(svg("text", { class: "x-tick", x: toX(v), y: height - bottom + 18, "text-anchor": "middle", text: (x.format || short)(v, columnStep) }));
    }
    axes.push(svg("line", { class: "axis", x1: left, x2: width - right, y1: toY(yLow), y2: toY(yLow) }));
    axes.push(svg("text", { x: width - right, y: height - 4, "text-anchor": "end", text: x.label }));
    for (const [x1, y1, x2, y2] of options.references || []) parts.push(svg("path", { class: "reference", d: line([[x1, y1], [x2, y2]]) }));
    for (const one of baselines) parts.push(svg("path", { class: `reference ${one.kind}`, d: line([[view.low, one.value], [view.high, one.value]]) }));
    for (const one of shown) {
      if (one.band && one.band.length > 1) {
        const up = one.band.map((p) => [p[0], p[2]]), down = one.band.map((p) => [p[0], p[1]]).reverse();
        parts.push(svg("path", { class: "band", colour: one.colour, d: `${line([...up, ...down])}Z` }));
      }
      if (one.points.length > 1) parts.push(svg("path", { class: one.mean ? "curve raw" : "curve", colour: one.colour, d: line(one.points) }));
      if (one.mean) parts.push(svg("path", { class: "curve mean", colour: one.colour, d: line(one.mean) }));
      for (const [px, low, high] of one.whiskers || []) {
        parts.push(svg("line", { class: "whisker faint", colour: one.colour, x1: toX(px), x2: toX(px), y1: toY(low), y2: toY(high) }));
      }
      if (one.dots || one.points.length === 1) {
        for (const p of one.points) parts.push(svg("circle", { class: "dot", colour: one.colour, cx: toX(p[0]), cy: toY(p[1]), r: 4.5 }));
      }
    }
    const area = { x: left - 6, y: top - 6, width: width - left - right + 12, height: height - top - bottom + 12 };
    const cursor = svg("line", { class: "cursor", y1: top, y2: height - bottom });
    const picked = svg("rect", { class: "picked", y: top, height: height - top - bottom, width: 0 });
    const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, [
      svg("clipPath", { id: clip }, [svg("rect", area)]), ...axes, svg("g", { "clip-path": `url(#${clip})` }, parts), picked, cursor,
    ]);
    const at = (event) => Math.min(Math.max(event.clientX - drawing.getBoundingClientRect().left, left), width - right);
    const toValue = (place) => view.low + ((place - left) / (width - left - right)) * (view.high - view.low);
    let from = null;
    put(drawing, {
      onpointerdown: (event) => {
        if (event.button) return;
        from = at(event);
        drawing.setPointerCapture(event.pointerId);
      },
      onpointermove: (event) => {
        if (from !== null) put(picked, { x: Math.min(from, at(event)), width: Math.abs(at(event) - from) });
        tell(toValue(at(event)));
      },
      onpointerup: (event) => {
        const ends = [from, at(event)].sort((a, b) => a - b);
        if (from !== null && ends[1] - ends[0] > 5) show(...ends.map(toValue));
        from = null;
      },
      onpointercancel: () => {
        from = null;
        put(picked, { width: 0 });
      },
      onpointerleave: () => {
        cursor.style.visibility = "hidden";
        readout.textContent = "";
      },
    });
    function tell(wanted) {
      const near = (list) => list.reduce((a, b) => (Math.abs(b[0] - wanted) < Math.abs(a[0] - wanted) ? b : a));
      const found = shown.filter((one) => one.points.length).map((one) => [one, near(one.points)]);
      if (!found.length) return;
      const place = near(found.map(([, p]) => p))[0];
      put(cursor, { x1: toX(place), x2: toX(place) }).style.visibility = place < view.low || place > view.high ? "hidden" : "visible";
      const values = found.filter(([, p]) => Math.abs(p[0] - place) <= (view.high - view.low) * 0.02);
      const mean = (one) => (one.mean ? ` (smoothed ${format.y(near(one.mean)[1])})` : "");
      readout.textContent = `${x.label} ${format.x(place)} – ${values.map(([one, p]) => `${one.name} ${format.y(p[1])}${mean(one)}`).join(", ")}`;
    }
    return drawing;
  }));
  if (options.smooth) smoothing.charts.push(chart);
  return [plot, html("div", { class: "under" }, [readout, showAll])];
}

// rows: [{label, marks: [{name, colour, value, low, high, note}]}], percent on the x axis
function intervalChart(rows, baselines, label) {
  return drawn(label, (width) => {
    const left = Math.min(130, Math.max(106, width * 0.3)), right = 18, inner = 18;
    const least = Math.min(64, 200 / rows.length);
    const heights = rows.map((row) => Math.max(least, row.marks.length * inner + 16));
    const height = heights.reduce((a, b) => a + b, 0) + 44;
    const toX = (v) => left + (v / 100) * (width - left - right);
    const parts = [];
    for (const v of toX(100) - left < 150 ? [0, 50, 100] : [0, 25, 50, 75, 100]) {
      parts.push(svg("line", { class: "grid", x1: toX(v), x2: toX(v), y1: 0, y2: height - 44 }));
      parts.push(svg("text", { x: toX(v), y: height - 26, "text-anchor": "middle", text: `${v}%` }));
    }
    parts.push(svg("text", { x: width - right, y: height - 6, "text-anchor": "end", text: "accuracy, bars: 95% interval" }));
    for (const one of baselines) parts.push(svg("path", { class: `reference ${one.kind}`, d: `M${toX(one.value)},0V${height - 44}` }));
    let top = 0;
    rows.forEach((row, place) => {
      const middle = top + heights[place] / 2;
      parts.push(svg("text", { class: "strong", x: 0, y: middle - 2, text: row.label }));
      parts.push(svg("text", { x: 0, y: middle + 13, text: row.note }));
      row.marks.forEach((mark, order) => {
        const y = middle + inner * (order - (row.marks.length - 1) / 2);
        const told = svg("title", { text: `${mark.name}: ${percent(mark.value)} (${percent(mark.low)} to ${percent(mark.high)})` });
        parts.push(svg("g", {}, [
          told,
          svg("line", { class: "whisker", colour: mark.colour, x1: toX(mark.low), x2: toX(mark.high), y1: y, y2: y }),
          svg("circle", { class: "dot", colour: mark.colour, cx: toX(mark.value), cy: y, r: 5.5 }),
        ]));
      });
      top += heights[place];
    });
    return svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, parts);
  });
}

// groups: [{label, bars: [{name, colour, value, hollow}]}]
function barChart(groups, yLabel, label) {
  const high = Math.max(1, ...groups.flatMap((group) => group.bars.map((bar) => bar.value))) * 1.05;
  return drawn(label, (width) => {
    const left = 50, right = 8, top = 30, bottom = 30, height = 250;
    const slot = (width - left - right) / groups.length;
    const toY = (v) => height - bottom - (v / high) * (height - top - bottom);
    const parts = [svg("text", { x: 0, y: 12, text: yLabel })];
    const [rows, step] = ticks(0, high, 4, true);
    for (const v of rows) {
      parts.push(svg("line", { class: "grid", x1: left, x2: width - right, y1: toY(v), y2: toY(v) }));
      parts.push(svg("text", { x: left - 8, y: toY(v) + 4, "text-anchor": "end", text: short(v, step) }));
    }
    groups.forEach((group, place) => {
      const wide = Math.min(34, (slot * 0.8) / group.bars.length), start = left + slot * (place + 0.5) - (wide * group.bars.length) / 2;
      group.bars.forEach((bar, order) => {
        const inset = bar.hollow ? 2 : 1;
        const box = { x: start + wide * order + inset, y: toY(bar.value), width: Math.max(2, wide - 2 * inset), height: Math.max(0, toY(0) - toY(bar.value)), rx: 2 };
        parts.push(svg("rect", { class: bar.hollow ? "bar hollow" : "bar", colour: bar.colour, ...box }, [svg("title", { text: `${group.label}, ${bar.name}: ${count(bar.value)}` })]));
      });
      parts.push(svg("text", { class: "strong", x: left + slot * (place + 0.5), y: height - 10, "text-anchor": "middle", text: group.label }));
    });
    parts.push(svg("line", { class: "axis", x1: left, x2: width - right, y1: toY(0), y2: toY(0) }));
    return svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, parts);
  });
}
