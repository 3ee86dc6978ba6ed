/**
 * Tells people who listen instead of looking what arrives: the reply in whole sentences, not token by token.
 *
 * Caller: chat.js, after each painting.  What is only repeated after a reconnect is not told again.
 */

import { make } from "./markup.js";
import { isSettled } from "./view.js";

const KEPT = 6;
const ENOUGH = 80; // characters, then up to the end of the sentence

export class Announcer {
  #region;
  #told = new Map(); // key of the turn -> characters told

  constructor(region) {
    this.#region = region;
  }

  say(text) {
    if (!text.trim()) return;
    this.#region.append(make("p", { textContent: text }));
    while (this.#region.children.length > KEPT) this.#region.firstElementChild.remove();
  }

  /** `isReplay`: these frames are not news. */
  follow(turn, isReplay) {
    if (!turn || this.#told.get(turn.key) === Infinity) return;
    const words = turn.blocks.filter((block) => block.type === "text").map((block) => block.text);
    const text = words.join("\n\n");
    const from = this.#told.get(turn.key) ?? 0;
    const isOver = isSettled(turn);
    const to = isOver ? text.length : sentenceEnd(text, from);
    if (to > from && !isReplay) this.say(text.slice(from, to));
    const end = turn.isStopped ? "Stopped." : turn.state === "done" ? "End of the reply." : "The turn failed.";
    if (isOver && !isReplay) this.say(end);
    this.#told.set(turn.key, isOver ? Infinity : isReplay ? text.length : to);
  }
}

function sentenceEnd(text, from) {
  if (text.length - from < ENOUGH) return from;
  const rest = text.slice(from);
  const ends = [...rest.matchAll(/[.!?:;]\s|\n/g)];
  return ends.length ? from + ends.at(-1).index + 1 : from;
}
