"""What a user message is made of, and what stands for it where the bytes themselves are too many.

Callers: ``protocol.frames`` (messages of clients, ``broker.message``), ``protocol.media`` (from one to the other).
"""

from typing import Annotated, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

ShortText = Annotated[str, Meta(max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$(?!\n)")]


class Base64Source(Struct, frozen=True, tag_field="type", tag="base64"):
    """Bytes of an image or a document, given inline."""

    media_type: ShortText
    data: str


class TextBlock(Struct, frozen=True, tag_field="type", tag="text"):
    """Words."""

    text: str


class ImageBlock(Struct, frozen=True, tag_field="type", tag="image"):
    """A picture."""

    source: Base64Source


class DocumentBlock(Struct, frozen=True, tag_field="type", tag="document"):
    """A PDF."""

    source: Base64Source
    title: str | UnsetType = UNSET


ContentBlock: TypeAlias = TextBlock | ImageBlock | DocumentBlock
Content: TypeAlias = str | Annotated[list[ContentBlock], Meta(min_length=1, max_length=256)]


class ImageNote(Struct, frozen=True, tag_field="type", tag="image"):
    """Stands for a picture in ``broker.message``; ``bytes`` are those behind the base64."""

    media_type: str
    bytes: int


class DocumentNote(Struct, frozen=True, tag_field="type", tag="document"):
    """Stands for a document in ``broker.message``; ``bytes`` are those behind the base64."""

    media_type: str
    bytes: int
