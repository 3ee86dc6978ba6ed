/**
 * Frames in, view state out: what the page knows of one conversation.
 *
 * Pure: no DOM, no clock, no network.  A view is changed in place, because a reply of thousands of tokens would
 * otherwise be copied thousands of times; `rev` of a turn, and of a block in it, grows with each change, so that a
 * painter can skip what it has painted.  Callers: chat.js (every frame, every message that is sent), tests/browser.
 */

import { appendDelta, attachResult, openBlock, settleMessage, textOf } from "./blocks.js";
import { answerFailed, dropPrompt, keepPending, takePrompt } from "./prompts.js";

/** State of a turn: sending -> queued -> running -> done | failed | unknown. */
const UNSETTLED = new Set(["sending", "queued", "running"]);
const MAX_ITEMS = 1_000; // then the oldest leave the page

export function newView() {
  return {
    epoch: null, lastSeq: 0, rev: 0,
    items: [], // turns and notices, in the order they are shown
    current: null, // the turn that runs
    prompts: [],
    controls: new Map(), // request id -> what was asked, while the answer is out
    start: null, readyMs: null, missReason: null, cli: null, limits: null, sessionId: null,
    model: null, // as last told by the broker; null is its default
    waiting: null, goAway: null,
    truth: { seq: 0, pending: new Set(), alive: null }, // what the last welcome said, and where it holds
  };
}

/** Take one frame in.  Returns false for a frame that was seen before; it then changes nothing. */
export function apply(view, frame) {
  if (Number.isInteger(frame.seq)) {
    if (frame.seq <= view.lastSeq) return false;
    if (frame.seq > view.lastSeq + 1) lose(view, view.lastSeq + 1, frame.seq - 1, "gap");
    view.lastSeq = frame.seq;
  }
  ACTIONS.get(frame.type)?.(view, frame);
  if (view.truth.alive && view.lastSeq >= view.truth.seq) forget(view);
  return true;
}

/** The user's message, before the broker has it. */
export function say(view, id, text) {
  return push(view, newTurn(id, text, "sending"));
}

/** Take a turn out again: its text goes back to the composer. */
export function unsay(view, turn) {
  view.items = view.items.filter((item) => item !== turn);
  view.rev += 1;
}

export const turns = (view) => view.items.filter((item) => item.kind === "turn");
export const unaccepted = (view) => turns(view).filter((turn) => turn.state === "sending");
export const isSettled = (turn) => !UNSETTLED.has(turn.state);
const find = (view, id) => view.items.find((item) => item.kind === "turn" && item.id === id);

/** A line between the turns that tells what is not part of the conversation itself. */
export function note(view, tone, text) {
  const last = view.items.at(-1);
  if (last?.kind === "notice" && last.text === text) return;
  push(view, { kind: "notice", key: `notice-${view.rev}`, tone, text, rev: 0 });
}

/** End a message that the broker did not take; `error` is `{code, message}`. */
export function refuse(view, turn, error) {
  settle(view, turn, "failed", { error: { ...error, applied: "no" } });
}

function newTurn(id, text, state) {
  return {
    kind: "turn", key: id ?? "", id, text, state, rev: 0, by: null, blocks: [], ahead: 0, messageId: null,
    start: null, ttftMs: null, queueMs: 0, durationMs: null, outputTokens: null, isStopped: false, error: null,
    errorText: null, retry: null,
  };
}

function push(view, item) {
  view.items.push(item);
  if (view.items.length > MAX_ITEMS) view.items.shift();
  touch(view, item);
  return item;
}

function touch(view, item) {
  view.rev += 1;
  item.rev = view.rev;
}

function settle(view, turn, state, fields) {
  Object.assign(turn, fields, { state, retry: null });
  if (view.current === turn) view.current = null;
  touch(view, turn);
}

// -- the connection's own frames ------------------------------------------------------------------------------------

