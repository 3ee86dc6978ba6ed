/**
 * What this tab remembers, in sessionStorage and nowhere else: it is gone when the tab is closed.
 *
 * Secrets are among it, so nothing here may ever go to localStorage.  Where storage is forbidden, a reload forgets it.
 * Callers: chat.js, settings.js.
 */

const PREFIX = "broker.";
const memory = new Map();

export function load(name, otherwise) {
  try {
    const text = sessionStorage.getItem(PREFIX + name);
    return text === null ? (memory.get(name) ?? otherwise) : JSON.parse(text);
  } catch {
    return memory.get(name) ?? otherwise;
  }
}

export function save(name, value) {
  memory.set(name, value);
  try {
    sessionStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // forbidden or full: memory has it
  }
}

/** A random UUID; `crypto.randomUUID` exists on secure origins only, and plain http to another machine is none. */
export function newId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}
