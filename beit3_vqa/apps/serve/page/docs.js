// Shows openapi.json, which the server makes from the types that it checks requests with.
import { send, token } from "./token.js";

function make(tag, text, ...children) {
  const element = document.createElement(tag);
  element.textContent = text;
  element.append(...children);
  return element;
}

function resolve(schema, all) {
  return schema?.$ref ? all[schema.$ref.split("/").pop()] : schema;
}

function kind(schema, all) {
  if (schema.$ref) return `${resolve(schema, all).title}`;
  if (schema.anyOf) return schema.anyOf.map((one) => kind(one, all)).join(" or ");
  if (schema.type === "array") return schema.items ? `list of ${kind(schema.items, all)}` : "list";
  return schema.format === "binary" || schema.contentMediaType ? "file" : schema.type;
}

// optional: what isn't required may be left out, as in a form; a reply always has all of it.
function table(schema, all, optional = false) {
  const rows = Object.entries(schema.properties).map(([name, field]) => {
    const note = optional && !schema.required.includes(name) ? " (optional)" : "";
    const cells = [make("td", "", make("code", name)), make("td", kind(field, all) + note), make("td", field.description ?? "")];
    return make("tr", "", ...cells);
  });
  const head = make("tr", "", ...["field", "kind", "what it is"].map((title) => make("th", title)));
  return make("table", "", head, ...rows);
}

function nested(schema, all, found = new Set()) {
  for (const name of JSON.stringify(schema).matchAll(/#\/components\/schemas\/(\w+)/g)) {
    if (!found.has(name[1])) {
      found.add(name[1]);
      nested(all[name[1]], all, found);
    }
  }
  return found;
}

function operation(method, path, said, all) {
  const parts = [make("h2", `${method.toUpperCase()} ${path}`), make("p", said.description ?? "")];
  const form = said.requestBody?.content["multipart/form-data"]?.schema;
  if (form) parts.push(make("p", "A form (multipart/form-data):"), table(resolve(form, all), all, true));
  const reply = said.responses["200"].content["application/json"].schema;
  parts.push(make("p", "The reply, JSON:"), table(resolve(reply, all), all));
  for (const name of nested(resolve(reply, all), all)) parts.push(make("p", `${name}:`), table(all[name], all));
  const problems = Object.entries(said.responses).filter(([status]) => status >= "400");
  if (problems.length) {
    const list = problems.map(([status, response]) => make("li", `${status}: ${response.description}`));
    parts.push(make("p", "Errors:"), make("ul", "", ...list));
  }
  return parts;
}

function example(model) {
  const options = model.open_ended ? [] : ["a cat", "a dog", "a hat", "nothing"];
  while (options.length && options.length < model.fewest_options) options.push(`option ${options.length + 1}`);
  const choices = options.slice(0, model.most_options).map((option) => ` -F 'choices=${option}'`).join("");
  const bearer = token ? ` -H 'Authorization: Bearer ${token}'` : "";
  return `curl ${location.origin}/api/answer${bearer} -F image=@cat.jpg -F 'question=What is on the mat?'${choices}`;
}

const [described, reply] = await Promise.all(["openapi.json", "api/model"].map(async (name) => (await send(name)).json()));
const all = described.components.schemas;
document.getElementById("example").textContent = reply.error ?? example(reply);
for (const [path, methods] of Object.entries(described.paths)) {
  for (const [method, said] of Object.entries(methods)) {
    document.getElementById("operations").append(...operation(method, path, said, all));
  }
}
