/**
 * The blocks of a reply: words, thoughts, tool calls; grown by deltas, settled by the complete message behind them.
 *
 * Pure.  A block is found by its message and its index.  The CLI writes each block twice: as deltas while it grows,
 * then whole, as an `assistant` line.  The whole one wins, so a reply whose beginning was lost is complete in the end.
 * Caller: view.js.
 */

const TYPES = new Map([
  ["text", "text"],
  ["thinking", "thinking"],
  ["tool_use", "tool"],
  ["server_tool_use", "tool"],
  ["mcp_tool_use", "tool"],
]);
const TYPE_OF_DELTA = new Map([["text_delta", "text"], ["thinking_delta", "thinking"], ["input_json_delta", "tool"]]);

/** Text of a message's content: a string, or blocks, of which media are named. */
export function textOf(content) {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return "";
  return content.map((block) => block.text ?? `[${block.media_type ?? block.type}]`).join("\n");
}

export function openBlock(turn, message, index, content) {
  const type = TYPES.get(content?.type);
  if (!type) return null;
  const key = `${message}-${index}`;
  const known = turn.blocks.find((block) => block.key === key);
  const text = content.text ?? content.thinking ?? "";
  return known ?? add(turn, { key, message, type, text, ...toolFields(content) });
}

export function appendDelta(turn, message, index, delta) {
  const type = TYPE_OF_DELTA.get(delta?.type);
  if (!type) return;
  const key = `${message}-${index}`;
  const block = turn.blocks.find((one) => one.key === key) ?? add(turn, { key, message, type, text: "" });
  if (block.isFinal) return;
  block.text += delta.text ?? delta.thinking ?? delta.partial_json ?? "";
  block.rev += 1;
}

/** The complete content of a message, or of one of its blocks. */
export function settleMessage(turn, message) {
  for (const content of Array.isArray(message?.content) ? message.content : []) {
    const type = TYPES.get(content.type);
    if (type) settle(turn, message.id ?? "", type, content);
  }
}

function settle(turn, message, type, content) {
  const isIt = (one) =>
    one.type === type && !one.isFinal && ["", message].includes(one.message) && (!one.id || one.id === content.id);
  const key = `${message}+${turn.blocks.length}`;
  const block = turn.blocks.find(isIt) ?? add(turn, { key, message, type, text: "" });
  Object.assign(block, toolFields(content), { isFinal: true, rev: block.rev + 1 });
  if (type === "tool") block.input = content.input ?? {};
  else block.text = content.text ?? content.thinking ?? block.text;
}

/** Give tool calls their results; true if there was one. */
export function attachResult(turn, content) {
  let isFound = false;
  for (const result of Array.isArray(content) ? content : []) {
    const block = turn.blocks.find((one) => one.type === "tool" && one.id === result.tool_use_id);
    if (result.type !== "tool_result" || !block) continue;
    Object.assign(block, { result: textOf(result.content), isError: Boolean(result.is_error), rev: block.rev + 1 });
    isFound = true;
  }
  return isFound;
}

function toolFields(content) {
  return TYPES.get(content.type) === "tool" ? { id: content.id, name: String(content.name ?? "tool") } : {};
}

function add(turn, fields) {
  const block = { rev: 0, isFinal: false, id: null, name: "", input: null, result: null, isError: false, ...fields };
  turn.blocks.push(block);
  return block;
}
