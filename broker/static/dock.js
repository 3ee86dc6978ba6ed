/**
 * Everything around the transcript: connection state, banner, permission prompt, composer, model picker, empty page.
 *
 * It paints what it is told and reports what the user does through the callbacks it was made with.  Owner: chat.js.
 */

import { make } from "./markup.js";
import { inputText } from "./transcript.js";
import { title } from "./words.js";

const $ = (id) => document.getElementById(id);
const CLOCK_MS = 250;
const CALM_MS = 700; // a connection that is back by then was never worth a word
const FINGERS_MS = 300; // a prompt cannot be answered by a click that was meant for what stood there before
const WORDS = new Map([
  ["connecting", "Connecting"],
  ["ready", "Connected"],
  ["waiting", "Waiting"],
  ["retrying", "Reconnecting"],
  ["final", "Not connected"],
]);
const WELCOMES = new Map([
  ["warm", "A warm process is yours"],
  ["cold", "A process was started for you"],
  ["restored", "Your process is back"],
]);
/** What can be done about a final close, by code. */
const REMEDIES = new Map([
  [1000, [["Continue it", "retry"], ["New conversation", "new"]]],
  [4504, [["New conversation", "new"]]],
  [4507, [["New conversation", "new"]]],
  [4509, [["Use it here", "take-over"]]],
  [4510, [["Reload", "reload"]]],
]);
const OTHER_REMEDIES = [["Settings", "settings"], ["Try again", "retry"]];

export class Dock {
  #on;
  #message = $("message");
  #troubleSince = performance.now();
  #shownPrompt = null;
  #shownAt = -Infinity;
  #arming = 0;
  #prompt = null;
  #banner = "";
  #canSend = false;
  #clock = 0;

