// One conversation: what was said, how it is shown, and the answer that is being streamed.

import { seconds } from "./live.js";
import { element, render } from "./markdown.js";
import { events, post } from "./server.js";

const ENDS = {
  length: "Cut off at the token limit",
  content_filter: "Withheld",
  tool_calls: "Calls a tool",
};

export class Chat {
  // `settings()` gives the fields of the next request; `on` is told of changes.
  constructor(thread, settings, on) {
    this.thread = thread;
    this.settings = settings;
    this.on = on;
    this.clear();
  }

  get busy() {
    return this.abort !== null;
  }

  clear() {
    this.abort?.abort();
    this.abort = null;
    this.messages = [];
    this.thread.replaceChildren();
  }

  stop() {
    this.abort?.abort();
  }

  async send(text) {
    this.messages.push({ role: "user", content: text });
    this.thread.append(element("div", "user", text));
    await this.answer();
  }

  // The last answer once more, or the first one after a failure.
  async again() {
    if (this.busy) return;
    if (this.messages.at(-1)?.role === "assistant") this.messages.pop();
    this.thread.lastElementChild?.remove();
    await this.answer();
  }

  async answer() {
    for (const tool of this.thread.querySelectorAll("[data-again]")) tool.remove();
    const shown = new Answer(this.thread);
    const abort = (this.abort = new AbortController());
    this.on.change();
    let failure = null;
    try {
      await this.stream(shown, abort.signal);
    } catch (error) {
      if (error.name !== "AbortError") failure = error;
    }
    if (this.abort !== abort) return;
    this.abort = null;
    // What was stopped halfway is still what was said.
    if (shown.text) this.messages.push({ role: "assistant", content: shown.text });
    shown.end(failure, abort.signal.aborted);
    this.on.change(failure);
  }

  async stream(shown, signal) {
    const { system, ...fields } = this.settings();
    const messages = system ? [{ role: "system", content: system }, ...this.messages] : this.messages;
    const options = { stream: true, stream_options: { include_usage: true } };
    const response = await post("v1/chat/completions", { ...fields, messages, ...options }, signal);
    for await (const chunk of events(response)) {
      shown.take(chunk);
      if (chunk.usage) this.on.usage(chunk.usage);
      this.on.text();
    }
  }
}

class Answer {
  constructor(thread) {
    this.text = "";
    this.thoughts = "";
    this.start = performance.now();
    this.first = null;
    this.usage = null;
    this.reason = null;
    this.frame = 0;
    this.body = element("div", "body");
    this.article = element("article", "assistant busy", this.body);
    this.article.setAttribute("aria-busy", "true");
    thread.append(this.article);
  }

  take({ choices, usage }) {
    if (usage) this.usage = usage;
    const choice = choices[0];
    if (!choice) return;
    const { content, reasoning_content: thought } = choice.delta;
    if (content || thought) {
      this.last = performance.now();
      this.first ??= this.last;
      this.text += content ?? "";
      this.thoughts += thought ?? "";
      // Painting follows the screen, however fast tokens come.
      this.frame ||= requestAnimationFrame(() => this.paint());
    }
    this.reason = choice.finish_reason ?? this.reason;
  }

  paint() {
    this.frame = 0;
    if (this.thoughts) this.paintThoughts();
    if (this.text) this.body.replaceChildren(render(this.text));
  }

  paintThoughts() {
    if (!this.aside) {
      this.aside = element("p");
      const fold = element("details", "thinking", element("summary", "", "Thinking"), this.aside);
      fold.open = true;
      this.article.prepend(fold);
    }
    this.aside.textContent = this.thoughts.trim();
  }

  end(failure, stopped) {
    cancelAnimationFrame(this.frame);
    this.paint();
    this.article.classList.remove("busy");
    this.article.removeAttribute("aria-busy");
    if (!this.text && !failure && !stopped) {
      this.body.append(element("p", "tool", "The answer is empty."));
    }
    if (failure) this.article.append(element("p", "failure", failure.message));
    this.article.append(this.foot(failure, stopped));
  }

  foot(failure, stopped) {
    const foot = element("div", "foot");
    if (this.text) foot.append(button("Copy", { copy: this.text }));
    foot.append(button(failure ? "Try again" : "Again", { again: "" }));
    const tokens = this.usage?.completion_tokens;
    if (tokens) foot.append(element("span", "", `${tokens} token${tokens === 1 ? "" : "s"}`));
    const decoding = (this.last - this.first) / 1000;
    if (tokens > 1 && decoding > 0) {
      foot.append(element("span", "", `${((tokens - 1) / decoding).toFixed(1)} tokens/s`));
    }
    if (this.first) foot.append(element("span", "", `first after ${seconds((this.first - this.start) / 1000)}`));
    if (stopped) foot.append(element("span", "", "Stopped"));
    else if (ENDS[this.reason]) foot.append(element("span", "warn", ENDS[this.reason]));
    return foot;
  }
}

function button(label, data) {
  const node = element("button", "tool", label);
  node.type = "button";
  Object.assign(node.dataset, data);
  return node;
}

