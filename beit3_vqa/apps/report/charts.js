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

function short(value) {
  const size = Math.abs(value);
  if (size >= 1e4) return `${+(value / 1000).toPrecision(3)}k`;
  if (size && size < 1e-3) return value.toExponential(1).replace(".0e", "e");
  return String(+value.toPrecision(3));
}

function ticks(low, high, wanted) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((m) => m * power >= rough * 0.999) * power;
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
  return found;
}

function figure(title, note, chart, extra) {
  const caption = html("figcaption", {}, [html("h3", { text: title }), note ? html("p", { class: "note", text: note }) : null]);
  return html("figure", { class: "panel" }, [caption, ...(extra || []), chart]);
}

function legend(items, kind = "") {
  return html("ul", { class: "legend" }, items.map(([name, colour, own]) =>
    html("li", {}, [html("span", { class: `swatch ${own || kind}`, colour }), html("span", { class: "data-text", text: name })])));
}

// A box that draws anew when its width changes, so that letters keep their size.
function drawn(label, draw) {
  const box = html("div", { role: "img", "aria-label": label });
  let last = 0;
  const observer = new ResizeObserver(([entry]) => {
    const width = Math.round(entry.contentRect.width);
    if (width && width !== last) {
      last = width;
      box.replaceChildren(draw(width));
    }
  });
  observer.observe(box);
  return box;
}

// series: [{name, colour, points: [[x, y]], band: [[x, low, high]], dots}]; x and y: {label, low, high, format}
function lineChart(series, x, y, options = {}) {
  const all = series.flatMap((one) => one.points);
  const xs = all.map((p) => p[0]), ys = all.map((p) => p[1]);
  const least = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
  const most = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);
  const xLow = x.low ?? least(xs), xHigh = Math.max(x.high ?? most(xs), xLow + 1e-9);
  let yLow = y.low ?? least(ys), yHigh = y.high ?? most(ys);
  if (y.low === undefined) yLow -= (yHigh - yLow) * 0.06 || Math.abs(yLow) * 0.1 || 1;
  if (y.high === undefined) yHigh += (yHigh - yLow) * 0.06 || Math.abs(yHigh) * 0.1 || 1;
  const xFormat = x.format || short, yFormat = y.format || short;
  const last = series.filter((one) => one.points.length).map((one) => `${one.name}: ${yFormat(one.points.at(-1)[1])}`);
  const readout = html("p", { class: "readout", "aria-hidden": "true" });
  const label = `${y.label} over ${x.label}. ${options.says || `At the end: ${last.join("; ")}`}.`;

  const chart = drawn(label, (width) => {
    const left = 50, right = 16, top = 30, bottom = 40, height = 250;
    const toX = (v) => left + ((v - xLow) / (xHigh - xLow)) * (width - left - right);
    const toY = (v) => height - bottom - ((v - yLow) / (yHigh - yLow)) * (height - top - bottom);
    const parts = [svg("text", { x: 0, y: 12, text: y.label })];
    for (const v of ticks(yLow, yHigh, 5)) {
      parts.push(svg("line", { class: "grid", x1: left, x2: width - right, y1: toY(v), y2: toY(v) }));
      parts.push(svg("text", { x: left - 8, y: toY(v) + 4, "text-anchor": "end", text: yFormat(v) }));
    }
    for (const v of x.ticks || ticks(xLow, xHigh, width < 420 ? 4 : 6)) {
      parts.push(svg("text", { x: toX(v), y: height - bottom + 18, "text-anchor": "middle", text: xFormat(v) }));
    }
    parts.push(svg("line", { class: "axis", x1: left, x2: width - right, y1: toY(yLow), y2: toY(yLow) }));
    parts.push(svg("text", { x: width - right, y: height - 4, "text-anchor": "end", text: x.label }));
    for (const [x1, y1, x2, y2] of options.references || []) {
      parts.push(svg("path", { class: "reference", d: `M${toX(x1 ?? xLow)},${toY(y1)}L${toX(x2 ?? xHigh)},${toY(y2)}` }));
    }
    for (const one of series) {
      if (one.band && one.band.length > 1) {
        const up = one.band.map((p) => `${toX(p[0])},${toY(p[2])}`), down = one.band.map((p) => `${toX(p[0])},${toY(p[1])}`);
        parts.push(svg("path", { class: "band", colour: one.colour, d: `M${up.join("L")}L${down.reverse().join("L")}Z` }));
      }
      const path = one.points.map((p) => `${toX(p[0]).toFixed(1)},${toY(p[1]).toFixed(1)}`).join("L");
      if (one.points.length > 1) parts.push(svg("path", { class: "curve", colour: one.colour, d: `M${path}` }));
      for (const [px, low, high] of one.whiskers || []) {
        parts.push(svg("line", { class: "whisker faint", colour: one.colour, x1: toX(px), x2: toX(px), y1: toY(low), y2: toY(high) }));
      }
      if (one.dots || one.points.length === 1) {
        for (const p of one.points) parts.push(svg("circle", { class: "dot", colour: one.colour, cx: toX(p[0]), cy: toY(p[1]), r: 4.5 }));
      }
    }
    const cursor = svg("line", { class: "cursor", y1: top, y2: height - bottom });
    const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, [...parts, cursor]);
    drawing.addEventListener("pointermove", (event) => {
      const bounds = drawing.getBoundingClientRect();
      const at = xLow + ((event.clientX - bounds.left - left) / (bounds.width - left - right)) * (xHigh - xLow);
      const near = (one) => one.points.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
      const found = series.filter((one) => one.points.length).map((one) => [one, near(one)]);
      if (!found.length) return;
      const place = found.reduce((a, b) => (Math.abs(b[1][0] - at) < Math.abs(a[1][0] - at) ? b : a))[1][0];
      put(cursor, { x1: toX(place), x2: toX(place) }).style.visibility = "visible";
      const values = found.filter(([, p]) => Math.abs(p[0] - place) <= (xHigh - xLow) * 0.02);
      readout.textContent = `${x.label} ${xFormat(place)} – ${values.map(([one, p]) => `${one.name} ${yFormat(p[1])}`).join(", ")}`;
    });
    drawing.addEventListener("pointerleave", () => {
      cursor.style.visibility = "hidden";
      readout.textContent = "";
    });
    return drawing;
  });
  return [chart, readout];
}

