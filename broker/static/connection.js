/**
 * One conversation's way to the broker, across as many sockets as it takes.
 *
 * It knows hello, close codes and when to come back; it does not know what frames mean (view.js does).  Everything that
 * the owner is told comes through two callbacks: `onFrame(frame)` and `onStatus(status)`, where status is
 * `{state: "connecting" | "ready" | "retrying" | "final", ...}`.  Owner: chat.js, one at a time.
 */

const BACKOFF_MS = [500, 20_000];
const STABLE_MS = 5_000; // a connection that held so long starts the back-off anew
const WELCOMED_ATTEMPT = 3; // one that was welcomed and lost at once goes on from here at most
const SILENCE_MS = 30_000; // without a frame for so long: ask
const PONG_MS = 10_000; // no answer: the connection is dead, whatever the browser thinks
const OPEN_MS = 20_000; // from the attempt to the upgrade
const REFUSAL_MS = 3_000;
const ENDED = 1000;
const TOO_BIG = 1009;
const MAX_HELLO_BYTES = 60_000; // brokers take 64 KiB before they know who it is

/** Why a connection was closed, for people. */
const REASONS = new Map([
  [1000, "This conversation was ended."],
  [1009, "The broker refused a message for its size."],
  [1012, "The broker is restarting."],
  [4001, "This page read too slowly."],
  [4003, "Too many requests."],
  [4004, "No process is available."],
  [4005, "Waited too long for a process."],
  [4006, "Closed after a long silence."],
  [4007, "The broker waited in vain for this page."],
  [4011, "The connection reached its greatest age."],
  [4013, "The broker had an internal error."],
  [4500, "The broker did not understand this page."],
  [4501, "The broker wants a valid access token."],
  [4502, "The broker did not understand this page."],
  [4503, "The broker does not allow what was asked for."],
  [4504, "The broker does not know this conversation any more."],
  [4505, "This conversation exists already."],
  [4506, "A process could not be set up as asked."],
  [4507, "This conversation was deleted."],
  [4508, "The access token was revoked."],
  [4509, "This conversation was opened in another tab."],
  [4510, "This page and the broker speak different versions of the protocol. Reload the page."],
]);

/** Codes from 4500 to 4999 are final, 1000 is an end; after everything else a client may come back. */
export const isFinal = (code) => code === ENDED || (code >= 4500 && code <= 4999);

/** Full jitter: anything between nothing and the doubled bound. */
export function backoffMs(attempt, random = Math.random) {
  return random() * Math.min(BACKOFF_MS[1], BACKOFF_MS[0] * 2 ** Math.min(attempt, 16));
}

export function subprotocols(token) {
  if (!token) return ["broker.v1"];
  const base64 = btoa(String.fromCharCode(...new TextEncoder().encode(token)));
  return ["broker.v1", `broker.bearer.${base64.replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "")}`];
}

export class Connection {
  #socket = null;
  #attempt = 0;
  #timers = { retry: 0, stable: 0, silence: 0 };
  #error = null; // the last broker.error: what a close right behind it was about
  #goAwayMs = 0;
  #isOver = false;

  /** `hello()` gives the hello frame and `token()` the access token, both as they are at that moment. */
  constructor({ url, hello, token, onFrame, onStatus }) {
    Object.assign(this, { url, hello, token, onFrame, onStatus, isReady: false });
  }

