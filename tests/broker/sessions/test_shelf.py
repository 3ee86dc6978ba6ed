"""A mapping that knows whose everything is, against a plain list."""

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.sessions.shelf import Shelf
from broker.sessions.stores import Key
from tests.soak import size

PARTS = st.sampled_from(["a", "b", "c"])
KEYS = st.tuples(PARTS, PARTS, PARTS)
NAMES = st.sampled_from(["", "n1", "n2"])


class Thing:
    """A conversation, and its name."""

    def __init__(self) -> None:
        self.name = ""


def put(shelf: Shelf[Thing], model: dict[Key, Thing], key: Key, name: str) -> None:
    """Add one, with its name."""
    if key in model:
        drop(shelf, model, key)
    thing = shelf[key] = model[key] = Thing()
    call(shelf, key, thing, name)


def call(shelf: Shelf[Thing], key: Key, thing: Thing, name: str) -> None:
    """Give it another name."""
    shelf.rename(key, thing, thing.name, name)
    thing.name = name


def drop(shelf: Shelf[Thing], model: dict[Key, Thing], key: Key) -> None:
    """Take one out."""
    call(shelf, key, model.pop(key), "")
    del shelf[key]


STEPS = st.tuples(st.sampled_from(["put", "call", "drop"]), KEYS, NAMES)


@given(st.lists(STEPS, max_size=40))
@settings(max_examples=size(50, 1000), deadline=None)
def test_everything_is_found_by_its_owner_and_its_name(steps: list[tuple[str, Key, str]]) -> None:
    """Whatever came, was renamed and went in between."""
    shelf, model = Shelf[Thing](), dict[Key, Thing]()
    for step, key, name in steps:
        is_free = all(name != thing.name for other, thing in model.items() if other[:2] == key[:2])
        if step == "put":
            put(shelf, model, key, name if is_free else "")
        elif step == "drop" and key in model:
            drop(shelf, model, key)
        elif key in model and is_free:
            call(shelf, key, model[key], name)
    assert dict(shelf) == model
    assert len(shelf) == len(model)
    assert set(shelf.values()) == set(model.values())
    for tenant in "abc":
        assert shelf.count(tenant) == len(shelf.of(tenant, None))
        assert set(shelf.of(tenant, None)) == {thing for key, thing in model.items() if key[0] == tenant}
        for subject in "abc":
            of_both = {thing for key, thing in model.items() if key[:2] == (tenant, subject)}
            assert set(shelf.of(tenant, subject)) == of_both
            for name in ("n1", "n2"):
                named = {thing for thing in of_both if thing.name == name}
                found = shelf.named(tenant, subject, name)
                assert named == (set() if found is None else {found})


def test_the_older_of_two_has_the_name() -> None:
    """A CLI may say any id: it takes none away, and when the older one goes the other is found."""
    shelf = Shelf[Thing]()
    older, newer = Thing(), Thing()
    for key, thing in ((("t", "s", "1"), older), (("t", "s", "2"), newer)):
        shelf[key] = thing
        shelf.rename(key, thing, "", "n")
    assert shelf.named("t", "s", "n") is older
    shelf.rename(("t", "s", "2"), newer, "n", "")
    assert shelf.named("t", "s", "n") is older
    shelf.rename(("t", "s", "2"), newer, "", "n")
    shelf.rename(("t", "s", "1"), older, "n", "")
    assert shelf.named("t", "s", "n") is newer
