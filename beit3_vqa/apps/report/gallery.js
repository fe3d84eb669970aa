// The questions: filters, a page of cards at a time, and arrow keys from card to card.

const PER_PAGE = 24;
const answered = runs.map((run, place) => [run, place]).filter(([run]) => run.answers);
const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const state = { shown: [], page: 0, early: false };
const parsed = new Map();

// Thumbnails lie in blocks that are read when one of their images is first shown; all but the first come after this
// script, so that the page can be used while they arrive.
function thumbnail(image) {
  if (image === null || !data.images.in_block) return "";
  const block = Math.floor(image / data.images.in_block);
  if (!parsed.has(block) && document.readyState === "loading" && block) {
    state.early = true;
    return "";
  }
  if (!parsed.has(block)) parsed.set(block, JSON.parse(byId(`thumbnails-${block}`).textContent));
  const bytes = parsed.get(block)[image % data.images.in_block];
  return bytes ? `data:image/webp;base64,${bytes}` : "";
}

function picture(row) {
  const image = questions.image[row];
  const source = thumbnail(image);
  if (!source) return html("span", { text: "no picture" });
  return html("img", { src: source, alt: `Picture of the question: ${data.images.names[image]}`, decoding: "async" });
}

// [[answer, probability]] of a row, the options in their order, answers in words the likeliest first.
function probabilities(run, row) {
  const found = run.answers.probabilities[row];
  return questions.choices[row] && found.length && typeof found[0] === "number" ? found.map((p, place) => [LETTERS[place], p]) : found;
}

function confidence(run, row) {
  const found = run.answers.probabilities[row], answer = run.answers.answer[row];
  if (typeof found[0] === "number") return found[LETTERS.indexOf(answer)] ?? 0;
  return (found.find(([name]) => name === answer) || [null, 0])[1];
}
// The place of a row among those whose given answer is likely wrong, from 1; undefined if it isn't one.
const errorRank = (run, row) => run.label_errors?.[row];
const isRight = (run, row) => (run.answers.score[row] === null ? null : run.answers.score[row] > 0);

function optionText(row, answer) {
  const choices = questions.choices[row];
  const place = choices ? LETTERS.indexOf(answer) : -1;
  return choices && place >= 0 && place < choices.length ? choices[place] : null;
}

function optionList(run, place, row) {
  const chosen = run.answers.answer[row], truth = questions.truth[row];
  const shown = probabilities(run, row);
  const lines = shown.map(([name, p]) => optionLine(row, name, p, name === chosen, truth, place));
  if (truth !== null && !shown.some(([name]) => name === truth)) lines.push(optionLine(row, truth, null, false, truth, place));
  return html("ul", { class: "options" }, lines);
}

function optionLine(row, name, p, chosen, truth, place) {
  const text = optionText(row, name), isTruth = name === truth;
  const marks = [chosen ? "answered" : "", isTruth ? "true" : ""].filter(Boolean).join(", ");
  const kind = truth === null || !marks ? "" : isTruth ? " right" : " wrong";
  return html("li", { class: `option${chosen ? " chosen" : ""}` }, [
    html("div", { class: "line" }, [
      text === null ? null : html("span", { class: "letter", text: name }),
      html("span", { class: "text data-text", text: text ?? name }),
      marks ? html("span", { class: `marks${kind}`, text: `${truth === null ? "" : isTruth ? "✓ " : "✗ "}${marks}` }) : null,
      html("span", { class: "percent", text: p === null ? "–" : percent(100 * p) }),
    ]),
    html("div", { class: "track", "aria-hidden": "true" }, [bar(p || 0, place)]),
  ]);
}

function bar(p, place) {
  const fill = html("div", { class: "fill", colour: colourOf(place) });
  fill.style.width = `${100 * p}%`;
  return fill;
}

function badge(run, row) {
  const right = isRight(run, row);
  if (right === null) return html("span", { class: "badge", text: "answer not known" });
  return html("span", { class: `badge ${right ? "right" : "wrong"}`, text: right ? "✓ right" : "✗ wrong" });
}

function votes(row) {
  return html("div", { class: "votes" }, answered.filter(([run]) => run.answers.answer[row] !== null).map(([run, place]) => {
    const right = isRight(run, row);
    return html("span", { class: `badge data-text ${right === null ? "" : right ? "right" : "wrong"}`, colour: colourOf(place), title: run.name }, [
      html("span", { text: run.name }),
      html("b", { text: `${right === null ? "" : right ? "✓ " : "✗ "}${run.answers.answer[row]} ${percent(100 * confidence(run, row), 0)}` }),
    ]);
  }));
}

