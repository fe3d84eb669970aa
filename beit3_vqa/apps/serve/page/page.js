// The page: an image, a question and options in; bars and where the model looked out. Text is only ever set as text.
/* global drawAttention -- of attention.js */
import { send } from "./token.js";

const $ = (id) => document.getElementById(id);
const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const SMALL = 320; // pixels; smaller images are shown this large
const FIRST_OPTIONS = 4; // shown where the model takes more

let model = null; // what /api/model says
let image = null; // the file
let looks = []; // where each model looked
let asked = 0; // counts questions, so that a late answer to an earlier one is dropped

function make(tag, attributes = {}, ...children) {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
}

function complain(text) {
  $("error").textContent = text;
}

function forgetAnswer() {
  asked += 1;
  looks = [];
  $("answer").replaceChildren();
  $("looking").hidden = $("overlay").hidden = true;
  busy(false);
  complain("");
}

// --- the image

function take(file) {
  if (!file) return;
  forgetAnswer();
  if (model && file.size > model.max_upload_bytes) {
    complain(`The image has ${file.size.toLocaleString("en")} bytes; it may have ${model.max_upload_bytes.toLocaleString("en")}. Scale it down.`);
    return;
  }
  image = file;
  if ($("preview").src) URL.revokeObjectURL($("preview").src);
  $("preview").src = URL.createObjectURL(file);
  $("preview").alt = `The image you chose: ${file.name}`;
  $("picture").hidden = false;
  $("unseen").hidden = $("invite").hidden = true;
  $("drop").classList.add("full");
  $("choose").textContent = "Choose another image";
}

$("preview").addEventListener("load", () => {
  const { naturalWidth: width, naturalHeight: height } = $("preview");
  const larger = SMALL / Math.max(width, height); // else one couldn't see where the model looked
  $("preview").style.width = larger > 1 ? `${Math.round(larger * width)}px` : "";
});
$("preview").addEventListener("error", () => {
  $("picture").hidden = true;
  $("unseen").hidden = false;
});
$("file").addEventListener("change", () => take($("file").files[0]));
document.addEventListener("paste", (event) => {
  const pasted = [...event.clipboardData.files].find((file) => file.type.startsWith("image/"));
  if (pasted) {
    event.preventDefault();
    take(pasted);
  }
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault(); // wherever it falls: else the browser would leave the page
  $("drop").classList.remove("over");
  const file = event.dataTransfer.files[0];
  if (file) take(file);
  else complain("That was no file. Save the image first, then drop it here.");
});

// --- the options

function addOption() {
  const input = make("input", { type: "text", maxLength: model.max_option, autocomplete: "off" });
  const row = make("li", {}, make("label"), input);
  if (model.most_options > model.fewest_options) {
    const remove = make("button", { type: "button", className: "quiet", textContent: "✕" });
    remove.addEventListener("click", () => {
      const next = row.nextElementSibling || row.previousElementSibling;
      row.remove();
      numberOptions();
      next.querySelector("input").focus();
    });
    row.append(remove);
  }
  $("options").append(row);
  numberOptions();
  return input;
}

function numberOptions() {
  const rows = [...$("options").children];
  rows.forEach((row, place) => {
    const id = `option-${place}`;
    const [label, input, remove] = row.children;
    Object.assign(label, { htmlFor: id, textContent: LETTERS[place] });
    input.id = id;
    if (remove) {
      remove.ariaLabel = `Remove option ${LETTERS[place]}`;
      remove.hidden = rows.length <= model.fewest_options;
    }
  });
  $("add").hidden = rows.length >= model.most_options;
}

$("add").addEventListener("click", () => addOption().focus());

// --- asking

function busy(is) {
  $("ask").ariaDisabled = String(is);
  $("ask").textContent = is ? "Asking…" : "Ask";
}

