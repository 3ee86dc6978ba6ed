/**
 * The chat page: puts the view of a conversation, its connection and the document together.
 *
 * It owns the one conversation of this tab: what the user does becomes frames, what frames change is painted, at most
 * once per animation frame.  Entry point of index.html; nobody imports it.
 */

import { Announcer } from "./announcer.js";
import { Connection } from "./connection.js";
import { Dock } from "./dock.js";
import { answerFrame } from "./prompts.js";
import { Settings } from "./settings.js";
import { load, newId, save } from "./store.js";
import { Transcript, duration } from "./transcript.js";
import { apply, newView, note, refuse, say, turns, unaccepted, unsay } from "./view.js";

const $ = (id) => document.getElementById(id);
const CHAT_URL = new URL("v1/chat/ws", location.href).href.replace(/^http/, "ws");
const SLOP_PX = 60; // so near to the end counts as at the end

const transcript = new Transcript($("transcript"));
const announcer = new Announcer($("announcer"));
const dock = new Dock({ send: submit, stop, answer, act, draft: (text) => save("draft", text) });
const settings = new Settings(onSettings);
let view = newView();
let conversation = load("conversation", null); // {id, isKnown, model, start}; isKnown: the broker has welcomed it
let instance = load("instance", null) ?? rename();
let toldCredentials = conversation?.isKnown ? JSON.stringify(settings.credentials()) : null;
let connection = null;
let status = { state: "connecting", attempt: 0 };
let stopping = null; // the interrupt that is under way: {turn, frame}
let isAtEnd = true;
let isPaintDue = false;

// -- the conversation -----------------------------------------------------------------------------------------------

/** Take up the conversation of this tab, or begin one. */
function connect() {
  conversation ??= { id: newId(), isKnown: false, model: settings.values.model || null };
  save("conversation", conversation);
  view.model = conversation.model;
  connection?.close();
  connection = new Connection({ url: CHAT_URL, hello, token: () => settings.values.token, onFrame, onStatus });
  connection.open();
}

/** Leave this conversation and begin another; what was not accepted yet goes back to the composer. */
function startOver(farewell = true) {
  if (farewell) connection?.send({ type: "broker.end" });
  dock.addDraft(unaccepted(view).map((turn) => turn.text));
  view = newView();
  conversation = stopping = toldCredentials = null;
  isAtEnd = true;
  keepOutbox();
  connect();
  paintSoon();
  dock.focus();
}

function hello() {
  const { id, isKnown } = conversation;
  const session = { mode: isKnown ? "resume" : "open", id, last_seq: view.lastSeq };
  if (view.epoch !== null) session.epoch = view.epoch;
  const options = {};
  const credentials = settings.credentials();
  if (credentials && JSON.stringify(credentials) !== toldCredentials) options.credentials = credentials;
  if (!isKnown && conversation.model) options.model = conversation.model;
  if (!isKnown && settings.values.systemPrompt.trim()) options.system_prompt = settings.values.systemPrompt;
  return { type: "broker.hello", protocol: 1, client: { name: "chat-page", instance }, session, options };
}

function onFrame(frame) {
  const asked = view.controls.get(frame.response?.request_id ?? frame.ref);
  if (!apply(view, frame)) return;
  if (["broker.accepted", "broker.error", "broker.message"].includes(frame.type)) keepOutbox();
  if (frame.type === "broker.state" && "model" in frame) onModel(view.model);
  const isRefused = frame.type === "broker.error" || frame.response?.subtype === "error";
  if (isRefused && asked?.subtype === "set_model") onModel(conversation.model);
  if (frame.type === "broker.error" && frame.code === "credentials_required") openSettings("credential");
  paintSoon();
}

/** The model that the process really has; the picker follows. */
function onModel(model) {
  conversation.model = model;
  save("conversation", conversation);
  settings.set({ model: model ?? "" });
}

function onStatus(now) {
  status = now;
  if (now.state === "ready") onReady();
  if (now.state === "retrying" && now.isTooBig) {
    const error = { code: "too_large", message: "The broker refused it for its size." };
    for (const turn of unaccepted(view)) refuse(view, turn, error);
    keepOutbox();
  }
  if (now.state === "final") onFinal(now);
  paintSoon();
}

/** Bound: send again what may not have arrived; ids make that harmless. */
function onReady() {
  toldCredentials = JSON.stringify(settings.credentials());
  conversation.isKnown = true;
  conversation.start = view.start ??= conversation.start ?? "attached";
  save("conversation", conversation);
  for (const turn of unaccepted(view)) sendTurn(turn);
  for (const prompt of view.prompts.filter((one) => one.answer)) connection.send(answerFrame(prompt));
  if (stopping && view.current?.id === stopping.turn) connection.send(stopping.frame);
  if ((settings.values.model || null) !== conversation.model) changeModel(settings.values.model); // changed meanwhile
}

function onFinal({ code, error }) {
  const wasReloaded = view.epoch === null && conversation.isKnown;
  if (code === 4504 && wasReloaded) {
    startOver(false);
    note(view, "info", "The earlier conversation is no longer available. This is a new one.");
  } else if (code === 4501 || error === "unauthorized") openSettings("token");
  else if (error === "credentials_required") openSettings("credential");
}

