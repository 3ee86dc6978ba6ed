"""What other clients see of a message's content."""

import base64

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.content import Base64Source, Content, DocumentBlock, DocumentNote, ImageBlock, ImageNote, TextBlock
from protocol.media import describe
from tests.soak import size


def test_words_stay_and_media_become_notes() -> None:
    """Text is told as it is; of an image or a document only kind, type and size leave the session."""
    picture = Base64Source("image/png", base64.b64encode(b"picture").decode())
    paper = Base64Source("application/pdf", base64.b64encode(b"paper").decode())
    content: Content = [TextBlock("look"), ImageBlock(picture), DocumentBlock(paper, "title")]
    assert describe(content) == [
        TextBlock("look"), ImageNote("image/png", 7), DocumentNote("application/pdf", 5)
    ]  # fmt: skip
    assert describe("plain") == "plain"


@given(st.binary(max_size=100))
@settings(max_examples=size(20, 60), deadline=None)
def test_the_size_is_that_of_the_decoded_bytes(data: bytes) -> None:
    """The size is exact, with and without padding."""
    source = Base64Source("image/png", base64.b64encode(data).decode())
    assert describe([ImageBlock(source)]) == [ImageNote("image/png", len(data))]


def test_what_is_no_base64_has_some_size() -> None:
    """Nobody checks the data here, and no size is negative."""
    for data in ("", "=", "==", "\u2603"):
        notes = describe([ImageBlock(Base64Source("image/png", data))])
        assert all(isinstance(note, ImageNote) and note.bytes >= 0 for note in notes)
