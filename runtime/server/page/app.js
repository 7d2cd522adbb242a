// The page: model, sampling, conversation and figures put together.

import { Chat } from "./chat.js";
import { Live } from "./live.js";
import { ask, key } from "./server.js";

const IDEAS = [
  "Explain why the sky is blue in three sentences.",
  "Write a haiku about a printing press.",
  "Write a Python function that reverses a linked list.",
  "List five uses for an old newspaper.",
];
const SETTINGS = "coldpress.sampling";
const THEME = "coldpress.theme";

const find = (id) => document.getElementById(id);
const prompt = find("prompt");
const log = find("log");
const fields = [...find("sampling").querySelectorAll("input"), find("system")];
const models = new Map();
let used = 0;

const chat = new Chat(find("thread"), requestFields, {
  change: showState,
  text: () => follow(),
  usage: (usage) => {
    used = usage.total_tokens;
    showContext();
  },
});
const live = new Live(find, showReach);

// Model

async function loadModels() {
  try {
    const { data } = await (await ask("v1/models")).json();
    models.clear();
    for (const model of data) models.set(model.id, model);
    const picker = find("model");
    const before = picker.value;
    picker.replaceChildren(...data.map(({ id }) => new Option(id, id)));
    if (models.has(before)) picker.value = before;
    picker.disabled = data.length < 2;
    await showModel();
    const { version } = await (await ask("version")).json();
    find("version").textContent = `coldpress ${version}`;
  } catch (failure) {
    if (failure.status === 401) askForKey();
    showReach(failure);
  }
}

async function showModel() {
  const name = find("model").value;
  const { max_model_len: length, state, error, root } = models.get(name) ?? {};
  find("title").textContent = name;
  document.title = name ? `${name} · coldpress` : "coldpress";
  const context = length ? `${length.toLocaleString("en")} tokens of context` : "";
  const others = { unloaded: "loaded by the first message", loading: "being loaded", failed: error };
  find("model-note").textContent = [context, others[state]].filter(Boolean).join(" · ");
  // Figures are kept by model; an alias shows those of its first.
  live.watch(root ?? name);
  showContext();
  showState();
  await showDefaults(name);
}

// The model's own sampling stands where nothing is chosen.
async function showDefaults(name) {
  let defaults = {};
  try {
    const props = await (await ask(`props?model=${encodeURIComponent(name)}`)).json();
    defaults = props.default_generation_settings.params;
  } catch {
    // A model that is not loaded tells none.
  }
  for (const { name: field } of fields) {
    if (field in defaults) find("sampling").querySelector(`[name=${field}]`).placeholder = defaults[field];
  }
}

function requestFields() {
  const chosen = { model: find("model").value, system: find("system").value.trim() };
  for (const input of fields) {
    if (input.name && input.value !== "" && input.validity.valid) chosen[input.name] = Number(input.value);
  }
  return chosen;
}

function showContext() {
  const most = models.get(find("model").value)?.max_model_len;
  find("context").textContent = used && most ? `${used.toLocaleString("en")} of ${most.toLocaleString("en")} tokens` : "";
}

// Conversation

function showState(failure = null) {
  const empty = chat.messages.length === 0 && !chat.busy;
  find("empty").hidden = !empty;
  const send = find("send");
  send.classList.toggle("stop", chat.busy);
  send.disabled = !chat.busy && (!prompt.value.trim() || models.size === 0);
  send.ariaLabel = chat.busy ? "Stop" : "Send";
  send.title = chat.busy ? "Stop (Esc)" : "Send (Enter)";
  live.busy = chat.busy;
  if (failure?.status === 401) askForKey();
  follow();
}

async function submit() {
  const text = prompt.value.trim();
  if (chat.busy || !text || models.size === 0) return;
  prompt.value = "";
  grow();
  stuck = true;
  await chat.send(text);
}

function newChat() {
  chat.clear();
  used = 0;
  showContext();
  showState();
  prompt.focus();
}

function grow() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
  find("send").disabled = !chat.busy && (!prompt.value.trim() || models.size === 0);
}

// The end stays in sight until the reader scrolls away from it.
let stuck = true;

function follow() {
  if (stuck) log.scrollTop = log.scrollHeight;
  find("jump").hidden = stuck || log.scrollHeight - log.clientHeight < 40;
}

// Key, reach and theme

function askForKey() {
  find("key-input").value = key.get();
  if (!find("key-dialog").open) find("key-dialog").showModal();
}

let reached = true;

function showReach(failure) {
  const banner = find("banner");
  banner.hidden = !failure;
  if (failure) banner.textContent = failure.message;
  find("live-dot").className = `dot ${failure ? "off" : "on"}`;
  // A server that is back may have other models.
  if (!failure && (!reached || models.size === 0)) loadModels();
  reached = !failure;
}

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
}

function isDark() {
  const { theme } = document.documentElement.dataset;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function openPanel(open) {
  document.body.classList.toggle("open", open);
  find("menu").ariaExpanded = String(open);
}

// What was chosen is kept in this browser; what was said is not.
function keep() {
  const chosen = Object.fromEntries(fields.map((input) => [input.name || input.id, input.value]));
  localStorage.setItem(SETTINGS, JSON.stringify(chosen));
}

function restore() {
  setTheme(localStorage.getItem(THEME));
  let chosen = {};
  try {
    chosen = JSON.parse(localStorage.getItem(SETTINGS) ?? "{}");
  } catch {
    localStorage.removeItem(SETTINGS);
  }
  for (const input of fields) input.value = chosen[input.name || input.id] ?? "";
}

async function copy(button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed here";
  }
  setTimeout(() => (button.textContent = label), 1200);
}

// Events

find("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (chat.busy) chat.stop();
  else submit();
});
prompt.addEventListener("input", grow);
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  }
});
document.addEventListener("keydown", (event) => {
  if (find("key-dialog").open) return;
  if (event.key === "Escape") {
    openPanel(false);
    chat.stop();
  } else if (event.altKey && event.code === "KeyN") {
    event.preventDefault();
    newChat();
  } else if (event.key === "/" && !event.target.matches("input, textarea, select")) {
    event.preventDefault();
    prompt.focus();
  }
});
log.addEventListener("scroll", () => {
  stuck = log.scrollHeight - log.clientHeight - log.scrollTop < 40;
  find("jump").hidden = stuck;
});
document.addEventListener("click", ({ target }) => {
  if (target.dataset.copy !== undefined) copy(target);
  if (target.dataset.again !== undefined) chat.again();
});
find("jump").addEventListener("click", () => {
  stuck = true;
  follow();
});
find("new").addEventListener("click", newChat);
find("model").addEventListener("change", showModel);
find("menu").addEventListener("click", () => openPanel(!document.body.classList.contains("open")));
find("scrim").addEventListener("click", () => openPanel(false));
find("key").addEventListener("click", askForKey);
find("key-cancel").addEventListener("click", () => find("key-dialog").close());
find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(find("key-input").value.trim());
  find("key-dialog").close();
  loadModels();
});
find("theme").addEventListener("click", () => {
  const theme = isDark() ? "light" : "dark";
  setTheme(theme);
  localStorage.setItem(THEME, theme);
});
find("reset").addEventListener("click", () => {
  for (const input of fields) input.value = "";
  keep();
});
for (const input of fields) input.addEventListener("input", keep);

for (const idea of IDEAS) {
  const choice = document.createElement("button");
  choice.type = "button";
  choice.textContent = idea;
  choice.addEventListener("click", () => {
    prompt.value = idea;
    submit();
  });
  find("ideas").append(choice);
}
restore();
grow();
loadModels().then(() => live.run());
