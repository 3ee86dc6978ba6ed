"""How processes of different sessions are kept apart (``pool.isolation``): what stands before the CLI's command line.

``none``: by directory only, all of them are the broker's user.  ``uid``, for a broker that runs as root: each session's
directory has a system user of its own.  ``userns``, for one that does not: each process has user, PID, IPC and mount
namespaces of its own.  What each hides was measured: ``docs/adr/0008-isolation.md``.

Owner and caller: ``broker.processes.launcher``, which chooses one at the start and asks it before each launch.
"""

import os
import pwd
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from broker.config.tree import Pool
from broker.errors import ConfigError, ProcessError
from broker.processes.user_ids import UserIds
from protocol.codes import FailureReason

Mode = Literal["none", "uid", "userns"]
Attempt = Callable[["Isolation"], str]
"""Starts something as a session's process would be; returns what went wrong, empty when nothing did."""

SHARED_TMP = ("/tmp", "/var/tmp")  # noqa: S108 - covered, not written to
HIDE = """set -e
state=$1 own=$2 tmp=$3 proc=$4; shift 4
cd "$own"
for each in tmp work; do
    if [ -L "$each" ]; then echo "$each is a link" >&2; exit 1; fi
done
mount -n -t proc -o "nosuid,nodev,noexec$proc" proc /proc
if [ "$tmp" = own ]; then
    mount -n -c --bind tmp /tmp
    mount -n -c --bind tmp /var/tmp
    mount -n -t tmpfs -o nosuid,nodev,size=64m,mode=1777 none /dev/shm
fi
umask 022
mount -n -t tmpfs -o nosuid,nodev,size=64k,mode=0755 none "$state"
mkdir -p "$own"
umask 077
mount -n -c --bind . "$own"
cd "$own/work"
"""
"""In a mount namespace of its own: a /proc without foreign processes, the session's ``tmp`` as /tmp, and of the state
directory nothing but the session's own folder.  That one is reached through the working directory, which still is what
the mounts cover.  An agent that puts a link in the place of its ``tmp`` or ``work`` would choose what is mounted, or
entered, with more rights than its own: then nothing starts."""
GO_ON = HIDE + 'exec "$@"\n'
RUN = HIDE + '"$@"\nexit $?\n'
"""Not ``exec``: the shell stays process 1 of the namespace, reaps what is orphaned there and ends it with the CLI."""


@dataclass(frozen=True, slots=True)
class Isolation:
    """One way to start processes.  ``hides``: in a mount namespace; ``own_tmp``: with a /tmp of its own there."""

    mode: Mode
    state: Path
    users: UserIds | None = None
    hides: bool = False
    own_tmp: bool = False

    @property
    def wrappers(self) -> int:
        """How many processes stand between the one that is started and the CLI, each the other's only child."""
        return 2 if self.mode == "userns" else 0  # unshare, sh

    def settle(self, root: Path) -> int | None:
        """Give the directory ``root`` to the user that its processes run as, and return it; None: the broker's own.

        Raises ``ProcessError`` when no id is left, ``OSError``.
        """
        if self.users is None:
            return None
        if (owner := root.stat().st_uid) in self.users:
            return owner
        user = self.users.take(root)
        if user is None:
            raise ProcessError(FailureReason.CLI_EXITED, "every id of pool.uid_range belongs to a session's directory")
        for folder, folders, files in os.walk(root):
            for name in folders + files:
                os.lchown(os.path.join(folder, name), user, user)
        os.lchown(root, user, user)
        return user

    def search_path(self, given: str) -> str:
        """Of the directories of a PATH those that the session's user can enter: the scrub fails at any other."""
        return os.pathsep.join(name for name in given.split(os.pathsep) if self._is_open(Path(name)))

    def _is_open(self, folder: Path) -> bool:
        try:
            if self.users is None:
                return folder.is_dir() and os.access(folder, os.R_OK | os.X_OK)
            return all(each.stat().st_mode & 0o005 == 0o005 for each in (folder.resolve(), *folder.resolve().parents))
        except OSError:
            return False

    def prefix(self, root: Path, user: int | None) -> tuple[str, ...]:
        """The words before the CLI's own.

        PDEATHSIG is set first, for as long as the wrappers take, and again at the end: a change of user clears it.
        """
        first = ("setpriv", "--pdeathsig", "KILL")
        tmp, proc = "own" if self.own_tmp else "shared", ",hidepid=invisible" if self.mode == "uid" else ""
        hide = ("sh", str(self.state), str(root), tmp, proc)
        match self.mode:
            case "none":
                return (*first, "--")
            case "uid":
                last = (*first, f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs", "--")
                outer = (*first, "--", "unshare", "--mount", "--propagation", "private", "--")
                return (*outer, "sh", "-c", GO_ON, *hide, *last) if self.hides else last
            case "userns":
                # The capabilities are for the mounts; the CLI gets none of them, and cannot take the mounts away.
                spaces = ("--user", "--map-current-user", "--keep-caps", "--mount", "--propagation", "private", "--pid",
                          "--ipc", "--fork", "--kill-child=KILL")  # fmt: skip
                drop = ("--ambient-caps=-all", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs")
                return (*first, "--", "unshare", *spaces, "--", "sh", "-c", RUN, *hide, "setpriv", *drop, "--")


def choose(pool: Pool, state: Path, needed: tuple[Path, ...], attempt: Attempt) -> Isolation:
    """What ``pool.isolation`` asks for, tried on this machine.

    ``needed``: what the CLI has to find, beside its directory: where one of them lies in /tmp, /tmp cannot be covered.
    Raises ``ConfigError`` when the mode cannot work here; it says what was missing.
    """
    covers = [Path(folder) for folder in SHARED_TMP]
    own_tmp = not any(path.is_relative_to(cover) for path in (state, *needed) for cover in covers)
    match pool.isolation:
        case "none":
            return Isolation("none", state)
        case "uid":
            _check_root(pool)
            plain = Isolation("uid", state, _user_ids(pool, state))
            hiding = replace(plain, hides=True, own_tmp=own_tmp)
            if not attempt(hiding):
                return hiding
            for folder in (state, state / "sessions"):
                folder.chmod(0o711)  # the sessions' users pass through, and read no names
            return _tried(plain, attempt)
        case "userns":
            if os.geteuid() == 0:
                raise ConfigError("pool.isolation", "userns is for a broker that does not run as root", "uid, or none")
            return _tried(Isolation("userns", state, hides=True, own_tmp=own_tmp), attempt)


def _check_root(pool: Pool) -> None:
    if os.geteuid() != 0:
        message = f"uid needs a broker that runs as root, this one is user {os.geteuid()}"
        raise ConfigError("pool.isolation", message, "userns, or none")
    for entry in pwd.getpwall():
        if entry.pw_uid in pool.user_ids:
            message = f"{entry.pw_name} has id {entry.pw_uid}; a session's end kills every process of its id"
            raise ConfigError("pool.uid_range", message, "ids that no user of this machine has")


def _user_ids(pool: Pool, state: Path) -> UserIds:
    users = UserIds(pool.user_ids)
    for folder in (state / "sessions").glob("*"):
        if (owner := folder.lstat().st_uid) in users:
            users.adopt(owner, folder)
    return users


def _tried(isolation: Isolation, attempt: Attempt) -> Isolation:
    complaint = attempt(isolation)
    if complaint:
        raise ConfigError("pool.isolation", f"{isolation.mode} does not work here: {complaint}", "another mode")
    return isolation
