/**
 * The conversation on the screen: paints the turns and notices of a view, and only those that changed.
 *
 * It reads the view and writes the document; what its buttons mean is chat.js's business (`data-action`).  All text
 * goes in as text.  Caller: chat.js, once per animation frame.
 */

import { make, paintText } from "./markup.js";
import { describe, title } from "./words.js";
import { isSettled } from "./view.js";

const STARTS = new Map([
  ["warm", "A ready process was taken from the pool."],
  ["cold", "A process had to be started for this conversation."],
  ["restored", "A process was started to take this conversation up again."],
  ["attached", "This conversation had a process already."],
]);
const SENDING = new Map([["ready", "Sending"], ["final", "Not sent"]]);
const LONG_PREVIEW = 96;
const LONG_WAIT_MS = 100; // a time in the queue that is worth a word

export const duration = (ms) => (ms < 1_000 ? `${Math.round(ms)} ms` : `${(ms / 1_000).toFixed(ms < 9_950 ? 1 : 0)} s`);

/** What a tool call does, in one line: its command, its file, else its input. */
export function preview(input) {
  const main = input?.command ?? input?.file_path ?? input?.url ?? input?.pattern ?? input?.query;
  const line = String(main ?? JSON.stringify(input ?? {})).split("\n", 1)[0];
  return line.length > LONG_PREVIEW ? `${line.slice(0, LONG_PREVIEW - 1)}…` : line;
}

/** A tool's input as it is best read: the command itself, else JSON. */
export function inputText(input) {
  const { command, description, ...rest } = input ?? {};
  const isCommand = typeof command === "string" && Object.keys(rest).length === 0;
  return isCommand ? command : JSON.stringify(input, null, 2);
}

export class Transcript {
  #root;
  #painted = new Map(); // key of an item -> {element, rev, around, blocks}

  constructor(root) {
    this.#root = root;
  }

  /** `link`: the state of the connection, as connection.js names it. */
  paint(view, link) {
    const keys = new Set();
    const asked = new Set(view.prompts.filter((prompt) => !prompt.answer).map((prompt) => prompt.toolUseId));
    const waitsFor = [...asked].join();
    let previous = null;
    for (const item of view.items) {
      keys.add(item.key);
      const entry = this.#painted.get(item.key) ?? this.#add(item);
      const wanted = previous ? previous.nextSibling : this.#root.firstChild;
      if (entry.element !== wanted) this.#root.insertBefore(entry.element, wanted);
      previous = entry.element;
      const around = item.kind === "turn" && !isSettled(item) ? `${link} ${waitsFor}` : "";
      if (entry.rev === item.rev && entry.around === around) continue;
      Object.assign(entry, { rev: item.rev, around });
      if (item.kind === "turn") paintTurn(entry, item, link, asked);
      else paintNotice(entry.element, item);
    }
    for (const [key, entry] of this.#painted) {
      if (keys.has(key)) continue;
      entry.element.remove();
      this.#painted.delete(key);
    }
  }

  #add(item) {
    const element = item.kind === "turn" ? turnFrame(item) : make("p", { className: "notice" });
    const entry = { element, rev: -1, around: "", blocks: new Map() };
    this.#painted.set(item.key, entry);
    return entry;
  }
}

// -- notices --------------------------------------------------------------------------------------------------------

const lostText = ({ range, reason }) => `Part of the output is missing here (frames ${range}): ${describe(reason)}`;

function paintNotice(element, notice) {
  element.dataset.tone = notice.tone;
  element.textContent = notice.tone === "lost" && notice.range ? lostText(notice) : notice.text;
}

// -- turns ----------------------------------------------------------------------------------------------------------

function turnFrame(turn) {
  return make(
    "article",
    { className: "turn", data: { id: turn.id ?? "" } },
    make("h2", { className: "question" }),
    make("div", { className: "reply" }),
    make("div", { className: "progress" }),
    make("div", { className: "problem" }),
    make("p", { className: "meta" }),
  );
}

function paintTurn(entry, turn, link, asked) {
  const [question, reply, progress, problem, meta] = entry.element.children;
  entry.element.dataset.state = turn.state;
  question.textContent = turn.text ?? "";
  question.hidden = turn.text === null;
  paintBlocks(entry.blocks, reply, turn, asked);
  reply.hidden = turn.blocks.length === 0;
  replace(progress, progressOf(turn, link, asked));
  replace(problem, problemOf(turn));
  replace(meta, metaOf(turn));
}

function replace(parent, children) {
  parent.hidden = children.length === 0;
  parent.replaceChildren(...children);
}

function button(text, action) {
  return make("button", { type: "button", className: "quiet", textContent: text, data: { action } });
}

