"""A user's content as other clients of the session see it: words as they are, media as type and size."""

from protocol.content import Content, DocumentBlock, DocumentNote, ImageBlock, ImageNote, TextBlock


def describe(content: Content) -> str | list[TextBlock | ImageNote | DocumentNote]:
    """``content`` for ``broker.message``; sizes are those of the decoded bytes."""
    if isinstance(content, str):
        return content
    return [block if isinstance(block, TextBlock) else _note(block) for block in content]


def _note(block: ImageBlock | DocumentBlock) -> ImageNote | DocumentNote:
    data = block.source.data
    size = len(data) * 3 // 4 - data[-2:].count("=")
    kind = ImageNote if isinstance(block, ImageBlock) else DocumentNote
    return kind(block.source.media_type, max(0, size))