// -- what the user does ---------------------------------------------------------------------------------------------

function submit(text) {
  const turn = say(view, newId(), text);
  isAtEnd = true;
  sendTurn(turn);
  keepOutbox();
  paintSoon();
}

function sendTurn(turn) {
  const frame = { type: "user_message", id: turn.id, content: turn.text };
  const limit = view.limits?.max_message_bytes;
  if (limit && new Blob([JSON.stringify(frame)]).size > limit) {
    refuse(view, turn, { code: "too_large", message: `The broker takes messages of at most ${limit} bytes.` });
  } else connection.send(frame);
}

/** What is not accepted survives a reload. */
function keepOutbox() {
  save("outbox", unaccepted(view).map(({ id, text }) => ({ id, text })));
}

function control(request) {
  const frame = { type: "control_request", request_id: newId(), request };
  view.controls.set(frame.request_id, request);
  connection.send(frame);
  return frame;
}

function stop() {
  const turn = view.current;
  if (!turn || stopping?.turn === turn.id) return;
  const request = { subtype: "interrupt" };
  if (turn.id !== null) request.turn = turn.id; // never the one after it
  stopping = { turn: turn.id, frame: control(request) };
  paintSoon();
}

function answer(prompt, decision) {
  prompt.answer = decision;
  connection.send(answerFrame(prompt));
  paintSoon();
}

function changeModel(model) {
  settings.set({ model });
  if (connection.isReady) control({ subtype: "set_model", model: model || null });
  else if (!conversation.isKnown) startOver(false);
  paintSoon();
}

function onSettings(changed) {
  const isFresh = turns(view).length === 0 && changed.size > 0;
  if (!conversation.isKnown || isFresh) startOver();
  else if (["token", "credential", "credentialKind"].some((name) => changed.has(name))) connection.reopen();
  if (!isFresh && changed.has("systemPrompt")) {
    note(view, "info", "The new system prompt takes effect with a new conversation.");
  }
  paintSoon();
}

function openSettings(focus = "") {
  const { cli, readyMs, start, missReason } = view;
  const facts = [["Conversation", conversation.id]];
  const process = [start, missReason, readyMs !== null && `ready in ${duration(readyMs)}`].filter(Boolean);
  if (start) facts.push(["Process", process.join(", ")]);
  if (cli) facts.push(["CLI", `${cli.version}${cli.simulated ? " (simulated)" : ""}`]);
  settings.open(facts, focus);
}

function rename() {
  const name = newId();
  save("instance", name);
  return name;
}

/** What the buttons in the transcript and the banner mean. */
function act(name, element) {
  const turn = turns(view).find((one) => one.id === element.closest(".turn")?.dataset.id);
  if (name === "cancel" && turn) connection.send({ type: "broker.cancel", id: turn.id });
  else if (name === "reuse" && turn) dock.addDraft([turn.text]);
  else if (name === "copy") copy(element);
  else if (name === "settings") openSettings();
  else if (name === "retry") connection.retry();
  else if (name === "new") startOver(false);
  else if (name === "reload") location.reload();
  else if (name === "take-over") {
    instance = rename();
    connection.reopen();
  }
  if (name === "reuse" && turn?.error?.applied === "no") unsay(view, turn);
  paintSoon();
}

async function copy(element) {
  const text = element.closest("figure").querySelector("code").textContent;
  await navigator.clipboard?.writeText(text);
  element.textContent = "Copied";
}

// -- painting -------------------------------------------------------------------------------------------------------

function paintSoon() {
  if (isPaintDue) return;
  isPaintDue = true;
  requestAnimationFrame(() => {
    isPaintDue = false;
    paint();
  });
}

function paint() {
  if (stopping && view.current?.id !== stopping.turn) stopping = null;
  transcript.paint(view, status.state);
  dock.paint(view, status, { isStopping: stopping !== null, model: settings.values.model });
  const newest = turns(view).findLast((turn) => turn.state !== "sending" && turn.state !== "queued");
  announcer.follow(newest, view.lastSeq <= view.truth.seq);
  if (isAtEnd) $("scroller").scrollTop = $("scroller").scrollHeight;
  else $("latest").hidden = false;
}

$("scroller").addEventListener("scroll", ({ currentTarget: box }) => {
  isAtEnd = box.scrollTop + box.clientHeight >= box.scrollHeight - SLOP_PX;
  $("latest").hidden = isAtEnd;
}, { passive: true });
$("latest").addEventListener("click", () => {
  isAtEnd = true;
  paintSoon();
});
$("new").addEventListener("click", () => startOver());
$("open-settings").addEventListener("click", () => openSettings());
$("model").addEventListener("change", ({ target }) => changeModel(target.value));
new ResizeObserver(paintSoon).observe($("scroller"));
addEventListener("online", () => connection.retry());
document.addEventListener("visibilitychange", () => document.hidden || connection.retry());

for (const { id, text } of load("outbox", [])) say(view, id, text);
dock.setDraft(load("draft", ""));
dock.offerModels(new URL("v1/models", location.href));
connect();
paint();
dock.focus();
