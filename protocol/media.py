"""A user's content as other clients of the session see it: words as they are, media as type and size."""

from msgspec import Struct

from protocol.frames import Content, DocumentBlock, ImageBlock, MediaNote, TextBlock


def describe(content: Content) -> str | list[Struct]:
    """``content`` for ``broker.message``; sizes are those of the decoded bytes."""
    if isinstance(content, str):
        return content
    return [block if isinstance(block, TextBlock) else _note(block) for block in content]


def _note(block: ImageBlock | DocumentBlock) -> MediaNote:
    data = block.source.data
    size = len(data) * 3 // 4 - data[-2:].count("=")
    return MediaNote(str(block.__struct_config__.tag), block.source.media_type, max(0, size))
