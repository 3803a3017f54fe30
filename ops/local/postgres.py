"""PostgreSQL out of its wheel: its cluster, its process, and the user that it runs as.

PostgreSQL refuses to run as root. A root's PostgreSQL runs in a user namespace, in which it has an ordinary user's id
while files keep their owner; where the kernel refuses that, it runs as an ordinary user, who then owns its files.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ops.local.supervise import LocalError, Program, Run, explain

_CLONE_NEWUSER = 0x10000000

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Identity:
    """The user that PostgreSQL runs as, who owns its files; `before_exec` changes a new process into that user."""

    uid: int
    gid: int
    before_exec: Callable[[], None] | None


@dataclass(frozen=True)
class Cluster:
    """What a cluster is made with: its home, the folder of the executables, the superuser's password.

    `durable=False` trades safety on power loss for speed. `environment` is that of its processes. `locale`: initdb's
    options; those of PostgreSQL before 17 are others.
    """

    home: Path
    binaries: Path
    password: str
    durable: bool
    environment: Mapping[str, str]
    locale: tuple[str, ...] = ("--locale-provider=builtin", "--locale=C", "--builtin-locale=C.UTF-8")


def program(cluster: Cluster, host: str, port: int) -> Program:
    """The server's process; its data are made first where there are none, which takes a second or two."""
    data = cluster.home / "postgres"
    owner = find_identity(cluster.binaries / "postgres")
    if not data.exists():
        make_cluster(cluster, owner)
    _give(data, owner)
    settings = (
        f"listen_addresses={host}",
        f"port={port}",
        "unix_socket_directories=.",  # relative, because a socket's path may have 107 bytes at most
        "shared_buffers=64MB",
        "log_error_verbosity=terse",  # else its log quotes prompts, in DETAIL and CONTEXT
        "max_connections=200",
        "timezone=UTC",
        *(() if cluster.durable else ("fsync=off", "synchronous_commit=off", "full_page_writes=off")),
    )
    return Program(
        name="postgres",
        command=(str(cluster.binaries / "postgres"), "-D", str(data), *(w for each in settings for w in ("-c", each))),
        environment=cluster.environment,
        log=cluster.home / "logs" / "postgres.log",
        is_ready=partial(_is_ready, data / "postmaster.pid"),
        cwd=cluster.home,
        stop_signals=(signal.SIGINT, signal.SIGQUIT),
        death_signal=signal.SIGQUIT,
        before_exec=owner.before_exec,
    )


def make_cluster(cluster: Cluster, owner: Identity) -> None:
    """Make PostgreSQL's data folder, whole or not at all. `LocalError` says what initdb said."""
    unfinished, password = cluster.home / "postgres.unfinished", cluster.home / "postgres.password"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    password.touch(mode=0o600)
    password.write_text(cluster.password)
    _give(unfinished, owner)
    _give(password, owner)
    command = (
        *(str(cluster.binaries / "initdb"), "-D", str(unfinished), "-U", "noria", f"--pwfile={password}"),
        *("--auth=scram-sha-256", "--encoding=UTF8", *cluster.locale),
        *("--no-instructions", *(() if cluster.durable else ("--no-sync",))),
    )
    try:
        done = _run(command, cluster.environment, owner)
    finally:
        password.unlink()
    if done.returncode != 0:
        cause = explain(done.stdout)
        raise LocalError(f"PostgreSQL's data could not be made{f': {cause}' if cause else ''}.\n{done.stdout}")
    unfinished.rename(cluster.home / "postgres")


def find_identity(postgres: Path) -> Identity:
    """The first of those users who can run PostgreSQL. `LocalError` where none can."""
    for candidate in _identities(os.geteuid(), os.getegid()):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            if _run((str(postgres), "--version"), {}, candidate).returncode == 0:
                return candidate
    raise LocalError(
        "PostgreSQL does not run as root, this kernel refuses user namespaces, and no ordinary user here "
        f"can run {postgres}. Run Noria as an ordinary user."
    )


def _identities(uid: int, gid: int) -> Iterator[Identity]:
    users = {user.pw_name: user for user in pwd.getpwall() if user.pw_uid != 0}
    if any(user.pw_uid == uid for user in users.values()):
        yield Identity(uid, gid, None)
    elif ordinary := users.get("postgres") or users.get("nobody") or next(iter(users.values()), None):
        yield Identity(uid, gid, partial(_enter_namespace, ordinary))
        yield Identity(ordinary.pw_uid, ordinary.pw_gid, partial(_become, ordinary))


def _enter_namespace(user: pwd.struct_passwd) -> None:
    """Take an ordinary user's id inside a namespace; outside of it, files keep the owner who started us."""
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


def _run(
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


def _give(path: Path, identity: Identity) -> None:
    """Hand over a file, or a folder with all that is in it, unless it is that owner's already."""
    if path.stat().st_uid != identity.uid:
        for found in (*path.rglob("*"), path):
            os.chown(found, identity.uid, identity.gid, follow_symlinks=False)


def _is_ready(pid_file: Path, run: Run) -> bool:
    """PostgreSQL says so itself, in line 8 of its pid file; the file of a dead server has another pid."""
    with contextlib.suppress(FileNotFoundError):
        lines = pid_file.read_text().splitlines()
        return len(lines) > 7 and lines[0] == str(run.pid) and lines[7].strip() == "ready"
    return False