function onWelcome(view, frame) {
  const { epoch, lost, replay, turn, queued, pending, head_seq: head, start } = frame;
  const isNewLog = view.epoch !== null && view.epoch !== epoch;
  const readFrom = replay ? replay.from - 1 : head;
  if (lost) lose(view, lost.from, lost.to, lost.reason);
  else if (!isNewLog && readFrom > view.lastSeq) lose(view, view.lastSeq + 1, readFrom, "expired");
  const alive = lost || isNewLog ? new Set([turn?.id, ...queued]) : null;
  Object.assign(view, {
    epoch, lastSeq: readFrom, waiting: null, goAway: null, sessionId: frame.session_id, cli: frame.cli,
    limits: frame.limits, truth: { seq: head, pending: new Set(pending.map((request) => request.request_id)), alive },
  });
  const isNewProcess = start && start !== "attached";
  if (isNewProcess) Object.assign(view, { start, readyMs: frame.ready_ms, missReason: frame.miss_reason });
  keepPending(view, pending);
  if (turn && turn.first_seq <= readFrom && view.current?.id !== turn.id) begin(view, turn.id, null);
  for (const id of queued) if (lost && !find(view, id)) push(view, newTurn(id, null, "queued"));
  view.rev += 1;
}

/** Everything that is kept was read: a turn that is not alive and has no end lost it, and nobody can tell it now. */
function forget(view) {
  const open = turns(view).filter((turn) => turn.state !== "sending" && !isSettled(turn));
  for (const turn of open) if (!view.truth.alive.has(turn.id)) settle(view, turn, "unknown", {});
  view.truth.alive = null;
}

function lose(view, from, to, reason) {
  const target = view.current;
  const range = to === null ? `from ${from} on` : from === to ? String(from) : `${from} to ${to}`;
  if (target) {
    target.blocks.push({ key: `lost-${from}`, type: "lost", range, reason, rev: view.rev, isFinal: true });
    touch(view, target);
  } else {
    push(view, { kind: "notice", key: `lost-${from}-${view.rev}`, tone: "lost", range, reason, rev: 0 });
  }
}

function onAccepted(view, frame) {
  const turn = find(view, frame.id);
  if (!turn || isSettled(turn)) return;
  if (turn.state === "sending") turn.state = "queued";
  turn.ahead = frame.queued;
  if (frame.outcome) settle(view, turn, frame.outcome === "completed" ? "done" : "failed", {});
  touch(view, turn);
}

function onError(view, frame) {
  const asked = view.controls.get(frame.ref);
  view.controls.delete(frame.ref);
  const turn = find(view, frame.ref);
  if (turn && turn.state === "sending") return refuse(view, turn, frame);
  if (answerFailed(view, frame)) return undefined;
  if (asked?.subtype === "interrupt" || frame.code === "already_started") return undefined;
  return note(view, "error", `${frame.code}: ${frame.message}`);
}

function onControlResponse(view, frame) {
  const { request_id: id, subtype, error } = frame.response;
  const asked = view.controls.get(id);
  view.controls.delete(id);
  if (asked && subtype === "error") note(view, "error", `${asked.subtype}: ${error}`);
  view.rev += 1;
}

// -- turns ----------------------------------------------------------------------------------------------------------

function onMessage(view, frame) {
  const turn = find(view, frame.id) ?? push(view, newTurn(frame.id, null, "queued"));
  turn.text ??= textOf(frame.content);
  turn.by = frame.by;
  if (frame.state === "started") begin(view, frame.id, turn.text);
  else if (turn.state === "sending") turn.state = "queued";
  touch(view, turn);
}

/** The turn runs now; it stands before those that still wait. */
function begin(view, id, text) {
  const turn = find(view, id) ?? push(view, newTurn(id, text, "queued"));
  if (isSettled(turn)) return turn;
  const rest = view.items.filter((item) => item !== turn);
  const at = rest.findIndex((item) => item.kind === "turn" && ["sending", "queued"].includes(item.state));
  rest.splice(at < 0 ? rest.length : at, 0, turn);
  Object.assign(turn, { state: "running", start: view.start });
  Object.assign(view, { items: rest, current: turn });
  touch(view, turn);
  return turn;
}

/** The running turn; the CLI may begin one by itself, which has no id and no question. */
function running(view) {
  if (!view.current) {
    const turn = push(view, { ...newTurn(null, null, "running"), key: `cli-${view.lastSeq}`, start: view.start });
    view.current = turn;
  }
  return view.current;
}