/** What stands below a turn that has not ended. */
function progressOf(turn, link, asked) {
  const words = (text) => make("span", { textContent: text });
  if (turn.state === "sending") return [words(SENDING.get(link) ?? "Will be sent when the connection is back")];
  if (turn.state === "queued") {
    const text = turn.ahead > 1 ? `Queued behind ${turn.ahead} messages` : "Queued";
    return link === "ready" ? [words(text), button("Cancel", "cancel")] : [words(text)];
  }
  if (turn.state !== "running") return [];
  const last = turn.blocks.at(-1);
  const isGrowing = last && !last.isFinal && last.type !== "tool";
  const retry = turn.retry && `The model's API failed; attempt ${turn.retry.attempt} of ${turn.retry.of}`;
  const dots = make("span", { className: "dots", "aria-hidden": "true" }, make("i"), make("i"), make("i"));
  if (isGrowing || asked.has(last?.id ?? "")) return [];
  return [dots, retry ? words(retry) : make("span", { className: "unseen", textContent: "Working" })];
}

function problemOf(turn) {
  const words = (text) => make("p", { textContent: text });
  if (turn.state === "unknown") return [words("How this turn ended is not known: that part of the output is lost.")];
  const error = turn.error;
  if (!error) return [];
  if (error.code === "cancelled" && error.applied === "no") return [words("Withdrawn."), reuse(turn)];
  const effects = { unknown: "It may have had effects.", yes: "What it did until then stays done." }[error.applied];
  const name = [make("strong", { textContent: title(error.code) }), make("code", { textContent: error.code })];
  const remedy = /auth|credential/.test(error.code) ? button("Settings", "settings") : null;
  return [
    make("p", { className: "problem-title" }, ...name),
    words(sentences(error.message, effects)),
    make("p", { className: "actions" }, reuse(turn), remedy),
  ];
}

/** One after the other, each with an end and a beginning that look like it. */
function sentences(...texts) {
  const capital = (text) => text.trim().replace(/^[a-z]/, (letter) => letter.toUpperCase());
  const whole = texts.filter((text) => text?.trim()).map(capital);
  return whole.map((text) => (/[.!?…]$/.test(text) ? text : `${text}.`)).join(" ");
}

const reuse = (turn) => (turn.text ? button("Edit and send again", "reuse") : "");

function metaOf(turn) {
  const { start, ttftMs, queueMs, durationMs, outputTokens, isStopped } = turn;
  if (turn.state !== "done" && ttftMs === null) return [];
  const part = (text, more = {}) => make("span", { textContent: text, ...more });
  return [
    start && part(start, { className: "start", title: STARTS.get(start) ?? "", data: { start } }),
    ttftMs !== null && part(`first token ${duration(ttftMs)}`, { className: "ttft" }),
    queueMs > LONG_WAIT_MS && part(`${duration(queueMs)} in the queue`),
    durationMs !== null && part(`${duration(durationMs)} in all`),
    outputTokens && part(`${outputTokens} tokens`),
    isStopped && part("stopped"),
  ].filter(Boolean);
}

// -- blocks ---------------------------------------------------------------------------------------------------------

function paintBlocks(painted, reply, turn, asked) {
  const isOver = isSettled(turn);
  for (const block of turn.blocks) {
    const entry = painted.get(block.key) ?? { element: reply.appendChild(blockFrame(block)), rev: -1, mood: "" };
    const mood = isOver ? "over" : asked.has(block.id) ? "asks" : "";
    painted.set(block.key, entry);
    if (entry.rev === block.rev && entry.mood === mood) continue;
    Object.assign(entry, { rev: block.rev, mood });
    PAINTERS[block.type](entry.element, block, mood);
  }
}

function blockFrame({ type }) {
  if (type === "text") return make("div", { className: "text" });
  if (type === "lost") return make("p", { className: "notice", data: { tone: "lost" } });
  const pre = (className) => make("pre", { className, tabIndex: 0 });
  const body = type === "thinking" ? [make("div")] : [pre("input"), pre("result")];
  const line = [make("span", { className: "name" }), make("code", { className: "preview" })];
  const summary = make("summary", {}, ...line, make("span", { className: "state" }));
  return make("details", { className: type, open: true }, summary, ...body);
}

const PAINTERS = {
  text: (element, block) => paintText(element, block.text),
  lost: (element, block) => (element.textContent = lostText(block)),
  thinking(element, block, mood) {
    const [summary, body] = element.children;
    const isDone = block.isFinal || mood === "over";
    summary.firstChild.textContent = isDone ? "Thought" : "Thinking";
    body.textContent = block.text;
    if (isDone && !element.dataset.done) element.open = false; // folded once; whoever opens it again keeps it open
    if (isDone) element.dataset.done = "true";
  },
  tool(element, block, mood) {
    const [summary, input, result] = element.children;
    const [name, line, state] = summary.children;
    name.textContent = block.name;
    line.textContent = block.input ? preview(block.input) : "";
    input.textContent = block.input ? inputText(block.input) : block.text;
    result.hidden = block.result === null;
    result.textContent = block.result || "(no output)";
    const open = { over: "not run", asks: "waits for you" }[mood] ?? "running";
    const how = block.result === null ? open : block.isError ? "failed" : "done";
    element.dataset.state = how;
    state.textContent = how;
  },
};
