/**
 * The settings panel: access token, credential, system prompt; and what is known of the conversation's process.
 *
 * Values are kept in this tab only (store.js).  Owner: chat.js, which is told what changed when they are saved.
 */

import { make } from "./markup.js";
import { load, save } from "./store.js";

const EMPTY = { token: "", credentialKind: "oauth_token", credential: "", systemPrompt: "", model: "" };
const VISIBLE_ASCII = /^[\x21-\x7e]*$/;

export class Settings {
  #dialog = document.getElementById("settings");
  #form = document.getElementById("settings-form");

  constructor(onSaved) {
    this.values = { ...EMPTY, ...load("settings", {}) };
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.#areValid()) return;
      const before = this.values;
      const fields = Object.fromEntries(new FormData(this.#form));
      this.set({ ...fields, token: fields.token.trim(), credential: fields.credential.trim() });
      this.#dialog.close();
      onSaved(new Set(Object.keys(EMPTY).filter((name) => before[name] !== this.values[name])));
    });
    document.getElementById("settings-cancel").addEventListener("click", () => this.#dialog.close());
    this.#dialog.addEventListener("input", ({ target }) => target.setCustomValidity?.(""));
  }

  set(values) {
    this.values = { ...this.values, ...values };
    save("settings", this.values);
  }

  /** `focus` names the field to begin with; `facts` are pairs about the conversation. */
  open(facts, focus = "") {
    if (this.#dialog.open) return;
    for (const [name, value] of Object.entries(this.values)) {
      if (this.#form.elements[name]) this.#form.elements[name].value = value;
    }
    const row = ([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })];
    document.getElementById("facts").replaceChildren(...facts.flatMap(row));
    this.#dialog.showModal();
    if (focus) this.#form.elements[focus]?.focus();
  }

  /** Options of hello that concern the credential; none for a broker that needs none. */
  credentials() {
    const { credential, credentialKind } = this.values;
    return credential ? { [credentialKind]: credential } : null;
  }

  #areValid() {
    for (const name of ["token", "credential"]) {
      const field = this.#form.elements[name];
      const isFine = VISIBLE_ASCII.test(field.value.trim());
      field.setCustomValidity(isFine ? "" : "Letters, digits and punctuation only, without spaces.");
    }
    return this.#form.reportValidity();
  }
}
