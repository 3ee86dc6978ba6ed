"""What another name would mend is the operator's mistake; what the machine has to mend is not."""

import errno
import os
from pathlib import Path

import pytest

from broker.config.places import place
from broker.errors import ConfigError


def test_a_mistake_names_its_key(tmp_path: Path) -> None:
    """With the place, what is wrong with it and what is allowed; a name that is taken in words of its own."""
    with pytest.raises(ConfigError) as caught, place("state.dir", "a folder"):
        (tmp_path / "no" / "where").mkdir()
    assert str(caught.value) == f"state.dir: {tmp_path}/no/where: No such file or directory (allowed: a folder)"
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file: is there, and no folder"), place("state.dir", "a folder"):
        (tmp_path / "file").mkdir()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG])
def test_a_place_that_cannot_be_written_is_a_mistake(number: int) -> None:
    """A file system that is read-only, rights that are missing, a name that leads nowhere."""
    with pytest.raises(ConfigError), place("state.dir", "a folder"):
        raise OSError(number, os.strerror(number), "var")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE])
def test_a_disk_that_is_full_or_fails_is_none(number: int) -> None:
    """Another start may find it mended."""
    with pytest.raises(OSError) as caught, place("state.dir", "a folder"):  # noqa: PT011 - by its number
        raise OSError(number, os.strerror(number), "var")
    assert caught.value.errno == number
