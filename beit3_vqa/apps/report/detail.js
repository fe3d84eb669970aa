// One question, large: the picture with the attention laid over it, the words that were read, and every run's answer.

const detail = { place: 0, fade: 0.8, run: null };

// From clear over yellow to red: where nothing was looked at, the picture stays as it is.
const HEAT = [[255, 236, 120], [250, 170, 40], [236, 70, 40], [190, 0, 90]];

function heat(share) {
  const at = Math.min(0.9999, Math.max(0, share)) * (HEAT.length - 1), low = Math.floor(at), part = at - low;
  return [...HEAT[low].map((value, channel) => value + part * (HEAT[low + 1][channel] - value)), 235 * share ** 0.6];
}

// The share at a place between the middles of patches, from the four around it.
function between(shares, map, x, y) {
  const column = Math.min(map.columns - 1, Math.max(0, x)), row = Math.min(map.rows - 1, Math.max(0, y));
  const left = Math.floor(column), top = Math.floor(row), right = Math.min(left + 1, map.columns - 1), bottom = Math.min(top + 1, map.rows - 1);
  const at = (r, c) => shares.charCodeAt(r * map.columns + c) / 255;
  const upper = at(top, left) + (column - left) * (at(top, right) - at(top, left));
  const lower = at(bottom, left) + (column - left) * (at(bottom, right) - at(bottom, left));
  return upper + (row - top) * (lower - upper);
}

function overlay(map) {
  const fine = Math.ceil(200 / Math.max(map.columns, map.rows));
  const canvas = html("canvas", { width: fine * map.columns, height: fine * map.rows, "aria-hidden": "true", id: "overlay" });
  const pixels = new ImageData(canvas.width, canvas.height);
  const shares = atob(map.patches);
  for (let place = 0; place < canvas.width * canvas.height; place++) {
    const x = ((place % canvas.width) + 0.5) / fine - 0.5, y = (Math.floor(place / canvas.width) + 0.5) / fine - 0.5;
    pixels.data.set(heat(between(shares, map, x, y)), 4 * place);
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  const [left, top, right, bottom] = map.region;
  const place = { left, top, width: right - left, height: bottom - top };
  for (const [name, share] of Object.entries(place)) canvas.style[name] = `${100 * share}%`;
  canvas.style.opacity = detail.fade;
  return canvas;
}

function stage(row, map) {
  const image = picture(row);
  if (image.tagName !== "IMG") return html("div", { class: "panel note", text: "This picture isn't in the report." });
  const box = html("div", { class: "stage" }, [image, map ? overlay(map) : null]);
  image.addEventListener("load", () => {
    // As wide as its column allows, no taller than the window, small pictures enlarged.
    const tall = Math.min(520, window.innerHeight * 0.6);
    box.style.width = `${Math.round((tall * image.naturalWidth) / image.naturalHeight)}px`;
  });
  return box;
}

function fader(map) {
  const told = html("span", { text: percent(100 * detail.fade, 0) });
  const slide = (event) => {
    detail.fade = event.target.value / 100;
    told.textContent = percent(100 * detail.fade, 0);
    byId("overlay").style.opacity = detail.fade;
  };
  const input = html("input", { type: "range", id: "fade", min: 0, max: 100, value: Math.round(100 * detail.fade), oninput: slide });
  const note = `Brightest patch: ${percent(100 * map.most, 1)} of the attention; all patches ${percent(100 * map.image, 0)}${map.tower ? "" : `, the words ${percent(100 * map.words, 0)}`}, special tokens the rest.`;
  return [html("label", { class: "slider" }, [html("span", { text: "Where it looked" }), input, told]), html("p", { class: "note", text: note })];
}

function tokens(map, row, run) {
  const place = map.texts.length > 1 ? Math.max(0, LETTERS.indexOf(run.answers.answer[row])) : 0;
  const text = map.texts[place];
  const most = Math.max(...text.map(([, share]) => share), 1e-9);
  const spans = text.map(([piece, share]) => html("span", { text: piece, share: share / most, title: percent(100 * share, 1) }));
  const title = map.texts.length > 1 ? "The words of the option it chose" : "The words it read";
  return [html("h4", { text: title }), html("p", { class: "tokens data-text" }, spans)];
}

function answersOf(row) {
  const given = answered.filter(([run]) => run.answers.answer[row] !== null);
  return html("div", { class: "answers" }, given.map(([run, place]) => {
    const known = html("div", { class: "line" }, [badge(run, row)]);
    return html("div", { colour: colourOf(place) }, [runs.length > 1 ? html("h4", { class: "data-text", text: run.name }) : null, known, optionList(run, place, row)]);
  }));
}

function mapOf(row) {
  const having = answered.filter(([run]) => run.attention && run.attention[row]);
  return having.find(([run]) => run === detail.run) || having.find(([run]) => run === chosenRun(row)[0]) || having[0] || [null, 0];
}

function showDetail(place) {
  detail.place = Math.min(Math.max(0, place), state.shown.length - 1);
  const row = state.shown[detail.place];
  const [run] = mapOf(row);
  const map = run ? run.attention[row] : null;
  const having = answered.filter(([one]) => one.attention && one.attention[row]);
  const which = having.length > 1 ? field("Attention of", html("select", { id: "map-run", onchange: (event) => { detail.run = runs[event.target.value]; showDetail(detail.place); byId("map-run").focus(); } }, having.map(([one, number]) => html("option", { value: number, text: one.name, selected: one === run })))) : null;
  const step = (text, by, label) => html("button", { type: "button", text, "aria-label": label, disabled: detail.place + by < 0 || detail.place + by >= state.shown.length, onclick: () => showDetail(detail.place + by) });
  const problem = answered.map(([one]) => one.answers.problem && one.answers.problem[row]).find(Boolean);
  byId("detail").replaceChildren(
    html("div", { class: "detail-top" }, [
      html("span", { class: "id data-text", text: `${count(detail.place + 1)} of ${count(state.shown.length)} · ${questions.id[row]}` }),
      step("‹", -1, "Previous question"), step("›", 1, "Next question"),
      html("button", { type: "button", id: "close", text: "Close", onclick: () => byId("detail").close() }),
    ]),
    html("div", { class: "detail-body" }, [
      html("div", {}, [stage(row, map), ...(map ? fader(map) : []), which]),
      html("div", {}, [
        html("h3", { id: "detail-question", class: "data-text", text: questions.question[row] || "(no text)" }),
        problem ? html("p", { class: "note data-text wrong", text: `Answered without the picture: ${problem}` }) : null,
        answersOf(row),
        ...(map ? tokens(map, row, run) : []),
      ]),
    ]),
  );
  byId("detail").scrollTop = 0;
}

function openDetail(place) {
  showDetail(place);
  if (!byId("detail").open) byId("detail").showModal();
  byId("close").focus();
}

function walkDetail(event) {
  if (event.target.matches("input, select") || event.altKey || event.ctrlKey || event.metaKey) return;
  const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!move) return;
  event.preventDefault();
  showDetail(detail.place + move);
  byId("close").focus();
}

function closed() {
  const page = Math.floor(detail.place / PER_PAGE);
  showPage(page, detail.place % PER_PAGE);
}
