"""The plan of a chaos run: the same seed is the same plan, and everything that can happen does."""

from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.chaos import plan
from bench.chaos.plan import Deed, Trouble
from bench.faults import How
from simulator.directives import parse, tag

EVERY = {Deed.KILL_CLI: 10.0, Deed.RESTART: 60.0, Deed.RELOAD: 7.0}


@given(st.integers(0, 10_000), st.integers(0, 50))
@settings(max_examples=20)
def test_the_same_seed_is_the_same_plan(seed: int, tenant: int) -> None:
    """Steps and deeds repeat; another tenant's and another seed's are others."""
    assert list(islice(plan.steps(seed, tenant), 30)) == list(islice(plan.steps(seed, tenant), 30))
    assert list(islice(plan.steps(seed, tenant), 30)) != list(islice(plan.steps(seed, tenant + 1), 30))
    timeline = plan.events(seed, 200, EVERY)
    assert timeline == plan.events(seed, 200, EVERY)
    assert plan.fingerprint(seed, 3, timeline) == plan.fingerprint(seed, 3, timeline)
    assert plan.fingerprint(seed, 3, timeline) != plan.fingerprint(seed + 1, 3, timeline)


@given(st.integers(0, 10_000))
@settings(max_examples=20)
def test_deeds_come_as_often_as_was_asked(seed: int) -> None:
    """In order, within the run, about one per period; none of a kind whose period is 0."""
    timeline = plan.events(seed, 600, EVERY | {Deed.RELOAD: 0.0})
    moments = [event.at_s for event in timeline]
    assert moments == sorted(moments)
    assert all(0 < moment < 600 for moment in moments)
    counts = {deed: sum(event.deed is deed for event in timeline) for deed in Deed}
    assert 50 <= counts[Deed.KILL_CLI] <= 76
    assert 8 <= counts[Deed.RESTART] <= 13
    assert counts[Deed.RELOAD] == 0


def test_everything_that_can_happen_does() -> None:
    """Within a thousand messages: each trouble, each way to end a connection, each kind of cut."""
    steps = list(islice(plan.steps(1, 0), 1000))
    assert {step.trouble for step in steps} == set(Trouble)
    cuts = [cut for step in steps for cut in step.cuts]
    assert {cut.how for cut in cuts} == set(How)
    for name in ("down", "up", "frame"):
        assert any(getattr(cut, name) is not None for cut in cuts), name


@pytest.mark.parametrize("trouble", Trouble)
def test_the_simulator_understands_every_message(trouble: Trouble) -> None:
    """Each message is a directive that it can read, and its first word is the tenant's canary, whole."""
    canary = plan.canary(7, 3)
    texts = [step.text(canary) for step in islice(plan.steps(7, 3), 2000) if step.trouble is trouble]
    assert texts
    for text in texts:
        assert parse(text).present
        assert tag(text) == canary


def test_no_canary_is_part_of_another() -> None:
    """A thousand tenants, a thousand words of ten letters."""
    words = {plan.canary(1, number) for number in range(1000)}
    assert len(words) == 1000
    assert all(len(word) == 10 and word.isalpha() for word in words)
