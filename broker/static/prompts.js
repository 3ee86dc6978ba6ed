/**
 * Permission prompts: what the CLI asks, until somebody has answered.
 *
 * Pure; works on the `prompts` of a view (view.js).  An answer is kept with its prompt until the broker says that the
 * request is settled, so that it can be given again on a new connection.  Callers: view.js, chat.js.
 */

function newPrompt({ request_id: id, request }) {
  return {
    id, tool: String(request.display_name || request.tool_name), input: request.input ?? {}, answer: null,
    about: String(request.description || request.decision_reason || ""), path: String(request.blocked_path || ""),
    toolUseId: request.tool_use_id ?? null,
  };
}

/** A `control_request` frame of the CLI. */
export function takePrompt(view, frame) {
  const id = frame.request_id;
  if (frame.request?.subtype !== "can_use_tool" || view.prompts.some((prompt) => prompt.id === id)) return;
  if (frame.seq <= view.truth.seq && !view.truth.pending.has(id)) return; // a replay of what is settled
  view.prompts.push(newPrompt(frame));
  view.rev += 1;
}

/** `welcome.pending` is the whole truth: what is not in it is settled. */
export function keepPending(view, pending) {
  const known = new Map(view.prompts.map((prompt) => [prompt.id, prompt]));
  view.prompts = pending.map((request) => known.get(request.request_id) ?? newPrompt(request));
}

/** Somebody answered, or it expired, or it was withdrawn. */
export function dropPrompt(view, id) {
  view.prompts = view.prompts.filter((prompt) => prompt.id !== id);
  view.rev += 1;
}

/** True if the error was about an answer: too late, then the prompt goes; refused, then it can be answered again. */
export function answerFailed(view, { code, ref }) {
  const prompt = view.prompts.find((one) => one.id === ref);
  if (!prompt) return false;
  if (code === "already_answered" || code === "unknown_request") {
    dropPrompt(view, ref);
    return true;
  }
  prompt.answer = null;
  view.rev += 1;
  return false;
}

/** The frame that answers a prompt. */
export function answerFrame(prompt) {
  const response =
    prompt.answer === "allow" ? { behavior: "allow" } : { behavior: "deny", message: "The user denied this." };
  return { type: "control_response", response: { subtype: "success", request_id: prompt.id, response } };
}
