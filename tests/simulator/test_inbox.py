"""The queue of user messages: order by priority, what shares a turn, what joins one."""

from hypothesis import given
from hypothesis import strategies as st

from simulator.inbox import PRIORITIES, Inbox

LINES = st.lists(
    st.tuples(st.sampled_from(["now", "next", "later", None, 5]), st.sampled_from(["hello", "/cost"])), max_size=12
)


def filled(lines: list[tuple[object, str]]) -> Inbox:
    inbox = Inbox()
    for number, (priority, text) in enumerate(lines):
        inbox.put({"priority": priority}, text, str(number))
    return inbox


@given(LINES)
def test_every_message_is_taken_once_in_the_order_of_its_priority(lines: list[tuple[object, str]]) -> None:
    """Within one priority the order is that of arrival; a command never shares its turn."""
    inbox, taken = filled(lines), []
    while inbox:
        batch = inbox.take(alone=False)
        assert len({message.priority for message in batch}) == 1
        assert len(batch) == 1 or not any(message.is_command for message in batch)
        taken += batch
    assert [int(message.uuid) for message in taken] == sorted(
        range(len(lines)), key=lambda number: (PRIORITIES.get(str(lines[number][0]), 1), number)
    )


@given(LINES)
def test_what_is_for_later_and_commands_never_join_a_turn(lines: list[tuple[object, str]]) -> None:
    """Nothing that stands behind a command joins before it."""
    inbox = filled(lines)
    joining = inbox.take_joining()
    assert not any(message.is_command or message.priority == PRIORITIES["later"] for message in joining)
    if inbox:
        following = inbox.take(alone=True)[0]
        assert following.is_command or following.priority == PRIORITIES["later"]


def test_messages_are_cancelled_one_by_one_or_all() -> None:
    """Only what waits can be cancelled; messages without a uuid are forgotten in silence."""
    inbox = filled([(None, "a"), (None, "b")])
    inbox.put({}, "c", "")
    assert (inbox.cancel("0"), inbox.cancel("0"), inbox.cancel(None)) == (True, False, False)
    assert (inbox.clear(), len(inbox)) == (["1"], 0)
