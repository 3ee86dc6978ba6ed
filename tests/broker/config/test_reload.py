"""What a reload may change: every key is classified, what is live is applied, the rest is named and left alone."""

from collections.abc import Iterator
from typing import Any, get_args, get_origin

import pytest
from msgspec import Struct
from msgspec.structs import fields, replace

from broker.config.profile import Profile
from broker.config.reload import AT_START, LIVE, Plan, plan
from broker.config.sources import _bare
from broker.config.tree import Config, Pool

OTHER = object()
"""Another value than any: the plan never looks into it."""
TWO = Config(pool=Pool(profiles={"default": Profile(), "reader": Profile(warm=1, model="opus")}))


def keys(kind: Any, prefix: str = "") -> Iterator[str]:
    """Every key of the configuration's tree; ``*`` for the name of a profile."""
    for field in fields(kind):
        bare, path = _bare(field.type), prefix + field.name
        if get_origin(bare) is dict and isinstance(get_args(bare)[1], type) and issubclass(get_args(bare)[1], Struct):
            yield from keys(get_args(bare)[1], f"{path}.*.")
        elif isinstance(bare, type) and issubclass(bare, Struct):
            yield from keys(bare, f"{path}.")
        else:
            yield path


KEYS = list(keys(Config))


def with_other(node: Any, path: list[str]) -> Any:
    """The tree with another value at ``path``; at ``*`` in the profile ``reader``."""
    name, rest = path[0].replace("*", "reader"), path[1:]
    if isinstance(node, dict):
        return {**node, name: with_other(node[name], rest)}
    return replace(node, **{name: with_other(getattr(node, name), rest) if rest else OTHER})


def test_every_key_is_classified_once() -> None:
    """A new key needs a class; a key that is gone has none."""
    assert sorted(KEYS) == sorted([*LIVE, *AT_START])


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_applied_or_named(key: str) -> None:
    """Nothing else changes with it, and nothing at all when it needs a start."""
    new, named = with_other(TWO, key.split(".")), (key.replace("*", "reader"),)
    expected = Plan(new, named, ()) if key in LIVE else Plan(TWO, (), named)
    assert plan(TWO, new) == expected


def test_nothing_changed() -> None:
    """The same configuration, read again: nothing to apply, nothing to tell."""
    assert plan(TWO, replace(TWO)) == Plan(TWO, (), ())


def test_profiles_do_not_come_and_go() -> None:
    """A new one and a lost one are named as a whole; the numbers of one that stays are applied."""
    new = replace(TWO, pool=replace(TWO.pool, profiles={"default": Profile(warm=9), "new": Profile(model="haiku")}))
    found = plan(TWO, new)
    assert found.changed == ("pool.profiles.default.warm",)
    assert found.ignored == ("pool.profiles.new", "pool.profiles.reader")
    assert found.applied.pool.profiles == {"default": Profile(warm=9), "reader": TWO.pool.profiles["reader"]}


def test_live_and_not_in_one_table() -> None:
    """Each key counts for itself."""
    new = replace(TWO, server=replace(TWO.server, listen="0.0.0.0:1", allowed_hosts=["a.example"]), models=["x"])
    found = plan(TWO, new)
    assert (found.changed, found.ignored) == (("models", "server.allowed_hosts"), ("server.listen",))
    assert found.applied.server == replace(TWO.server, allowed_hosts=["a.example"])