function problem(choices) {
  if (!model) return ["The server hasn't answered yet. Is it running?", $("ask")];
  if (!image) return ["Choose an image first.", $("file")];
  if (!$("question").value.trim()) return ["Type a question.", $("question")];
  const empty = choices.findIndex((choice) => !choice.trim());
  if (empty >= 0) return [`Option ${LETTERS[empty]} is empty.`, $(`option-${empty}`)];
  const twice = choices.findIndex((choice, place) => choices.indexOf(choice) < place);
  if (twice >= 0) return [`Option ${LETTERS[twice]} is there twice.`, $(`option-${twice}`)];
  return null;
}

async function ask() {
  if ($("ask").ariaDisabled === "true") return;
  const choices = [...$("options").querySelectorAll("input")].map((input) => input.value);
  const wrong = problem(choices);
  if (wrong) {
    complain(wrong[0]);
    wrong[1].focus();
    return;
  }
  forgetAnswer();
  busy(true);
  const mine = asked;
  const form = new FormData();
  form.append("image", image);
  form.append("question", $("question").value);
  choices.forEach((choice) => form.append("choices", choice));
  form.append("attention", "true");
  let said = "";
  let reply = null;
  try {
    const response = await send("api/answer", { method: "POST", body: form });
    const body = await response.json();
    if (response.ok) reply = body;
    else said = body.error;
  } catch {
    said = "The server can't be reached. Is it still running? An image that changed on disk must be chosen again.";
  }
  if (mine !== asked) return;
  busy(false);
  if (reply) show(reply);
  else complain(said);
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { // not while Hangul is being composed
    event.preventDefault();
    $("form").requestSubmit();
  }
});

// --- the answer

function show(reply) {
  const place = reply.options.findIndex((option) => (option.letter ?? option.text) === reply.answer);
  const rows = reply.options.map((option, index) => {
    const bar = make("span", { className: "bar", ariaHidden: "true" });
    bar.style.width = `${100 * option.probability}%`;
    const row = make("li", { className: index === place ? "first" : "" }, bar);
    if (option.letter) row.append(make("span", { className: "letter", textContent: option.letter }));
    row.append(make("span", { className: "text", textContent: option.text }));
    row.append(make("span", { className: "share", textContent: `${(100 * option.probability).toFixed(1)}%` }));
    return row;
  });
  const title = make("h2", { textContent: `Answer: ${reply.text}` });
  $("answer").replaceChildren(title, make("ol", {}, ...rows));
  looks = reply.attention;
  if (looks.length) {
    $("whose").replaceChildren(...looks.map((look, index) => make("option", { value: index, textContent: look.model })));
    $("whose").hidden = looks.length < 2;
    $("looking").hidden = $("overlay").hidden = $("picture").hidden;
    drawLook(looks[0]);
    fade();
  }
  $("answer").scrollIntoView({ block: "nearest" });
}

function drawLook(look) {
  const brightest = Math.max(...look.patches.flat()) || 1;
  drawAttention($("overlay"), look.patches.length, look.patches[0].length, (row, column) => look.patches[row][column] / brightest, look.region);
}

function fade() {
  $("faded").textContent = `${$("fade").value}%`;
  $("overlay").style.opacity = $("fade").value / 100;
}

$("fade").addEventListener("input", fade);
$("whose").addEventListener("change", () => drawLook(looks[$("whose").value]));

// --- the beginning

async function begin() {
  try {
    const response = await send("api/model");
    const body = await response.json();
    if (!response.ok) {
      complain(body.error);
      return;
    }
    model = body;
  } catch {
    complain("The server can't be reached. Is it still running?");
    return;
  }
  const names = model.models.map((one) => `${one.model} (${one.parameters.toLocaleString("en")} parameters, ${one.device})`);
  $("models").textContent = names.join(" and ") + (names.length > 1 ? ": their probabilities are averaged" : "");
  $("question").maxLength = model.max_question;
  $("options-box").hidden = model.open_ended;
  if (model.open_ended) return;
  const { fewest_options: fewest, most_options: most } = model;
  $("options-note").textContent = fewest === most ? `The model chooses among exactly ${most}.` : `Between ${fewest} and ${most}.`;
  const shown = Math.min(Math.max(FIRST_OPTIONS, fewest), most);
  for (let count = 0; count < shown; count += 1) addOption();
}

begin();