function card(row, place) {
  const [run, number] = chosenRun(row);
  const rank = errorRank(run, row);
  const doubt = rank ? html("span", { class: "badge", text: `likely label error ${count(rank)}` }) : null;
  const extra = run.attention && run.attention[row] ? html("span", { class: "badge", text: "attention map" }) : null;
  return html("div", { class: "panel card", role: "listitem", onclick: () => openDetail(place) }, [
    html("div", { class: "picture" }, [picture(row)]),
    html("div", { class: "body" }, [
      html("div", { class: "head" }, [html("span", { class: "id data-text", text: questions.id[row] }), badge(run, row)]),
      html("button", { type: "button", class: "question data-text", "data-place": place, text: questions.question[row] || "(no text)" }),
      optionList(run, number, row),
      answered.length > 1 ? votes(row) : null,
      doubt,
      extra,
    ]),
  ]);
}

// The run that filters and cards speak of, or the first that answered a row.
function chosenRun(row) {
  const wanted = answered.find(([, place]) => place === Number(byId("f-run")?.value ?? answered[0][1]));
  return wanted[0].answers.answer[row] !== null ? wanted : answered.find(([run]) => run.answers.answer[row] !== null);
}

function field(label, control) {
  return html("label", {}, [html("span", { text: label }), control]);
}

function select(id, options) {
  return html("select", { id, onchange: () => filter() }, options.map(([value, text]) => html("option", { value, text })));
}

function common(values) {
  const counts = new Map();
  for (const value of values) if (value !== null) counts.set(value, (counts.get(value) || 0) + 1);
  const most = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 40).map(([value]) => value);
  return most.sort().map((value) => [value, value]);
}

function makeFilters() {
  const known = questions.truth.some((truth) => truth !== null);
  const form = byId("filters");
  const number = (id, value, label) => html("input", { id, type: "number", min: 0, max: 100, step: 1, value, "aria-label": label, oninput: () => filter() });
  const anyMap = runs.some((run) => run.attention && Object.keys(run.attention).length);
  const anyError = runs.some((run) => run.label_errors);
  const several = answered.length > 1;
  const others = [["any", "any"], ["differ", "runs disagree"], ["same", "runs agree"], ...(known ? [["some", "some right, some wrong"], ["only", "only the chosen run is right"], ["none", "every run is wrong"]] : [])];
  const result = [["all", "all"], ...(known ? [["right", "right"], ["wrong", "wrong"]] : []), ...(anyMap ? [["map", "with attention map"]] : []), ...(anyError ? [["error", "likely label error"]] : [])];
  const order = [["file", "as in the file"], ["sure", "most confident first"], ["unsure", "least confident first"], ...(known ? [["worst", "wrong and confident first"]] : []), ...(anyError ? [["error", "likely label errors first"]] : [])];
  put(form, {}, [
    html("label", { class: "search" }, [html("span", { text: "Text in the question, options or id" }), html("input", { id: "f-text", type: "search", oninput: () => filter() })]),
    several ? field("Run", select("f-run", answered.map(([run, place]) => [place, run.name]))) : null,
    field("Result", select("f-result", result)),
    several ? field("Among the runs", select("f-others", others)) : null,
    field("Question word", select("f-word", [["", "any"], ...common(questions.word)])),
    field("Answer given", select("f-answer", [["", "any"], ...common(answered.flatMap(([run]) => run.answers.answer))])),
    known ? field("True answer", select("f-truth", [["", "any"], ...common(questions.truth)])) : null,
    html("fieldset", {}, [html("span", { text: "Confidence, %" }), html("div", { class: "pair" }, [number("f-low", 0, "Lowest confidence in percent"), html("span", { text: "to" }), number("f-high", 100, "Highest confidence in percent")])]),
    field("Order", select("f-order", order)),
    html("button", { type: "button", id: "f-reset", text: "Show all", onclick: () => { form.reset(); filter(); } }),
  ]);
  form.addEventListener("submit", (event) => event.preventDefault());
}

