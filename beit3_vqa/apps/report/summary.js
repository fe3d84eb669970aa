// The upper part of the page: what each run is, its curves, and its metrics as plots.

const data = JSON.parse(document.getElementById("data").textContent);
const { runs, questions } = data;
const byId = (id) => document.getElementById(id);
const scored = runs.map((run, place) => [run, place]).filter(([run]) => run.metrics);
const interval = (found) => `${percent(found.low)} to ${percent(found.high)}`;

function runCard(run, place) {
  const facts = run.facts.map(([name, value]) => html("div", {}, [html("dt", { text: name }), html("dd", { class: "data-text", text: value })]));
  const score = run.metrics && html("p", { class: "score" }, [
    percent(run.metrics.accuracy),
    html("small", { text: `accuracy, 95% interval ${interval(run.metrics.accuracy_interval)}` }),
  ]);
  return html("article", { class: "panel run", colour: colourOf(place) }, [html("h3", { class: "data-text", text: run.name }), score, html("dl", {}, facts)]);
}

// How often two runs give the same answer, and who is right where they don't.
function agreement() {
  const pairs = [];
  for (let a = 0; a < runs.length; a++) {
    for (let b = a + 1; b < runs.length; b++) {
      const [one, two] = [runs[a].answers, runs[b].answers];
      if (!one || !two) continue;
      let both = 0, same = 0, first = 0, second = 0;
      questions.id.forEach((_, row) => {
        if (one.answer[row] === null || two.answer[row] === null) return;
        both++;
        same += one.answer[row] === two.answer[row];
        if (one.score[row] === null || two.score[row] === null) return;  // null > 0 would be a comparison with 0
        first += one.score[row] > two.score[row];
        second += two.score[row] > one.score[row];
      });
      if (both) pairs.push([a, b, both, same, first, second]);
    }
  }
  if (!pairs.length) return null;
  const head = ["Runs", "Questions of both", "Same answer", "Only the first is right", "Only the second is right"];
  const rows = pairs.map(([a, b, both, same, first, second]) => html("tr", {}, [
    html("th", { scope: "row", class: "data-text", text: `${runs[a].name} and ${runs[b].name}` }),
    ...[count(both), percent((100 * same) / both), count(first), count(second)].map((text) => html("td", { text })),
  ]));
  const table = html("table", {}, [
    html("thead", {}, [html("tr", {}, head.map((text, place) => html("th", { scope: "col", text, class: place ? null : "first" })))]),
    html("tbody", {}, rows),
  ]);
  return html("div", { class: "panel" }, [html("h3", { text: "Where the runs disagree" }), html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Agreement of the runs" }, [table])]);
}

function trainingFigures() {
  const found = [];
  const names = (list) => (runs.length > 1 ? [legend(list.map((one) => [one.name, one.colour]))] : []);
  const add = (title, note, key, unit, x, options = {}) => {
    const list = runs.flatMap((run, place) => {
      const points = ((run.curves[x.from] || {})[key] || []).filter((p) => p[1] !== null);
      return points.length ? [{ name: run.name, colour: colourOf(place), points, dots: points.length < 30 && x.from === "epochs" }] : [];
    });
    if (!list.length) return false;
    const [chart, readout] = lineChart(title, list, { label: x.label, whole: true }, { label: unit, ...options.y }, options);
    found.push(figure(title, note, chart, [...names(list), ...baselineKey(options.baselines || []), html("div", { class: "space" })]));
    found.at(-1).append(readout);
    return true;
  };
  const step = { from: "steps", label: "optimizer step" }, epoch = { from: "epochs", label: "epoch" };
  add("Training loss", "Mean of the steps since the last point.", "loss", "loss", step, { smooth: true }) || add("Training loss", "Mean of each epoch.", "train_loss", "loss", epoch);
  const score = runs.find((run) => run.curves.score_name)?.curves.score_name || "score";
  add("Validation score", "At each validation; an epoch ends at its number.", "score", score, epoch, { baselines: baselines(score) });
  add("Validation loss", "At each validation; an epoch ends at its number.", "val_loss", "loss", epoch);
  add("Learning rate", "", "lr", "learning rate", step, { y: { low: 0 } }) || add("Learning rate", "At the end of each epoch.", "train_lr", "learning rate", epoch, { y: { low: 0 } });
  add("Throughput", "", "examples_per_second", "examples per second", step, { y: { low: 0 }, smooth: true }) || add("Throughput", "", "examples_per_second", "examples per second", epoch, { y: { low: 0 } });
  return found;
}

// What is reached without a look at the picture: lines to beat, of the first run that knows them.
function baselines(score) {
  const run = scored.map(([one]) => one).find((one) => one.measures === score || one.measures === "");
  if (!run) return [];
  const { accuracy } = score === "accuracy" ? run.metrics.likeliest : {};
  return [
    run.chance === null ? null : { name: `blind guessing, ${percent(run.chance)}`, value: run.chance, kind: "chance" },
    accuracy === undefined ? null : { name: `always the likeliest answer, ${percent(accuracy)}`, value: accuracy, kind: "likeliest" },
  ].filter(Boolean);
}

const baselineKey = (lines) => (lines.length ? [legend(lines.map((one) => [one.name, "var(--edge)", one.kind]))] : []);

function baselineText() {
  const { chance, metrics: { likeliest } } = scored[0][0];
  const ways = chance === null ? [] : [`blind guessing gets ${percent(chance)}`];
  if (likeliest.accuracy !== undefined) {
    const what = likeliest.answer ? `always answering “${likeliest.answer}”` : "always choosing the option whose text is right most often";
    ways.push(`${what}${likeliest.counted_in ? ` (counted in ${likeliest.counted_in})` : ""} gets ${percent(likeliest.accuracy)}`);
  }
  if (!ways.length) return "";
  return `Without a look at the picture, ${ways.join(", and ")}. A model that isn't clearly above that has learned little more than which answers are frequent.`;
}

function smoothingSlider() {
  const told = html("span", { text: "off" });
  const slide = (event) => {
    smoothing.weight = event.target.value / 100;
    told.textContent = smoothing.weight ? percent(event.target.value * 1, 0) : "off";
    for (const chart of smoothing.charts) chart.redraw();
  };
  const input = html("input", { type: "range", id: "smoothing", min: 0, max: 95, step: 5, value: 0, oninput: slide });
  return html("label", { class: "slider" }, [html("span", { text: "Smoothing" }), input, told]);
}

function wordFigure() {
  const totals = {};
  for (const [run] of scored) {
    for (const [word, group] of Object.entries(run.metrics.accuracy_by_question_word)) totals[word] = Math.max(totals[word] || 0, group.questions);
  }
  const words = Object.keys(totals).sort((a, b) => totals[b] - totals[a]);
  const rows = words.map((word) => ({
    label: word,
    note: plural(totals[word], "question"),
    marks: scored.filter(([run]) => run.metrics.accuracy_by_question_word[word]).map(([run, place]) => ({
      name: run.name, colour: colourOf(place), value: run.metrics.accuracy_by_question_word[word].accuracy, ...run.metrics.interval_by_question_word[word],
    })),
  }));
  const lines = baselines("accuracy");
  const says = rows.map((row) => `${row.label}: ${row.marks.map((m) => `${percent(m.value)}, from ${percent(m.low)} to ${percent(m.high)}`).join("; ")}`).join(". ");
  const chart = intervalChart(rows, lines, `Accuracy by question word with 95% intervals. ${[...lines.map((one) => one.name), says].join(". ")}.`);
  return figure("Accuracy by question word", "The lines need no picture; they are over all questions.", chart, [...names(), ...baselineKey(lines)]);
}

const names = () => (runs.length > 1 ? [legend(scored.map(([run, place]) => [run.name, colourOf(place)]))] : []);

function reliabilityFigure() {
  const series = scored.filter(([run]) => run.metrics.calibration).map(([run, place]) => {
    const bins = run.metrics.calibration.reliability;
    return { name: run.name, colour: colourOf(place), dots: true, points: bins.map((b) => [b.confidence, b.accuracy]), whiskers: bins.map((b) => [b.confidence, b.low, b.high]) };
  });
  if (!series.length) return null;
  const axis = { low: 0, high: 100, format: shortPercent };
  const errors = series.map((one) => {
    const { ece, brier } = scored.find(([run]) => run.name === one.name)[0].metrics.calibration;
    return [one, `expected calibration error ${percent(ece)}${brier === undefined ? "" : `, Brier score ${brier.toFixed(3)}`}`];
  });
  const says = errors.map(([one, text]) => `${one.name}: ${text}`).join("; ");
  const [chart, readout] = lineChart("Reliability", series, { label: "confidence", ...axis }, { label: "accuracy", ...axis }, { references: [[0, 0, 100, 100]], says });
  const key = legend(errors.map(([one, text]) => [runs.length > 1 ? `${one.name}: ${text}` : text, one.colour]));
  const box = figure("Reliability", "Below the dashed line it is surer than it should be, above it too modest.", chart, [key, html("div", { class: "space" })]);
  box.append(readout);
  return box;
}

function coverageFigure() {
  const series = scored.filter(([run]) => run.metrics.accuracy_at_coverage).map(([run, place]) => {
    const points = [...run.metrics.accuracy_at_coverage].reverse();
    return { name: run.name, colour: colourOf(place), dots: true, points: points.map((p) => [p.coverage, p.accuracy]), band: points.map((p) => [p.coverage, p.low, p.high]) };
  });
  if (!series.length) return null;
  const format = shortPercent;
  const lowest = Math.min(...series.flatMap((one) => one.band.map((p) => p[1])));
  const [chart, readout] = lineChart("Accuracy at coverage", series, { label: "questions answered, the surest first", low: 0, high: 100, format }, { label: "accuracy", low: Math.max(0, 10 * Math.floor(lowest / 10) - 10), high: 100, format });
  const box = figure("Accuracy at coverage", "What leaving out the least sure answers is worth; the band is the 95% interval.", chart, [...names(), html("div", { class: "space" })]);
  box.append(readout);
  return box;
}

function positionFigures() {
  return scored.filter(([run]) => run.metrics.positions).map(([run, place]) => {
    const rows = Object.entries(run.metrics.positions);
    const groups = rows.map(([label, row]) => ({ label, bars: [{ name: "true", colour: "var(--soft)", value: row.true, hollow: true }, { name: "answered", colour: colourOf(place), value: row.answered }] }));
    const says = rows.map(([label, row]) => `${label} true ${row.true}, answered ${row.answered}`).join("; ");
    const key = legend([["true", "var(--soft)", "hollow"], ["answered", colourOf(place), "block"]]);
    const own = runs.length > 1 ? `: ${run.name}` : "";
    return figure(`Positions${own}`, "A model that prefers a position answers it more often than it is true.", barChart(groups, "questions", `Positions${own}. ${says}.`), [key, html("div", { class: "space" })]);
  });
}

function confusionFigures() {
  return scored.filter(([run]) => run.metrics.confusion).map(([run, place]) => {
    const labels = Object.keys(run.metrics.confusion);
    const rows = labels.map((truth) => {
      const row = labels.map((answer) => run.metrics.confusion[truth][answer]), sum = row.reduce((a, b) => a + b, 0);
      return html("tr", {}, [html("th", { scope: "row", text: truth }), ...row.map((value, at) => {
        const cell = html("td", { share: sum ? value / sum : 0, class: labels[at] === truth ? "diagonal" : null }, [count(value), html("small", { text: sum ? percent((100 * value) / sum, 0) : "–" })]);
        cell.style.setProperty("--tint", labels[at] === truth ? colourOf(place) : "var(--wrong)");
        return cell;
      })]);
    });
    const head = html("tr", {}, [html("th", { scope: "col", text: "true ↓" }), ...labels.map((text) => html("th", { scope: "col", text }))]);
    const table = html("table", { class: "matrix" }, [html("thead", {}, [head]), html("tbody", {}, rows)]);
    table.style.minWidth = `${44 * (labels.length + 1)}px`;
    return figure(`Confusion${runs.length > 1 ? `: ${run.name}` : ""}`, "Rows: what is true; columns: what was answered; percent of the row.", html("div", { class: "scroll" }, [table]));
  });
}

// Side by side without a lonely last one.
function place(box, figures) {
  const many = figures.length, wanted = many > 6 ? [4, 3] : [3, 4];
  const columns = many < 4 ? many : wanted.find((n) => many % n === 0) || wanted.find((n) => many % n > 1) || 4;
  box.style.setProperty("--columns", columns);
  box.append(...figures);
}

function drawSummary() {
  byId("runs").append(...runs.map(runCard));
  const table = agreement();
  if (table) byId("between").append(table);
  const curves = trainingFigures();
  if (smoothing.charts.length) byId("smooth").append(smoothingSlider());
  if (curves.length) place(byId("curves"), curves);
  else for (const element of [byId("training"), document.querySelector('nav a[href="#training"]')]) element.hidden = true;
  if (scored.length) place(byId("plots"), [wordFigure(), reliabilityFigure(), coverageFigure(), ...positionFigures(), ...confusionFigures()].filter(Boolean));
  byId("metrics-lead").textContent = scored.length ? baselineText() : "No answer is known, so there is nothing to score.";
}
