// The live figures: /metrics, read every second or two while the page is visible.

import { ask } from "./server.js";

const POINTS = 60;
const SVG = "http://www.w3.org/2000/svg";

// Samples of Prometheus' text as a Map from name to [{labels, value}].
export function parse(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    if (!line || line.startsWith("#")) continue;
    const open = line.indexOf("{");
    const close = line.lastIndexOf("}");
    const name = open < 0 ? line.slice(0, line.indexOf(" ")) : line.slice(0, open);
    const labels = {};
    for (const [, label, value] of line.slice(open + 1, close).matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[label] = value.replace(/\\(.)/g, (_, letter) => (letter === "n" ? "\n" : letter));
    }
    const value = Number(line.slice(Math.max(close, open) + 1).trim().split(/\s+/).at(-1));
    if (!found.has(name)) found.set(name, []);
    found.get(name).push({ labels, value });
  }
  return found;
}

// The sum of a figure over one model, or undefined where nobody keeps it.
export function figure(samples, name, model) {
  const mine = (samples.get(`coldpress_${name}`) ?? []).filter((one) => one.labels.model_name === model);
  return mine.length ? mine.reduce((sum, one) => sum + one.value, 0) : undefined;
}

export class Live {
  constructor(find, onReach) {
    this.find = find;
    this.onReach = onReach;
    this.model = "";
    this.busy = false;
    this.rates = Array(POINTS).fill(0);
    this.last = null;
  }

  // Another model, whose figures begin anew.
  watch(model) {
    if (model === this.model) return;
    this.model = model;
    this.last = null;
    this.rates.fill(0);
  }

  async run() {
    for (;;) {
      if (!document.hidden) await this.look();
      await new Promise((done) => setTimeout(done, this.busy ? 1000 : 2000));
    }
  }

  async look() {
    try {
      const response = await ask("metrics");
      this.show(parse(await response.text()), performance.now() / 1000);
      this.onReach(null);
    } catch (failure) {
      this.onReach(failure);
    }
  }

  show(samples, now) {
    const value = (name) => figure(samples, name, this.model);
    const tokens = value("generated_tokens_total") ?? 0;
    if (this.last && tokens >= this.last.tokens) {
      this.rates.push((tokens - this.last.tokens) / (now - this.last.now));
      this.rates.shift();
    }
    this.last = { tokens, now };
    const rate = this.rates.at(-1);
    this.write("rate", rate >= 100 ? rate.toFixed(0) : rate.toFixed(1));
    this.write("running", short(value("num_running")));
    this.write("waiting", short(value("num_waiting")));
    this.write("answered", short(value("answers_total")));
    const count = value("time_to_first_token_seconds_count");
    this.write("ttft", count ? seconds(value("time_to_first_token_seconds_sum") / count) : "–");
    this.showCache(value("pages_in_use"), value("pages_evictable") ?? 0, value("pages_total"));
    draw(this.find("rate-chart"), this.rates);
  }

  showCache(used, cached, total) {
    const share = (pages) => (total ? Math.min(100, (100 * pages) / total) : 0);
    const kept = cached ? ` · ${percent(share(cached))} kept` : "";
    this.write("kv", total ? `${percent(share(used))} in use${kept}` : "–");
    this.find("kv-used").setAttribute("width", share(used ?? 0));
    this.find("kv-cached").setAttribute("width", share((used ?? 0) + cached));
  }

  write(id, text) {
    const node = this.find(id);
    if (node.textContent !== text) node.textContent = text;
  }
}

export function seconds(value) {
  return value < 1 ? `${Math.round(1000 * value)} ms` : `${value.toFixed(value < 10 ? 2 : 1)} s`;
}

function short(value) {
  return value === undefined ? "–" : value.toLocaleString("en", { notation: "compact" });
}

function percent(value) {
  return `${value > 0 && value < 9.95 ? value.toFixed(1) : Math.round(value)} %`;
}

// A line over an area, from the oldest value to the newest.
function draw(svg, values) {
  const most = Math.max(1, ...values);
  const points = values.map((value, i) => `${(120 * i) / (values.length - 1)} ${35 - (32 * value) / most}`);
  const paths = { base: "M0 35.5H120", area: `M0 36L${points.join("L")}L120 36Z`, line: `M${points.join("L")}` };
  for (const [name, d] of Object.entries(paths)) {
    let path = svg.querySelector(`.${name}`);
    if (!path) {
      path = document.createElementNS(SVG, "path");
      path.setAttribute("class", name);
      svg.append(path);
    }
    path.setAttribute("d", d);
  }
}
