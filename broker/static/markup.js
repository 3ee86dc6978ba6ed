/**
 * A reply's text as elements: paragraphs, headings, lists, fenced code, inline code, emphasis, links.
 *
 * Safe by construction: it makes elements and sets `textContent`; markup inside the text is never parsed as HTML, and a
 * link is only made of an http(s) address that stands in the text itself.  `segments` is pure.  Caller: transcript.js.
 */

const FENCE = /^ {0,3}(`{3,}(?!.*`)|~{3,})\s*(.*)$/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const ITEM = /^\s*(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/;
const CODE = /(`+)(.+?)\1/;
const STRONG = /\*\*(?=\S)(.+?)\*\*/;
const EMPHASIS = /(?<![\w*])\*(?=[^\s*])([^*\n]*[^\s*])\*(?![\w*])/;
const LINK = /(https?:\/\/[^\s<>"'`)\]]*[^\s<>"'`)\].,;:!?])/;
const INLINE = new RegExp([CODE, STRONG, EMPHASIS, LINK].map((one) => one.source).join("|"), "g");

/** Split a text into `{kind, text, ...}`; the last one may still grow.  kind: text | heading | list | code. */
export function segments(text) {
  const found = [];
  let open = null;
  const close = () => (open = null);
  const begin = (kind, fields = {}) => {
    open = { kind, lines: [], ...fields };
    found.push(open);
    return open;
  };
  for (const line of text.split("\n")) {
    if (open?.kind === "code") {
      if (line.trimStart().startsWith(open.fence) && line.trim().replaceAll(open.fence[0], "") === "") close();
      else open.lines.push(line);
      continue;
    }
    const fence = FENCE.exec(line);
    const heading = HEADING.exec(line);
    const item = ITEM.exec(line);
    if (fence) begin("code", { fence: fence[1], language: fence[2] });
    else if (heading) {
      begin("heading", { level: heading[1].length }).lines.push(heading[2]);
      close();
    } else if (item) {
      const isOrdered = item[1] !== undefined;
      const goesOn = open?.kind === "list" && open.isOrdered === isOrdered;
      if (!goesOn) begin("list", { isOrdered, first: Number(item[1] ?? 1) });
      open.lines.push(item[2]);
    } else if (line.trim() === "") close();
    else if (open?.kind === "list" && /^\s/.test(line)) open.lines[open.lines.length - 1] += `\n${line.trim()}`;
    else (open?.kind === "text" ? open : begin("text")).lines.push(line);
  }
  return found;
}

const HAS_MARKS = /[`*]|https?:/;

function signature({ kind, level, first, language, lines }) {
  return `${kind}|${level ?? first ?? language ?? ""}|${lines.join("\n")}`;
}

/** An element with properties (`data` and `aria-*` too) and children; null children are left out. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "data") Object.assign(element.dataset, value);
    else if (name.startsWith("aria-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Make `parent` show `text`.  What is shown already and has not changed is left alone. */
export function paintText(parent, text) {
  const wanted = segments(text);
  wanted.forEach((segment, index) => {
    const now = signature(segment);
    const old = parent.children[index];
    if (old?.paintedAs === now || (old && growWords(old, segment, now))) return;
    const element = build(segment);
    element.paintedAs = now;
    if (old) old.replaceWith(element);
    else parent.append(element);
  });
  while (parent.children.length > wanted.length) parent.lastElementChild.remove();
}

/** Plain words at the end of a paragraph are added to its text node: a selection in it survives the stream. */
function growWords(element, segment, now) {
  if (segment.kind !== "text" || !now.startsWith(element.paintedAs) || HAS_MARKS.test(now)) return false;
  element.lastChild.appendData(now.slice(element.paintedAs.length));
  element.paintedAs = now;
  return true;
}

function build(segment) {
  if (segment.kind === "code") return code(segment);
  if (segment.kind === "list") {
    const items = segment.lines.map((line) => inline(make("li"), line));
    return segment.isOrdered ? make("ol", { start: segment.first }, ...items) : make("ul", {}, ...items);
  }
  // The page has an h1 and each turn an h2: headings of a reply come below these.
  const name = segment.kind === "heading" ? `h${Math.min(6, segment.level + 2)}` : "p";
  return inline(make(name), segment.lines.join("\n"));
}

function code({ language, lines }) {
  const body = make("pre", { tabIndex: 0 }, make("code", { textContent: lines.join("\n") }));
  const copy = make("button", { type: "button", className: "quiet", textContent: "Copy", data: { action: "copy" } });
  const caption = make("figcaption", {}, make("span", { textContent: language || "text" }), copy);
  return make("figure", { className: "code" }, caption, body);
}

function inline(parent, text) {
  let from = 0;
  for (const match of text.matchAll(INLINE)) {
    parent.append(text.slice(from, match.index), mark(match));
    from = match.index + match[0].length;
  }
  parent.append(text.slice(from));
  return parent;
}

function mark([, tick, literal, strong, emphasis, url]) {
  if (url) return make("a", { href: url, target: "_blank", rel: "noopener noreferrer nofollow", textContent: url });
  return make(tick ? "code" : strong ? "strong" : "em", { textContent: literal ?? strong ?? emphasis });
}