function onCompleted(view, frame) {
  const turn = frame.id === null ? (view.current?.id === null ? view.current : null) : find(view, frame.id);
  if (!turn) return;
  const hasFailed = frame.is_error && !frame.stopped;
  const code = frame.error ?? frame.subtype;
  const error = hasFailed ? { code, message: turn.errorText ?? "", applied: null } : null;
  settle(view, turn, hasFailed ? "failed" : "done", {
    error, isStopped: frame.stopped, ttftMs: frame.ttft_ms, queueMs: frame.queue_ms, durationMs: frame.duration_ms,
    outputTokens: frame.usage?.output_tokens ?? null, start: turn.start ?? view.start,
  });
}

function onFailed(view, frame) {
  const turn = find(view, frame.id);
  const { reason: code, detail, applied } = frame;
  if (turn) settle(view, turn, "failed", { error: { code, message: detail ?? "", applied } });
}

// -- the CLI's frames -----------------------------------------------------------------------------------------------

function onStreamEvent(view, frame) {
  const event = frame.event ?? {};
  const turn = view.current;
  if (frame.parent_tool_use_id) return undefined;
  if (event.type === "message_start" && turn) turn.messageId = event.message?.id;
  const message = frame.api_message_id ?? turn?.messageId ?? "";
  if (event.type === "content_block_start") openBlock(running(view), message, event.index, event.content_block);
  else if (event.type === "content_block_delta") appendDelta(running(view), message, event.index, event.delta);
  else return undefined;
  view.current.retry = null;
  return touch(view, view.current);
}

function onAssistant(view, frame) {
  if (frame.parent_tool_use_id) return;
  const turn = running(view);
  if (frame.error || frame.is_api_error_message) turn.errorText = textOf(frame.message?.content);
  else settleMessage(turn, frame.message);
  touch(view, turn);
}

function onUser(view, frame) {
  if (view.current && !frame.parent_tool_use_id && attachResult(view.current, frame.message?.content)) {
    touch(view, view.current);
  }
}

function onResult(view, frame) {
  const turn = view.current;
  if (!turn || frame.is_error || turn.blocks.length || typeof frame.result !== "string" || !frame.result) return;
  settleMessage(turn, { id: "result", content: [{ type: "text", text: frame.result }] });
  touch(view, turn);
}

function onSystem(view, frame) {
  if (frame.subtype !== "api_retry" || !view.current) return;
  view.current.retry = { attempt: frame.attempt, of: frame.max_retries };
  touch(view, view.current);
}

// -- what changed in the session ------------------------------------------------------------------------------------

function onState(view, frame) {
  if ("model" in frame) view.model = frame.model;
  if (frame.state === "restored") {
    Object.assign(view, { start: "restored", readyMs: null, missReason: null });
    const isLost = frame.reason === "resume_lost";
    if (isLost) note(view, "lost", "A new process was started, and it does not remember what was said before.");
  }
  const mcpErrors = Object.entries(frame.mcp_errors ?? {});
  for (const [name, text] of mcpErrors) note(view, "error", `MCP server ${name}: ${text}`);
  view.rev += 1;
}

function onDropped(view, frame) {
  lose(view, frame.seq, frame.seq, `${frame.reason}, ${frame.bytes} bytes`);
}

const ACTIONS = new Map([
  ["broker.welcome", onWelcome],
  ["broker.accepted", onAccepted],
  ["broker.waiting", (view, frame) => { view.waiting = frame; view.rev += 1; }],
  ["broker.go_away", (view, frame) => { view.goAway = frame; view.rev += 1; }],
  ["broker.error", onError],
  ["broker.message", onMessage],
  ["broker.turn_completed", onCompleted],
  ["broker.turn_failed", onFailed],
  ["broker.request_resolved", (view, frame) => dropPrompt(view, frame.request_id)],
  ["broker.state", onState],
  ["broker.dropped", onDropped],
  ["control_response", onControlResponse],
  ["control_request", takePrompt],
  ["stream_event", onStreamEvent],
  ["assistant", onAssistant],
  ["user", onUser],
  ["result", onResult],
  ["system", onSystem],
]);
