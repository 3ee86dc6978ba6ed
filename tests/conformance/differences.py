"""What is known to differ, each with its reason: the only excuses that the comparison accepts.

Tests fail when an entry excuses nothing any more, and when the two real versions differ in a way that is not listed.
Callers: ``comparison``, ``test_conformance``.
"""

from typing import Final

OPTIONAL: Final[dict[str, str]] = {}
"""Kind of frame that 2.1.329 sends and the simulator need not: why."""

RACING: Final[dict[str, str]] = {
    "control_response/set_model/success": "2.1.329 looks the model up meanwhile, at the API if it is no alias",
    "control_request/can_use_tool": "the tool is started while the rest of the API's stream is still being read",
    "control_request/mcp_message": "likewise: a tool of the host's is called while the stream is still being read",
    "system/task_progress": "2.1.329 tells now before and now behind a subagent's call that the subagent goes on",
    "user/string": "a message is repeated once it has been written to the transcript, while the turn goes on",
    "system/permission_denied": "likewise: a rule is looked up while the rest of the stream is still being read",
}
"""Kind of frame beside the main line whose place among its neighbours depends on timing; it is counted: why."""

_LIFECYCLE: Final = "only 2.1.329 tells what becomes of a user message that has a uuid"
_CLOSED: Final = "2.1.329 closes a stream that broke off, so that every started block and message has its end"
_SET_MODEL: Final = (
    "2.1.197 takes any model name and repeats the change as a user frame; 2.1.329 asks the API and may refuse"
)
_INTERRUPT: Final = (
    "an interrupt in the burst of a later message ends that turn in 2.1.197; 2.1.329 answers it and forgets it"
)
_BACKGROUND: Final = "2.1.329 runs a subagent in the background unless it is told otherwise, and then tells its text"

FOLLOWS_NEWER: Final[dict[str, str]] = {
    "+ command_lifecycle/queued": _LIFECYCLE,
    "+ command_lifecycle/started": _LIFECYCLE,
    "+ command_lifecycle/completed": _LIFECYCLE,
    "+ command_lifecycle/cancelled": _LIFECYCLE,
    "- user/string": _SET_MODEL,
    "+ control_response/set_model/error": _SET_MODEL,
    "+ stream_event/content_block_stop": _CLOSED,
    "+ stream_event/message_stop": _CLOSED,
    "order in interrupt_mid_stream": _CLOSED,
    "assistant/text: aborted": "2.1.329 marks the part of a reply that an interrupt cut off",
    "result/success/is_error: terminal_reason": "2.1.197 says completed of a turn that failed at the API",
    "+ control_response/apply_flag_settings/error": "2.1.197 takes settings of a wrong type and ignores them",
    "result/error_max_budget_usd/is_error: terminal_reason": "2.1.197 has no word for a budget that is spent",
    "+ system/api_retry": "2.1.329 tries a refused OAuth token again, even with retries off, and says so",
    "+ system/background_tasks_changed": "2.1.329 follows a second initialize with the list of background tasks",
    "order in interrupt_with_message": _INTERRUPT,
    "order in urgent_message": _CLOSED,
    "+ subagent/assistant/text": _BACKGROUND,
    "- subagent/user/text": _BACKGROUND,
    "order in subagent_in_the_background": _BACKGROUND,
    "+ system/informational": "only 2.1.329 says that a hook's answer was none",
}
"""``+ kind`` only in 2.1.329, ``- kind`` only in 2.1.197, ``kind: path`` another value, ``order in SITUATION``: why.

The simulator follows 2.1.329 in all of them.
"""
