// A small subset of Markdown as DOM nodes. Text becomes text nodes, never markup: whatever a model
// writes, no element appears that is not made here.

const FENCE = /^\s{0,3}(`{3,}|~{3,})\s*([\w+#.-]{0,40})/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const RULE = /^\s{0,3}([-*_])(?:\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^\s{0,3}>\s?(.*)$/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const INLINE = /(`+)(.+?)\1(?!`)|\*\*(?=\S)(.+?)\*\*|\*(?=\S)([^*]+?)\*|(?<!\w)_(?=\S)([^_]+?)_(?!\w)/;

export function element(name, className, ...children) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

// A fragment for the text of one answer, finished or not.
export function render(text) {
  const fragment = document.createDocumentFragment();
  fragment.append(...blocks(text.split("\n"), 0));
  return fragment;
}

function blocks(lines, depth) {
  const found = [];
  for (let at = 0; at < lines.length;) {
    const [node, next] = block(lines, at, depth);
    if (node) found.push(node);
    at = next;
  }
  return found;
}

// One block from `lines[at]` on, and the line after it.
function block(lines, at, depth) {
  const line = lines[at];
  let match;
  if (!line.trim()) return [null, at + 1];
  if ((match = FENCE.exec(line))) return code(lines, at, match);
  if ((match = HEADING.exec(line))) {
    const level = Math.min(6, match[1].length + 2);
    return [element(`h${level}`, "", ...inline(match[2])), at + 1];
  }
  if (RULE.test(line)) return [element("hr"), at + 1];
  if (depth < 6 && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < 6 && ITEM.test(line)) return list(lines, at, depth);
  if (line.includes("|") && DIVIDER.test(lines[at + 1] ?? "")) return table(lines, at);
  return paragraph(lines, at);
}

function paragraph(lines, at) {
  const node = element("p");
  let next = at;
  do {
    if (next > at) node.append(element("br"));
    node.append(...inline(lines[next].trim()));
    next += 1;
  } while (next < lines.length && lines[next].trim() && !startsBlock(lines[next]));
  return [node, next];
}

function startsBlock(line) {
  return [FENCE, HEADING, RULE, ITEM, QUOTE].some((form) => form.test(line));
}

function code(lines, at, [, mark, language]) {
  let next = at + 1;
  while (next < lines.length && !lines[next].trim().startsWith(mark)) next += 1;
  const text = lines.slice(at + 1, next).join("\n");
  const copy = element("button", "tool", "Copy");
  copy.type = "button";
  copy.dataset.copy = text;
  const caption = element("figcaption", "", element("span", "", language || "text"), copy);
  const body = element("pre", "", element("code", "", text));
  return [element("figure", "code", caption, body), next + 1];
}

function quote(lines, at, depth) {
  const inner = [];
  let next = at;
  for (; next < lines.length && QUOTE.test(lines[next]); next += 1) {
    inner.push(QUOTE.exec(lines[next])[1]);
  }
  return [element("blockquote", "", ...blocks(inner, depth + 1)), next];
}

function list(lines, at, depth) {
  const [, indent, mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const node = element(ordered ? "ol" : "ul");
  if (ordered) node.start = parseInt(mark, 10);
  let next = at;
  while (next < lines.length) {
    const match = ITEM.exec(lines[next]);
    if (!match || match[1].length > indent.length + 1 || /\d/.test(match[2]) !== ordered) break;
    if (match[1].length < indent.length) break;
    const inner = [match[3]];
    const inset = match[1].length + match[2].length;
    for (next += 1; next < lines.length && belongs(lines, next, inset); next += 1) {
      inner.push(lines[next].slice(Math.min(inset + 1, lines[next].search(/\S|$/))));
    }
    node.append(element("li", "", ...itemContent(inner, depth)));
  }
  return [node, next];
}

// Whether a line goes on with an item whose text begins after `inset` columns.
function belongs(lines, at, inset) {
  if (lines[at].trim()) return lines[at].search(/\S/) >= Math.min(inset, 2) && /^\s/.test(lines[at]);
  const following = lines[at + 1] ?? "";
  return /^\s{2,}\S/.test(following);
}

function itemContent(lines, depth) {
  const nodes = blocks(lines, depth + 1);
  const first = nodes[0];
  return first?.nodeName === "P" ? [...first.childNodes, ...nodes.slice(1)] : nodes;
}

function table(lines, at) {
  const row = (line, cell) => {
    const texts = line.trim().replace(/^\||\|$/g, "").split("|");
    return element("tr", "", ...texts.map((text) => element(cell, "", ...inline(text.trim()))));
  };
  const body = element("tbody");
  let next = at + 2;
  for (; next < lines.length && lines[next].includes("|"); next += 1) body.append(row(lines[next], "td"));
  const node = element("table", "", element("thead", "", row(lines[at], "th")), body);
  return [element("div", "table", node), next];
}

function inline(text) {
  const nodes = [];
  for (let match; (match = INLINE.exec(text));) {
    if (match.index) nodes.push(text.slice(0, match.index));
    const [all, , fixed, strong, starred, underscored] = match;
    if (fixed !== undefined) nodes.push(element("code", "", fixed));
    else if (strong !== undefined) nodes.push(element("strong", "", ...inline(strong)));
    else nodes.push(element("em", "", ...inline(starred ?? underscored)));
    text = text.slice(match.index + all.length);
  }
  return text ? [...nodes, text] : nodes;
}