  open() {
    clearTimeout(this.#timers.retry);
    if (this.#socket || this.#isOver) return;
    this.#error = null;
    this.#goAwayMs = 0;
    this.onStatus({ state: "connecting", attempt: this.#attempt });
    const hello = JSON.stringify(this.hello());
    if (new Blob([hello]).size > MAX_HELLO_BYTES) return this.#end("The system prompt is too long.", "too_large");
    const socket = new WebSocket(this.url, subprotocols(this.token()));
    let wasOpen = false;
    this.#socket = socket;
    this.#timers.silence = setTimeout(() => this.#closed(1006, true), OPEN_MS);
    socket.onopen = () => {
      wasOpen = true;
      clearTimeout(this.#timers.silence);
      socket.send(hello);
    };
    socket.onmessage = (event) => this.#socket === socket && this.#receive(event.data);
    socket.onclose = (event) => this.#socket === socket && this.#closed(event.code, wasOpen);
  }

  /** True if the frame was handed to the socket. */
  send(frame) {
    if (!this.isReady) return false;
    this.#socket.send(JSON.stringify(frame));
    return true;
  }

  /** The next attempt, now. */
  retry() {
    if (!this.#socket) this.open();
  }

  /** A new socket, with a new hello. */
  reopen() {
    this.#drop(ENDED);
    this.#attempt = 0;
    this.open();
  }

  /** No more of this conversation: nothing is reported from now on. */
  close() {
    this.#isOver = true;
    this.#drop(ENDED);
  }

  // -- one socket --

  #receive(text) {
    const frame = JSON.parse(text);
    if (frame.type === "broker.welcome") {
      this.isReady = true;
      this.#error = null;
      this.#attempt = Math.min(this.#attempt, WELCOMED_ATTEMPT);
      this.#timers.stable = setTimeout(() => (this.#attempt = 0), STABLE_MS);
    } else if (frame.type === "broker.error") this.#error = frame;
    else if (frame.type === "broker.go_away") this.#goAwayMs = frame.reconnect_after_ms;
    if (this.isReady) this.#listen();
    this.onFrame(frame);
    if (frame.type === "broker.welcome") this.onStatus({ state: "ready" });
  }

  /** Silence is broken by a ping of ours; a peer that is gone without a word is found out that way. */
  #listen() {
    clearTimeout(this.#timers.silence);
    this.#timers.silence = setTimeout(() => {
      this.send({ type: "broker.ping", t: 0 });
      this.#timers.silence = setTimeout(() => this.#closed(1006, true), PONG_MS);
    }, SILENCE_MS);
  }

  #drop(code) {
    const socket = this.#socket;
    this.#socket = null;
    this.isReady = false;
    for (const timer of Object.values(this.#timers)) clearTimeout(timer);
    socket?.close(code);
  }

  async #closed(code, wasOpen) {
    const error = this.#error;
    this.#drop(ENDED);
    const reason = error?.message || REASONS.get(code) || "The connection was lost.";
    if (isFinal(code)) return this.#end(reason, error?.code ?? "", code);
    const waitMs = Math.max(backoffMs(this.#attempt), error?.retry_after_ms ?? 0, this.#goAwayMs);
    this.#attempt += 1;
    this.#wait(waitMs, reason, code);
    if (wasOpen) return undefined;
    const refusal = await this.#refusal();
    if (this.#socket || this.#isOver) return undefined;
    if (refusal?.isFinal) {
      clearTimeout(this.#timers.retry);
      return this.#end(refusal.reason, refusal.code, 0);
    }
    return refusal ? this.#wait(Math.max(waitMs, refusal.waitMs), refusal.reason, code) : undefined;
  }

  #wait(waitMs, reason, code) {
    clearTimeout(this.#timers.retry);
    this.#timers.retry = setTimeout(() => this.open(), waitMs);
    const at = performance.now() + waitMs;
    this.onStatus({ state: "retrying", reason, at, attempt: this.#attempt, isTooBig: code === TOO_BIG });
  }

  #end(reason, error, code = 0) {
    this.onStatus({ state: "final", reason, error, code });
  }

  /** Browsers do not say why an upgrade was refused.  The same request without the upgrade does. */
  async #refusal() {
    const token = this.token();
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const signal = AbortSignal.timeout(REFUSAL_MS);
    try {
      const answer = await fetch(this.url.replace(/^ws/, "http"), { headers, signal, cache: "no-store" });
      if (answer.status === 401) {
        return { isFinal: true, code: "unauthorized", reason: "The broker does not accept this access token." };
      }
      if (answer.status === 426) return null;
      const body = await answer.json();
      const waitMs = 1_000 * Number(answer.headers.get("Retry-After") ?? 0);
      return { reason: `The broker says: ${body.error.message}.`, waitMs };
    } catch {
      return null; // unreachable, or no broker: what was reported already is all that is known
    }
  }
}
