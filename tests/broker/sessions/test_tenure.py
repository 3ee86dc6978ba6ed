"""What a session's task does with a process that works on by itself, and with one whose session has ended."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.sessions.entry import Entry
from broker.sessions.tenure import Tenure
from protocol.frames import UserMessage
from tests.broker.visitors import Tab, attached, ends, hello, is_over, talked
from tests.kit.stage import SETTLES_WITHIN_S, Stage, stage
from tests.waiting import eventually

BUSY = b'{"type":"system","subtype":"session_state_changed","state":"running"}'
IDLE = b'{"type":"system","subtype":"session_state_changed","state":"idle"}'
RESULT = b'{"type":"result","subtype":"success"}'
LONG = "[[sim tokens=3000 itl_ms=10]] word"


def asked_to_rest(entry: Entry) -> bool:
    """Somebody else waits for its process: as ``broker.sessions.upkeep`` does it; whether it is one that could rest."""
    entry.tenure.wake()
    if entry.tenure.is_idle:
        entry.tenure.rest.is_asked = True
    return entry.tenure.is_idle


async def test_work_that_the_cli_began_by_itself_is_not_cut_off(tmp_path: Path) -> None:
    """When a background task has ended it runs a turn that nobody asked for: it is asked for its process afterwards."""
    async with stage(tmp_path, is_small=False) as found:
        entry, _ = await talked(found)
        entry.session.on_lines([BUSY])
        assert not asked_to_rest(entry)
        entry.session.on_lines([RESULT, IDLE])
        assert asked_to_rest(entry)
        await eventually(lambda: is_over(entry), SETTLES_WITHIN_S)
        found.registry.delete(entry)
        await found.settled()


async def test_work_of_its_own_has_a_bound(tmp_path: Path) -> None:
    """A CLI that never tells the end of it is believed for as long as a turn may take, and then rests."""
    async with stage(tmp_path, is_small=False, turn={"timeout_s": 1.0}, session={"detach_timeout_s": 0}) as found:
        entry, tab = await talked(found)
        entry.session.on_lines([BUSY])
        entry.tenure.detach(tab)
        assert not entry.tenure.is_idle
        await eventually(lambda: is_over(entry), SETTLES_WITHIN_S)
        assert not entry.session.occupation.is_own
        found.registry.delete(entry)
        await found.settled()


@pytest.mark.parametrize("end", [Tenure.end, Tenure.delete], ids=["end", "delete"])
async def test_a_result_that_comes_after_the_end_is_no_second_terminal(
    end: Callable[[Tenure], None], tmp_path: Path
) -> None:
    """The turn was cancelled with the session; its process may still say its last words."""
    async with stage(tmp_path, is_small=False) as found:
        tab = Tab()
        entry = await attached(found, hello(), tab)
        entry.session.submit(UserMessage(LONG, id="m-1"), tab, 0.0)
        await eventually(lambda: entry.session.log.head > 10, SETTLES_WITHIN_S)
        end(entry.tenure)
        entry.session.on_lines([RESULT])
        assert ends(entry) == Counter(["m-1"])
        await _over(found, entry)
        assert ends(entry) == Counter(["m-1"])


@pytest.mark.parametrize("is_live", [True, False])
async def test_a_session_that_was_ended_goes_on_with_the_next_message(is_live: bool, tmp_path: Path) -> None:
    """Whether a process was there to end, or none: who comes back is answered."""
    async with stage(tmp_path, is_small=False) as found:
        entry, tab = await talked(found)
        if not is_live:
            entry.tenure.end()
            await eventually(lambda: is_over(entry), SETTLES_WITHIN_S)
        entry.tenure.end()
        entry.session.submit(UserMessage("again", id="m-2"), tab, 0.0)
        await eventually(lambda: ends(entry)["m-2"], SETTLES_WITHIN_S)
        assert entry.session.turns.completed == 2
        await _over(found, entry)


async def _over(found: Stage, entry: Entry) -> None:
    found.registry.delete(entry)
    await found.settled()
