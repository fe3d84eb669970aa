// One question, large: the picture with the attention laid over it, the words that were read, and every run's answer.

const detail = { place: 0, fade: 0.8, run: null };

function overlay(map) {
  const canvas = html("canvas", { "aria-hidden": "true", id: "overlay" });
  const shares = atob(map.patches);
  drawAttention(canvas, map.rows, map.columns, (row, column) => shares.charCodeAt(row * map.columns + column) / 255, map.region);
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