function amongRuns(wanted, row, run) {
  const given = answered.filter(([one]) => one.answers.answer[row] !== null);
  if (given.length < 2) return false;
  const answers = new Set(given.map(([one]) => one.answers.answer[row]));
  const right = given.filter(([one]) => isRight(one, row)).length;
  if (wanted === "differ") return answers.size > 1;
  if (wanted === "same") return answers.size === 1;
  if (questions.truth[row] === null) return false;
  if (wanted === "some") return right > 0 && right < given.length;
  if (wanted === "only") return right === 1 && isRight(run, row);
  return right === 0;
}

function matches(row, f) {
  const [run] = chosenRun(row);
  const right = isRight(run, row), sure = 100 * confidence(run, row);
  if (f.result === "right" && right !== true) return false;
  if (f.result === "wrong" && right !== false) return false;
  if (f.result === "map" && !(run.attention && run.attention[row])) return false;
  if (f.result === "error" && !errorRank(run, row)) return false;
  if (f.others !== "any" && !amongRuns(f.others, row, run)) return false;
  if (f.word && questions.word[row] !== f.word) return false;
  if (f.answer && run.answers.answer[row] !== f.answer) return false;
  if (f.truth && questions.truth[row] !== f.truth) return false;
  if (sure < f.low - 1e-9 || sure > f.high + 1e-9) return false;
  if (!f.text) return true;
  const texts = [questions.question[row], questions.id[row], run.answers.answer[row], ...(questions.choices[row] || [])];
  return texts.some((text) => text.toLowerCase().includes(f.text));
}

function filter() {
  const value = (name, without) => byId(`f-${name}`)?.value ?? without;
  const f = { text: value("text", "").trim().toLowerCase(), low: Number(value("low", 0)), high: Number(value("high", 100) || 100) };
  for (const name of ["word", "answer", "truth"]) f[name] = value(name, "");
  Object.assign(f, { result: value("result", "all"), others: value("others", "any") });
  state.shown = questions.id.map((_, row) => row).filter((row) => matches(row, f));
  const sure = new Map(state.shown.map((row) => [row, confidence(chosenRun(row)[0], row)]));
  const wrong = (row) => (isRight(chosenRun(row)[0], row) === false ? 1 : 0);
  const orders = {
    sure: (a, b) => sure.get(b) - sure.get(a),
    unsure: (a, b) => sure.get(a) - sure.get(b),
    error: (a, b) => (errorRank(chosenRun(a)[0], a) ?? questions.id.length + 1) - (errorRank(chosenRun(b)[0], b) ?? questions.id.length + 1),
    worst: (a, b) => wrong(b) - wrong(a) || sure.get(b) - sure.get(a),
  };
  const order = orders[value("order", "file")];
  if (order) state.shown.sort(order);
  showPage(0);
}

const pages = () => Math.max(1, Math.ceil(state.shown.length / PER_PAGE));

function showPage(page, focus = null) {
  state.page = Math.min(Math.max(0, page), pages() - 1);
  const first = state.page * PER_PAGE;
  const cards = state.shown.slice(first, first + PER_PAGE).map((row, place) => card(row, first + place));
  byId("gallery").replaceChildren(...(cards.length ? cards : [html("p", { class: "empty", text: "No question fits these filters." })]));
  byId("count").textContent = `${count(state.shown.length)} of ${plural(questions.id.length, "question")}`;
  byId("page").textContent = `page ${count(state.page + 1)} of ${count(pages())}`;
  byId("previous").disabled = state.page === 0;
  byId("next").disabled = state.page >= pages() - 1;
  if (focus !== null) byId("gallery").querySelectorAll("button.question")[focus]?.focus();
}

// What was asked for before its picture had arrived is drawn again.
function arrived() {
  if (!state.early) return;
  const place = document.activeElement.dataset.place;
  showPage(state.page, place === undefined ? null : place % PER_PAGE);
  if (byId("detail").open) showDetail(detail.place);
}

function columns() {
  const tops = [...byId("gallery").children].map((one) => one.offsetTop);
  return Math.max(1, tops.filter((top) => top === tops[0]).length);
}

function walk(event) {
  const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns() };
  const move = moves[event.key];
  if (!move || event.altKey || event.ctrlKey || event.metaKey || !event.target.matches("button.question")) return;
  event.preventDefault();
  const target = Number(event.target.dataset.place) + move;
  if (target < 0 || target >= state.shown.length) return;
  const page = Math.floor(target / PER_PAGE);
  if (page !== state.page) showPage(page, target % PER_PAGE);
  else byId("gallery").querySelectorAll("button.question")[target % PER_PAGE].focus();
}