// rows: [{label, marks: [{name, colour, value, low, high, note}]}], percent on the x axis
function intervalChart(rows, reference, label) {
  return drawn(label, (width) => {
    const left = Math.min(130, width * 0.3), right = 18, inner = 18;
    const least = Math.min(64, 200 / rows.length);
    const heights = rows.map((row) => Math.max(least, row.marks.length * inner + 16));
    const height = heights.reduce((a, b) => a + b, 0) + 44;
    const toX = (v) => left + (v / 100) * (width - left - right);
    const parts = [];
    for (const v of [0, 25, 50, 75, 100]) {
      parts.push(svg("line", { class: "grid", x1: toX(v), x2: toX(v), y1: 0, y2: height - 44 }));
      parts.push(svg("text", { x: toX(v), y: height - 26, "text-anchor": "middle", text: `${v}%` }));
    }
    parts.push(svg("text", { x: width - right, y: height - 6, "text-anchor": "end", text: "accuracy, bars: 95% interval" }));
    if (reference !== null) parts.push(svg("path", { class: "reference", d: `M${toX(reference)},0V${height - 44}` }));
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
    for (const v of ticks(0, high, 4)) {
      parts.push(svg("line", { class: "grid", x1: left, x2: width - right, y1: toY(v), y2: toY(v) }));
      parts.push(svg("text", { x: left - 8, y: toY(v) + 4, "text-anchor": "end", text: short(v) }));
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
