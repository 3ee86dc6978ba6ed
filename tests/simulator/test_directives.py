"""The directive language: what it reads, what it refuses, and the text that follows from it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import directives
from simulator.directives import DirectiveError, Directives, parse, parse_words, plain, reply_pieces, tool_input


def test_a_text_without_directive_asks_for_nothing() -> None:
    """Ordinary text, even with single brackets, gives the defaults."""
    assert parse("hello [sim] [[simple]] [[") == Directives()


def test_every_key_of_the_model_is_read() -> None:
    """Numbers, flags, a quoted command and a status arrive as typed values."""
    found = parse('x [[sim tokens=200 ttft_ms=300 itl_ms=0.5 tool="Bash:echo hi" thinking error=529 cut_after=12]]')
    assert found == Directives(
        present=True,
        tokens=200,
        ttft_ms=300.0,
        itl_ms=0.5,
        tool=("Bash", "echo hi"),
        thinking=True,
        error=529,
        cut_after=12,
    )


def test_every_fault_can_stand_as_a_bare_word() -> None:
    """Faults have a value for the bare word, so that a person can write them from memory."""
    words = "die_after hang ignore_term ignore_eof grandchild bad_utf8 garbage_line huge_line split_writes stderr_flood"
    words += " garbage blank endless flood"
    found = parse(f"[[sim {words} never_ready burst detached unknown_frame]]")
    assert (found.die_after, found.hang, found.grandchild, found.huge_line) == (0, 0, 60.0, 12_000_000)
    assert all((found.ignore_term, found.ignore_eof, found.bad_utf8, found.garbage_line, found.burst))
    assert found.unknown_frame
    assert (found.garbage, found.blank, found.endless) == (8, 1_000_000, 256_000_000)
    assert found.flood == (256_000_000, 256, 0.0)
    assert parse("[[sim flood=1000:2:0.5]]").flood == (1000, 2, 0.5)
    assert (found.split_writes, found.stderr_flood, found.never_ready, found.detached) == (7, 1_000_000, True, True)


def test_quotes_protect_blanks_brackets_and_quotes() -> None:
    """A quoted part may hold blanks, the closing brackets and escaped quotes."""
    found = parse(r'[[sim tool="Bash:[[ -f x ]] && echo \"a b\" \\" text="two words"]]')
    assert found.tool == ("Bash", '[[ -f x ]] && echo "a b" \\')
    assert found.text == "two words"


def test_the_last_value_of_a_key_wins() -> None:
    """Several directives in one text are one."""
    assert parse("[[sim tokens=1 thinking]] and [[sim tokens=2]]") == Directives(present=True, tokens=2, thinking=True)


def test_absent_keys_come_from_the_base() -> None:
    """What the text does not say is taken from ``base``."""
    base = parse_words("itl_ms=5 ttft_ms=7")
    assert parse("[[sim ttft_ms=9]]", base) == Directives(present=True, itl_ms=5.0, ttft_ms=9.0)


@pytest.mark.parametrize(
    "words",
    [
        "nonsense", "tokens", "tokens=", "tokens=-1", "tokens=1.5", "tokens=1_0", "tokens=99999999999", "tokens=٣",
        "error=200", "error=600", "itl_ms=nan", "itl_ms=inf", "itl_ms=1e3", "thinking=maybe", "tool=", "tool=Ba sh",
        "tool=a/b:c", "tool=Bash:{",
        "exit_code=256", "huge_line=0", "=1", "tokens=1,2", '"',
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(words: str) -> None:
    """Unknown keys and bad values raise, and nothing is guessed."""
    with pytest.raises(DirectiveError):
        parse(f"[[sim {words}]]")


def test_a_refusal_names_the_key() -> None:
    """The error says which key is wrong and what it may be."""
    with pytest.raises(DirectiveError, match="error: '200': not a whole number from 400 to 599"):
        parse("[[sim error=200]]")


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text makes the parser fail in another way, and one without directive is left alone."""
    for candidate in (text, f"a [[sim {text}]] b", f"[[sim{text}"):
        try:
            found = parse(candidate)
        except DirectiveError:
            continue
        assert found.present or plain(candidate) == candidate.strip()


@given(st.text(st.characters(blacklist_categories=["Cs"])))
def test_any_command_can_be_quoted(command: str) -> None:
    """Quoting by two escapes carries every text."""
    quoted = command.replace("\\", "\\\\").replace('"', '\\"')
    assert parse(f'[[sim text="{quoted}"]]').text == command


def test_faults_at_the_start_use_the_same_words() -> None:
    """``SIMULATOR_FAULTS`` has no brackets and refuses them."""
    assert parse_words("slow_start=2 ignore_term") == Directives(slow_start=2.0, ignore_term=True)
    assert parse_words("  ") == Directives()
    for bad in ("tokens=1 ]] x", "slow_start"):
        with pytest.raises(DirectiveError):
            parse_words(bad)


def test_plain_text_is_what_the_user_said() -> None:
    """Directives are cut out."""
    assert plain("[[sim tokens=1]] hello [[sim]] you ") == "hello  you"


def test_counted_replies_name_the_user_word_and_count() -> None:
    """``tokens=N`` gives N words made of the user's first word and a counter."""
    text = "Hello you [[sim tokens=3]]"
    assert list(reply_pieces(text, parse(text), 0)) == ["hello0 ", "hello1 ", "hello2 "]
    assert list(reply_pieces("[[sim tokens=2]]", parse("[[sim tokens=2]]"), 0)) == ["w0 ", "w1 "]
    assert directives.token_text(7, "hello") == "hello7 "


def test_a_reply_without_directive_proves_memory() -> None:
    """It repeats the user and names the number of earlier messages, in words."""
    pieces = list(reply_pieces("remember  me", Directives(), 4))
    assert "".join(pieces) == "You said: remember  me\nEarlier messages of yours: 4."
    assert len(pieces) > 5


def test_a_given_text_is_the_reply() -> None:
    """``text`` is said word for word, whatever white space it holds."""
    found = parse('[[sim text=" a  b\nc"]]')
    assert "".join(reply_pieces("", found, 0)) == " a  b\nc"


def test_tool_inputs_have_the_real_shapes() -> None:
    """The argument becomes the tool's own input; JSON is taken as it is."""
    assert tool_input(("Bash", "ls"))["command"] == "ls"
    assert tool_input(("Read", "/x")) == {"file_path": "/x"}
    assert tool_input(("mcp__a__b", '{"n": 1}')) == {"n": 1}
    assert tool_input(("Other", "x")) == {"argument": "x"}
    assert tool_input(("Other", "")) == {}
