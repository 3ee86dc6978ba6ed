"""What turns and conversations cost, whatever the CLI's own counter does between them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET, Raw, json

from broker.turns.usage import Usage
from protocol.cli import Result
from protocol.frames import SessionTotals
from tests.soak import size

MODEL = "claude-sonnet-5-5"


def result(total: float | None, since_last: float | None = None, **tokens: int) -> Result:
    """A ``result`` as the CLI of a newer (``since_last``) or an older version says it."""
    told = UNSET if since_last is None else Raw(json.encode({MODEL: {"costUSD": since_last, "inputTokens": 3}}))
    return Result(total_cost_usd=total, usage=Raw(json.encode(tokens)), model_usage_since_last_result=told)


def costs(*totals: float | None) -> list[float | None]:
    usage = Usage()
    return [usage.add(result(total)) for total in totals]


def test_the_cost_is_the_difference() -> None:
    """The total grows from turn to turn; one that falls has begun anew (``/clear``); an untold one costs None."""
    assert costs(0.1, 0.3, 0.3, None, 0.35, 0.02, 0.05) == [0.1, 0.2, 0.0, None, 0.05, 0.02, 0.03]


def test_what_a_turn_without_a_result_spent_is_in_the_next_total() -> None:
    """The process lived on: nothing is lost, and nothing is told twice."""
    usage = Usage()
    assert usage.add(result(0.1)) == 0.1
    assert usage.add(result(0.4)) == 0.3
    assert usage.total == SessionTotals(turns=2, cost_usd=0.4)


def test_another_process_may_begin_at_zero() -> None:
    """After a resume the first total of an older CLI is the turn's own cost, also when it is above the last one."""
    usage = Usage()
    usage.add(result(0.1))
    usage.process_changed()
    assert usage.add(result(0.25)) == 0.25
    assert usage.add(result(0.3)) == 0.05
    assert usage.total.cost_usd == 0.4


def test_another_process_may_go_on_where_the_last_one_ended() -> None:
    """A newer CLI says what the turn has cost, so its total need not be understood."""
    usage = Usage()
    usage.add(result(0.054, 0.054))
    usage.process_changed()
    assert usage.add(result(0.0812, 0.0272)) == 0.0272
    assert usage.add(result(0.1082)) == 0.027, "and where it does not say it, the total is at hand"
    assert usage.total.cost_usd == 0.1082


def test_tokens_are_summed_by_kind() -> None:
    """Each of the four kinds on its own, over the turns; what a result does not tell counts as none."""
    usage = Usage()
    usage.add(result(0.1, input_tokens=1, output_tokens=20, cache_read_input_tokens=300, more=9))
    usage.add(result(0.1, output_tokens=5, cache_creation_input_tokens=4000))
    assert usage.total == SessionTotals(2, 1, 25, 300, 4000, 0.1)


@pytest.mark.parametrize("odd", [b"null", b"[]", b'{"input_tokens":"many"}', b'{"m":{"costUSD":"much"}}', b'{"m":7}'])
def test_figures_of_another_form_are_left_out(odd: bytes) -> None:
    """A turn whose figures nobody can read is a turn; its cost is then taken from the total."""
    usage = Usage()
    assert usage.add(Result(total_cost_usd=0.1, usage=Raw(odd), model_usage_since_last_result=Raw(odd))) == 0.1
    assert usage.total == SessionTotals(turns=1, cost_usd=0.1)
    assert usage.add(Result()) is None
    assert usage.total == SessionTotals(turns=2, cost_usd=0.1)


def test_a_conversation_goes_on_from_what_is_known_of_it() -> None:
    """Totals from an earlier life of the session, and the first result of the process that goes on with it."""
    usage = Usage(SessionTotals(turns=3, output_tokens=7, cost_usd=0.5))
    assert usage.add(result(0.6, 0.1, output_tokens=1)) == 0.1
    assert usage.total == SessionTotals(turns=4, output_tokens=8, cost_usd=0.6)


class Counter:
    """The CLI's own counter, over the processes of a conversation and their deaths."""

    def __init__(self, *, is_new: bool) -> None:
        self.is_new = is_new
        self.total = self.since_last = 0.0
        self.noted = 0.0

    def spend(self, cost: float) -> None:
        self.total += cost
        self.since_last += cost

    def result(self) -> Result:
        told, self.since_last = self.since_last, 0.0
        return result(self.total, told if self.is_new else None)

    def restart(self, *, is_orderly: bool, is_resumed: bool) -> None:
        """An orderly end leaves a note for whoever resumes or forks; only newer CLIs write and read it."""
        if is_orderly and self.is_new:
            self.noted = self.total
        self.total = self.noted if is_resumed and self.is_new else 0.0
        self.since_last = 0.0


EVENTS = st.lists(
    st.tuples(st.just("turn"), st.floats(0, 3))
    | st.tuples(st.just("lost"), st.floats(0, 3))
    | st.tuples(st.sampled_from(["ended", "killed", "transcript lost"]), st.just(0.0)),
    max_size=30,
)


@given(EVENTS, st.booleans())
@settings(max_examples=size(75, 300), deadline=None)
def test_the_sum_is_what_was_spent(events: list[tuple[str, float]], is_new: bool) -> None:
    """Over resumes, forks, kills and a lost transcript: each turn costs what it cost, and the sum is theirs.

    What a turn has spent that never had a result is told with the next one of the same process, or by nobody.
    """
    counter, usage = Counter(is_new=is_new), Usage()
    spent = unsaid = 0.0
    for event, cost in events:
        if event == "turn":
            counter.spend(cost)
            assert usage.add(counter.result()) == pytest.approx(unsaid + cost, abs=1e-6)
            spent, unsaid = spent + unsaid + cost, 0.0
        elif event == "lost":
            counter.spend(cost)
            unsaid += cost
        else:
            counter.restart(is_orderly=event == "ended", is_resumed=event != "transcript lost")
            usage.process_changed()
            unsaid = 0.0
        assert usage.total.cost_usd == pytest.approx(spent, abs=1e-6)
    assert usage.total.turns == sum(event == "turn" for event, _ in events)


def test_a_count_that_is_null_is_none_of_the_others_business() -> None:
    """The rest of the turn is counted all the same, tokens and dollars."""
    usage = Usage()
    tokens = Raw(b'{"input_tokens":100,"output_tokens":50,"cache_read_input_tokens":null}')
    by_model = Raw(b'{"one":{"costUSD":null},"two":{"costUSD":0.5}}')
    assert usage.add(Result(total_cost_usd=0.5, usage=tokens, model_usage_since_last_result=by_model)) == 0.5
    assert usage.total == SessionTotals(turns=1, input_tokens=100, output_tokens=50, cost_usd=0.5)
