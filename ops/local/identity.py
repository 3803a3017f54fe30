"""Whom PostgreSQL runs as: it refuses root, so a root's processes put on another face, or become somebody else."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ops.local.supervise import LocalError

_CLONE_NEWUSER = 0x10000000

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Identity:
    """Whom PostgreSQL runs as, and who owns its files: it refuses root, and an id without a name."""

    uid: int
    gid: int
    before_exec: Callable[[], None] | None


def find(postgres: Path) -> Identity:
    """Ourselves where that will do; else a user namespace, which changes no file; else an ordinary user."""
    for candidate in _identities(os.geteuid(), os.getegid(), _ordinary_user()):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            if run((str(postgres), "--version"), {}, candidate).returncode == 0:
                return candidate
    raise LocalError(
        "PostgreSQL does not run as root, this kernel refuses user namespaces, and no ordinary user here "
        f"can run {postgres}. Run Noria as an ordinary user."
    )


def _identities(uid: int, gid: int, ordinary: pwd.struct_passwd | None) -> Iterator[Identity]:
    if uid != 0 and any(user.pw_uid == uid for user in pwd.getpwall()):
        yield Identity(uid, gid, None)
    elif ordinary is not None:
        yield Identity(uid, gid, partial(_enter_namespace, ordinary))
        yield Identity(ordinary.pw_uid, ordinary.pw_gid, partial(_become, ordinary))


def _ordinary_user() -> pwd.struct_passwd | None:
    users = {user.pw_name: user for user in pwd.getpwall() if user.pw_uid != 0}
    return users.get("postgres") or users.get("nobody") or next(iter(users.values()), None)


def _enter_namespace(user: pwd.struct_passwd) -> None:
    """Look like an ordinary user to ourselves, while files still see who started us."""
    uid, gid = os.geteuid(), os.getegid()
    if _libc.unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user.pw_uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{user.pw_gid} {gid} 1")


def _become(user: pwd.struct_passwd) -> None:
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)


def run(
    command: tuple[str, ...], environment: Mapping[str, str], identity: Identity
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
        preexec_fn=identity.before_exec,
        check=False,
    )


def give(path: Path, identity: Identity) -> None:
    """Hand over a file, or a folder with all that is in it, if it is not that owner's yet."""
    if path.stat().st_uid == identity.uid:
        return
    for found in (*path.rglob("*"), path):
        os.chown(found, identity.uid, identity.gid, follow_symlinks=False)
