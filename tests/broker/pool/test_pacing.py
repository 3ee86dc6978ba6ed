"""Spares are not started while tenants need the CPU more, and never held back for long."""

from broker.pool.pacing import HOLD_AFTER_LEASE_S, HOLD_S, Pacing


def test_nothing_is_held_when_nobody_needs_the_cpu() -> None:
    """A pool without tenants fills at once."""
    pacing = Pacing()
    assert not pacing.is_held(0.0)
    assert not pacing.is_holding


def test_a_lease_holds_for_a_moment() -> None:
    """The replacement of a leased process waits until its tenant has had time to bind and speak."""
    pacing = Pacing()
    pacing.leased(10.0)
    assert pacing.is_held(10.0)
    assert pacing.is_held(10.0 + HOLD_AFTER_LEASE_S / 2)
    assert not pacing.is_held(10.0 + HOLD_AFTER_LEASE_S)


def test_a_turn_holds_until_its_first_token() -> None:
    """Spares start once no turn waits for its first token any more."""
    pacing = Pacing()
    assert not pacing.first_token_awaited(+1)
    assert pacing.is_held(1.0)
    assert pacing.is_holding
    assert pacing.first_token_awaited(-1)
    assert not pacing.is_held(1.5)
    assert not pacing.is_holding


def test_no_hold_lasts_for_ever() -> None:
    """A broker that is always busy still gets its spares, from ``HOLD_S`` on."""
    pacing = Pacing()
    pacing.first_token_awaited(+1)
    assert pacing.is_held(5.0)
    assert pacing.is_held(5.0 + HOLD_S * 0.9)
    assert not pacing.is_held(5.0 + HOLD_S)
    pacing.leased(5.0 + HOLD_S)
    assert not pacing.is_held(5.0 + HOLD_S + 0.1), "the hold that is over is not renewed while the need goes on"
