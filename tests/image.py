"""The image without a container engine: its Dockerfile carried out in a folder, on exactly what its lock names.

Its packages are linked out of the tests' own environment, file by file, as their wheels list them. So the install takes
a second and no network, and what came with the tests' tools alone is not there. `Image.run` is `docker run`: nothing of
this process's environment, and nothing of the project's folder.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

PROJECT = Path(__file__).resolve().parents[1]
DOCKERFILE = PROJECT / "ops" / "docker" / "Dockerfile"
LOCK = PROJECT / "ops" / "docker" / "requirements.lock"
_OURS = re.compile(r"(?<![\w.}])/(venv|app|requirements\.lock)\b")  # the paths that the Dockerfile fills
_NOT_HERE = ("useradd",)  # what only root can do, and only a container needs


@dataclass(frozen=True)
class Image:
    """The built image: its folder, its environment, and the command that it runs where none is given."""

    root: Path
    environment: Mapping[str, str]
    default: tuple[str, ...]

    @property
    def python(self) -> str:
        """Its interpreter."""
        return f"{self.root}/venv/bin/python"

    def written(self) -> list[Path]:
        """The folders of the image in which a file was made or taken away since it was built."""
        since = (self.root / "built").stat().st_mtime_ns
        folders = (Path(folder) for top in ("app", "venv") for folder, _, _ in os.walk(self.root / top))
        return [folder for folder in folders if folder.stat().st_mtime_ns > since]

    def popen(self, command: Sequence[str], settings: Mapping[str, str], **how: Any) -> subprocess.Popen[bytes]:
        """The command in the image's own folder and environment, with these settings."""
        program = shutil.which(command[0], path=self.environment["PATH"]) or command[0]
        how = {"cwd": self.root / "app", **how}
        return subprocess.Popen([program, *command[1:]], env={**self.environment, **settings}, **how)

    def run(
        self, command: str | list[str], settings: Mapping[str, str] | None = None, feed: str = "", **how: Any
    ) -> subprocess.CompletedProcess[str]:
        """The command's end, with its exit code and what it wrote; `feed` is what it reads."""
        words = shlex.split(command) if isinstance(command, str) else command
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with self.popen(words, settings or {}, **pipes, **how) as process:
            out, err = process.communicate(feed.encode(), timeout=120)
        return subprocess.CompletedProcess(words, process.returncode, out.decode(), err.decode())


def build(root: Path) -> None:
    """Carries out the Dockerfile, with this folder in the place of `/`."""
    for instruction, words in instructions():
        if instruction == "COPY" and not words.startswith("--from"):
            *sources, target = words.split()
            _copy(sources, root / target.lstrip("/"))
        elif instruction == "RUN" and "pip install" in words:
            _install(root)
        elif instruction == "RUN" and not words.startswith(_NOT_HERE):
            path = f"{root}/venv/bin:{os.defpath}"
            subprocess.run(["sh", "-ec", _placed(root, words)], env={"PATH": path}, check=True)


def described(root: Path) -> Image:
    """The image that was built in this folder."""
    said = list(instructions())
    environment = {"PATH": os.defpath, "HOME": "/tmp"}
    for words in (words for instruction, words in said if instruction == "ENV"):
        parted = (word.partition("=") for word in shlex.split(_placed(root, words)))
        environment |= {name: value.replace("$PATH", environment["PATH"]) for name, _, value in parted}
    return Image(root, environment, tuple(json.loads(dict(said)["CMD"])))


def instructions() -> Iterator[tuple[str, str]]:
    """The Dockerfile's instructions with their words, in order."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(None, text.splitlines()):
        instruction, _, words = line.partition(" ")
        yield instruction, words.strip()


def pins(lock: Path = LOCK) -> dict[str, str]:
    """Package → version, of what the lock installs on this machine."""
    lines = re.findall(r"^(\w.*?) \\$", lock.read_text(), re.MULTILINE)
    wanted = [Requirement(line) for line in lines]
    here = [each for each in wanted if each.marker is None or each.marker.evaluate()]
    return {each.name: str(each.specifier).removeprefix("==") for each in here}


def _placed(root: Path, words: str) -> str:
    return _OURS.sub(rf"{root}/\1", words)


def _copy(sources: list[str], target: Path) -> None:
    for source in sources:
        if (PROJECT / source).is_dir():
            shutil.copytree(PROJECT / source, target, ignore=_ignored)
        else:
            place = target / Path(source).name if len(sources) > 1 else target
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / source, place)


def _ignored(folder: str, names: list[str]) -> set[str]:
    lines = (PROJECT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line not in ("", "*") and not line.startswith(("!", "#"))]
    inside = Path(folder).relative_to(PROJECT)
    # Two stars and a slash stand for any number of folders, none among them.
    return {
        name for name in names for p in patterns if fnmatch.fnmatch(f"/{inside / name}", "/" + p.replace("**/", "*/"))
    }


def _install(root: Path) -> None:
    """What the lock names and nothing more, in an environment of its own."""
    venv = root / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    site = next((venv / "lib").glob("python*/site-packages"))
    for name, version in pins().items():
        found = metadata.distribution(name)
        assert found.version == version, f"{name} {found.version} is installed here, {version} is locked: make install"
        for file in found.files or ():
            _link(Path(str(found.locate_file(file))), Path(os.path.normpath(site / file)), f"#!{venv}/bin/python\n")


def _link(source: Path, target: Path, interpreter: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.parent.name != "bin":
        target.symlink_to(source)
        return
    with source.open("rb") as script:
        first = script.readline()
        body = script.read()
    target.write_bytes((interpreter.encode() if b"python" in first else first) + body)
    target.chmod(0o755)