  constructor(callbacks) {
    this.#on = callbacks;
    this.#message.addEventListener("input", () => this.#edited());
    this.#message.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#submit();
    });
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    $("stop").addEventListener("click", () => {
      this.focus();
      callbacks.stop();
    });
    $("allow").addEventListener("click", () => this.#answer("allow"));
    $("deny").addEventListener("click", () => this.#answer("deny"));
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !event.isComposing && !$("settings").open) callbacks.stop();
    });
    document.addEventListener("click", ({ target }) => {
      const button = target.closest("[data-action]");
      if (button) callbacks.act(button.dataset.action, button);
      const example = target.closest("[data-text]");
      if (example) this.setDraft(example.dataset.text);
      if (example) this.focus();
    });
  }

  // -- the composer --

  focus() {
    this.#message.focus({ preventScroll: true });
  }

  setDraft(text) {
    this.#message.value = text;
    this.#edited();
  }

  /** Texts come back to the composer, before what is there. */
  addDraft(texts) {
    const parts = [...texts, this.#message.value].filter((text) => text?.trim());
    this.setDraft(parts.join("\n\n"));
    if (texts.length) this.focus();
  }

  #edited() {
    const box = this.#message;
    box.style.height = "auto";
    box.style.height = `${box.scrollHeight}px`;
    $("send").disabled = !this.#canSend || !box.value.trim();
    this.#on.draft(box.value);
  }

  #submit() {
    const text = this.#message.value;
    if (!this.#canSend || !text.trim()) return;
    this.setDraft("");
    this.#on.send(text.trim());
    this.focus();
  }

  // -- painting --

  paint(view, status, { isStopping, model }) {
    const state = status.state !== "ready" && view.waiting ? "waiting" : status.state;
    $("status").dataset.state = state;
    setText($("status-text"), WORDS.get(state));
    this.#canSend = status.state !== "final";
    $("send").disabled = !this.#canSend || !this.#message.value.trim();
    $("stop").hidden = !view.current;
    setText($("stop-text"), isStopping ? "Stopping" : "Stop");
    $("stop").disabled = isStopping;
    this.#paintBanner(view, status, state);
    this.#paintPrompt(view.prompts, status.state === "ready");
    this.#paintEmpty(view, status);
    if (![...$("model").options].some((option) => option.value === model)) $("model").append(new Option(model, model));
    $("model").value = model;
  }

  #paintBanner(view, status, state) {
    if (state === "ready") this.#troubleSince = Infinity;
    else if (this.#troubleSince === Infinity) this.#troubleSince = performance.now();
    const isCalm = state !== "final" && performance.now() - this.#troubleSince < CALM_MS;
    clearTimeout(this.#clock);
    const isPassing = state !== "ready" && state !== "final";
    if (isPassing) this.#clock = setTimeout(() => this.#paintBanner(view, status, state), CLOCK_MS);
    $("banner").hidden = state === "ready" || isCalm;
    if ($("banner").hidden) return;
    const { text, clock, actions } = bannerOf(view, status, state);
    setText($("banner-text"), text);
    setText($("banner-clock"), clock ?? "");
    $("banner").dataset.state = state;
    if (this.#banner === JSON.stringify(actions)) return;
    this.#banner = JSON.stringify(actions);
    const button = ([words, action]) => make("button", { type: "button", textContent: words, data: { action } });
    $("banner-actions").replaceChildren(...actions.map(button));
  }

  #paintPrompt(prompts, isOnline) {
    const prompt = prompts.find((one) => one.answer === null) ?? null;
    this.#prompt = prompt;
    setText($("prompt-count"), prompts.length > 1 ? `${prompts.length} requests wait` : "");
    const isNew = prompt !== null && prompt.id !== this.#shownPrompt;
    if (isNew) this.#shownAt = performance.now();
    this.#enableAnswers(isOnline);
    if ((prompt?.id ?? null) === this.#shownPrompt) return;
    const hadFocus = $("prompt").contains(document.activeElement);
    this.#shownPrompt = prompt?.id ?? null;
    $("prompt").hidden = prompt === null;
    if (prompt) {
      $("prompt-title").replaceChildren("Allow ", make("strong", { textContent: prompt.tool }), "?");
      const about = [prompt.about, prompt.path && `It concerns ${prompt.path}`];
      setText($("prompt-about"), about.filter(Boolean).join(". "));
      setText($("prompt-input"), inputText(prompt.input));
    }
    // Never under the fingers of somebody who is typing: an Enter must not become an answer.
    const isTyping = document.activeElement === this.#message && this.#message.value !== "";
    if (prompt && !isTyping && !$("settings").open) $("prompt").focus();
    else if (!prompt && hadFocus) this.focus();
  }

  #enableAnswers(isOnline) {
    const waitMs = this.#shownAt + FINGERS_MS - performance.now();
    for (const id of ["allow", "deny"]) $(id).disabled = !isOnline || waitMs > 0;
    clearTimeout(this.#arming);
    if (isOnline && waitMs > 0) this.#arming = setTimeout(() => this.#enableAnswers(isOnline), waitMs);
  }

  #answer(decision) {
    if (this.#prompt) this.#on.answer(this.#prompt, decision);
  }

  #paintEmpty(view, status) {
    const isEmpty = view.items.length === 0;
    $("empty").hidden = !isEmpty;
    if (!isEmpty) return;
    $("examples").hidden = !view.cli?.simulated;
    const found = WELCOMES.get(view.start) ?? "Your process is ready";
    const time = view.readyMs === null ? "" : `, bound in ${view.readyMs.toFixed(1)} ms`;
    setText($("empty-text"), status.state === "ready" ? `${found}${time}.` : "\u00a0");
  }

  /** Fill the model picker.  Without the list it keeps offering the default. */
  async offerModels(url) {
    const answer = await fetch(url).catch(() => null);
    if (!answer?.ok) return;
    const chosen = $("model").value;
    const names = (await answer.json()).data.map((model) => model.id);
    for (const option of [...$("model").options].slice(1)) option.remove();
    $("model").append(...[...new Set([...names, chosen].filter(Boolean))].map((name) => new Option(name, name)));
    $("model").value = chosen;
  }
}

function bannerOf(view, status, state) {
  if (state === "waiting") {
    const { position, reason } = view.waiting;
    return { text: `Waiting for a process, place ${position} (${reason.replaceAll("_", " ")}).`, actions: [] };
  }
  if (state === "final") {
    const what = status.error ? `${title(status.error)}. ` : "";
    return { text: `${what}${status.reason}`, actions: REMEDIES.get(status.code) ?? OTHER_REMEDIES };
  }
  if (state === "connecting") return { text: "Connecting to the broker.", actions: [] };
  const seconds = Math.ceil(Math.max(0, status.at - performance.now()) / 1_000);
  return { text: status.reason, clock: `Next attempt in ${seconds} s.`, actions: [["Try now", "retry"]] };
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
