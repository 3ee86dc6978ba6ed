"""How full the model's context is: the answer to ``get_context_usage``.

The shape is the real program's; the numbers follow from the length of the conversation.
Caller: ``simulator.controls``.
"""

from typing import TYPE_CHECKING, Final

from simulator.messages import Message
from simulator.reply import BASE_INPUT_TOKENS, CHARACTERS_PER_TOKEN

if TYPE_CHECKING:
    from simulator.session import Session

WINDOW: Final = 1_000_000
BUFFER: Final = 33_000
ROWS: Final = 10
COLUMNS: Final = 20
_PARTS: Final = (
    ("system_prompt", "System prompt", "promptBorder", "used"),
    ("system_tools", "System tools", "inactive", "used"),
    ("skills", "Skills", "warning", "used"),
    ("messages", "Messages", "purple_FOR_SUBAGENTS_ONLY", "used"),
    ("autocompact_buffer", "Autocompact buffer", "inactive", "buffer"),
    ("free_space", "Free space", "promptBorder", "free"),
)


def answer(session: "Session") -> Message:
    """The payload."""
    said = session.transcript.characters // CHARACTERS_PER_TOKEN
    half = BASE_INPUT_TOKENS // 2
    total = BASE_INPUT_TOKENS + said
    counts = (half, BASE_INPUT_TOKENS - half, 0, said, BUFFER, max(0, WINDOW - BUFFER - total))
    categories = [
        {"id": key, "name": name, "tokens": count, "color": color, "kind": kind}
        for (key, name, color, kind), count in zip(_PARTS, counts, strict=True)
    ]
    squares = [
        {
            "color": row["color"], "isFilled": True, "categoryName": row["name"], "tokens": row["tokens"],
            "percentage": 100 * count // WINDOW, "squareFullness": 1,
        }
        for row, count in zip(categories, counts, strict=True)
    ]  # fmt: skip
    grid = [squares, *([squares[-1:] * COLUMNS] * (ROWS - 1))]
    skill = {"name": "init", "source": "built-in", "tokens": 0}
    return {
        "categories": categories,
        "totalTokens": total,
        "maxTokens": WINDOW,
        "rawMaxTokens": WINDOW,
        "autocompactSource": "model-default",
        "percentage": 100 * total // WINDOW,
        "gridRows": grid,
        "model": session.settings.model,
        "memoryFiles": [],
        "mcpTools": [],
        "mcpInstructions": [],
        "agents": [],
        "slashCommands": {"totalCommands": 0, "includedCommands": 0, "tokens": 0},
        "skills": {"totalSkills": 1, "includedSkills": 1, "tokens": 0, "skillFrontmatter": [skill]},
        "autoCompactThreshold": WINDOW - BUFFER,
        "isAutoCompactEnabled": True,
        "messageBreakdown": {
            "toolCallTokens": 0, "toolResultTokens": 0, "attachmentTokens": 0, "assistantMessageTokens": said,
            "userMessageTokens": 0, "redirectedContextTokens": 0, "unattributedTokens": 0, "toolCallsByType": [],
            "attachmentsByType": [{"name": "skill_listing", "tokens": 0}],
        },
        "apiUsage": {
            "input_tokens": total, "output_tokens": 1, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
        },
    }  # fmt: skip
