/** The protocol's codes in words.  Pure.  An unknown code is shown as it is.  Callers: transcript.js, chat.js. */

const TITLES = new Map([
  ["upstream_overloaded", "The model is overloaded"],
  ["upstream_rate_limited", "The rate limit was reached"],
  ["upstream_auth", "The credential was not accepted"],
  ["upstream_error", "The model's API failed"],
  ["max_turns", "The limit of steps was reached"],
  ["max_budget", "The budget was used up"],
  ["cli_exited", "The process ended"],
  ["cli_killed_memory", "The process took too much memory"],
  ["cli_protocol", "The process said something unexpected"],
  ["first_token_timeout", "No answer came in time"],
  ["idle_timeout", "The reply fell silent"],
  ["turn_timeout", "The turn took too long"],
  ["interrupted", "Stopped by force"],
  ["cancelled", "Cancelled"],
  ["credential_mismatch", "The process used another credential"],
  ["credentials_required", "A credential is needed"],
  ["bind_failed", "A setting was refused"],
  ["draining", "The broker is stopping"],
  ["internal", "The broker had an internal error"],
  ["option_not_allowed", "Not allowed"],
  ["queue_full", "Too many messages wait already"],
  ["rate_limited", "Too many requests"],
  ["quota_exceeded", "You have as much open as you may"],
  ["id_conflict", "This message was sent before, with other words"],
  ["too_large", "The message is too large"],
  ["bad_frame", "The broker did not understand this"],
]);

const DESCRIPTIONS = new Map([
  ["expired", "it is no longer kept."],
  ["too_far_behind", "this page was away for longer than the broker keeps."],
  ["future_seq", "this page and the broker disagree on what was sent."],
  ["epoch_changed", "the broker was restarted."],
  ["gap", "it never arrived."],
]);

export const title = (code) => TITLES.get(code) ?? String(code).replaceAll("_", " ");
export const describe = (reason) => DESCRIPTIONS.get(reason) ?? `${reason}.`;
