"""The kinds of frames that the CLI is known to send.  Others come from a newer CLI: they are passed on, and counted.

A kind is listed when it is documented, or was seen; the contracts of the real CLI hold no kind that is missing here.
Caller: ``broker.sessions.interpreter``, once for each line that is no ``stream_event``.
"""

from typing import Final

FORWARDED: Final = frozenset(
    ("active_goal", "assistant", "auth_status", "autocompact_state", "command_lifecycle", "conversation_reset",
     "prompt_suggestion", "rate_limit_event", "stream_event", "tool_progress", "tool_use_summary", "transcript_mirror",
     "user")
)  # fmt: skip
"""Types that mean nothing to a host: it passes them on."""
FRAME_TYPES: Final = FORWARDED | {
    "control_cancel_request", "control_request", "control_response", "keep_alive", "result", "system",
}  # fmt: skip
SYSTEM_SUBTYPES: Final = frozenset(
    ("api_retry", "background_tasks_changed", "commands_changed", "compact_boundary", "control_request_progress",
     "elicitation_complete", "files_persisted", "hook_progress", "hook_response", "hook_started", "informational",
     "init", "local_command_output", "memory_recall", "mirror_error", "model_fallback", "model_refusal_fallback",
     "model_refusal_no_fallback", "notification", "permission_denied", "plugin_install", "post_turn_summary",
     "session_metadata", "session_state_changed", "session_writes_lost", "status", "task_notification", "task_progress",
     "task_started", "task_summary", "task_updated", "thinking_tokens", "worker_shutting_down")
)  # fmt: skip
"""The ``subtype`` of ``system`` frames."""
