"""What production runs, run: the image's own install, its commands, and the reading of documents in it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from image import DOCKERFILE, LOCK, PROJECT, Image, pins
from pypdf import PdfReader, PdfWriter
from sqlalchemy import Engine
from test_documents import pdf

from worker import keys
from worker.kinds.summary import documents

COMPOSE = (PROJECT / "docker-compose.yml").read_text()
README = (PROJECT / "README.md").read_text()
COMMANDS = re.findall(r"(?m)(?:^\.venv/bin/|`)(noria [^`#\n]*[^`# \n])", README)  # in its blocks, and in its sentences
BY_HAND = re.findall(r"(?m)^\| [\w ]+ \| `((?:alembic|uvicorn|celery) [^`]+)`", README)
WATER = "水库在夏天要放水，镇上的人都知道这件事。管理员每天记录水位，并把数字写在黑板上。\n"
NAMES = "负责人：李镕、朱喆、刘堃"  # whose characters gb2312 has not

# The document's bytes, its content type, and words that must be read. A new form gets a row.
DOCUMENTS: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "plain": (lambda: WATER.encode(), "text/plain", WATER.strip()),
    "gbk": (lambda: (WATER * 20).encode("gbk"), "", WATER.strip()),
    "markdown": (lambda: f"# Water\n\n{WATER}".encode(), "text/markdown", WATER.strip()),
    "page": (lambda: f"<html><body><p>{WATER}</p></body></html>".encode(), "text/html", WATER.strip()),
    "page that says gb2312": (lambda: mislabelled(), "text/html", NAMES),
    "long page": (lambda: b"<html><body>" + b"<p>a line of it</p>" * 2_000, "text/html", "a line of it"),
    "pdf": (lambda: pdf("the first page", "the second"), "application/pdf", "the first page\n\nthe second"),
    "pdf locked by RC4-128": (lambda: locked("RC4-128"), "application/pdf", "for all to read"),
    "pdf locked by AES-128": (lambda: locked("AES-128"), "application/pdf", "for all to read"),
    "pdf locked by AES-256": (lambda: locked("AES-256"), "application/pdf", "for all to read"),
}
UP_FOR_REAL = """
import importlib.util, pathlib
from ops import cli
from ops.local import servers, up
cli.check_can_run(real=True)
home = servers.make_home(pathlib.Path("home"))
for program in up.programs(home, servers.kept_ports(home), up.UpOptions(home, real=True), {}):
    assert importlib.util.find_spec(program.command[2]), program.command
    print(program.name)
"""
READER = """
import json, pathlib, sys
from worker import keys
from worker.kinds.summary import documents
for name, content_type in json.load(sys.stdin).items():
    try:
        said = documents.text_of(pathlib.Path(name).read_bytes(), content_type)
    except documents.Unreadable as error:
        said = f"{error.code}: {error}"
    print(json.dumps(said))
"""


def mislabelled() -> bytes:
    """A page as many are: it names gb2312 and holds what only its successors have."""
    head = '<html><head><meta http-equiv="Content-Type" content="text/html; charset=gb2312"></head>'
    return f"{head}<body><p>{WATER * 20}</p><p>{NAMES}</p></body></html>".encode("gb18030")


def locked(algorithm: str) -> bytes:
    """A PDF that all may read and only its owner may change."""
    writer = PdfWriter(clone_from=PdfReader(BytesIO(pdf("for all to read"))))
    writer.encrypt(user_password="", owner_password="owner", algorithm=algorithm)
    written = BytesIO()
    writer.write(written)
    return written.getvalue()


@pytest.fixture(scope="module")
def read(image: Image, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the image reads of each document, or why it reads none."""
    folder = tmp_path_factory.mktemp("documents")
    paths = {name: folder / str(n) for n, name in enumerate(DOCUMENTS)}
    for name, path in paths.items():
        path.write_bytes(DOCUMENTS[name][0]())
    asked = json.dumps({str(path): DOCUMENTS[name][1] for name, path in paths.items()})
    done = image.run([image.python, "-c", READER], feed=asked)
    assert done.returncode == 0, done.stderr
    return dict(zip(DOCUMENTS, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_image_reads_a_document_as_a_developers_install_does(name: str, read: dict[str, str]) -> None:
    content, content_type, words = DOCUMENTS[name]

    assert words in read[name]
    assert read[name] == documents.text_of(content(), content_type)


def test_the_images_packages_are_those_of_its_lock_and_no_others(image: Image) -> None:
    listing = "import importlib.metadata as m; print(*{d.name.lower().replace('_', '-') for d in m.distributions()})"

    assert set(image.run([image.python, "-c", listing]).stdout.split()) == {name.replace("_", "-") for name in pins()}


def test_the_dockerfiles_own_line_installs_the_lock(tmp_path: Path) -> None:
    """The one test that asks a package index, and only where one answers."""
    (line,) = re.findall(r"/venv/bin/(pip install .*?-r /requirements.lock)", DOCKERFILE.read_text(), re.DOTALL)
    words = [str(LOCK) if word == "/requirements.lock" else word for word in shlex.split(line.replace("\\\n", ""))]
    command = [sys.executable, "-m", *words, "--ignore-installed", "--dry-run", "--quiet", "--report", "-"]
    one = tmp_path / "one.lock"
    one.write_text(LOCK.read_text().partition("    # via")[0])
    asked = ["--no-deps", "--retries", "0", "--timeout", "5"]
    if subprocess.run([*[str(one) if w == str(LOCK) else w for w in command], *asked], capture_output=True).returncode:
        pytest.skip("no package index answers")

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    installed = {each["metadata"]["name"].lower() for each in json.loads(done.stdout)["install"]}
    assert {name.replace("-", "_") for name in installed} == {name.replace("-", "_") for name in pins()}


@pytest.mark.parametrize("module", ["worker", "api", "migrations", "ops.docker"])
def test_every_module_that_production_runs_is_loaded_by_what_the_image_has(module: str, image: Image) -> None:
    code = f"""
import importlib, pkgutil, {module}
for found in pkgutil.walk_packages({module}.__path__, "{module}."):
    if not found.name.startswith(("migrations.env", "worker.tasks")):
        importlib.import_module(found.name)
"""
    done = image.run([image.python, "-c", code])

    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install` puts into a site's folder."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=PROJECT, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as packed:
        packed.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_and_the_image_hold_what_production_runs_and_no_more(wheel: Path, image: Image) -> None:
    tops = {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")}

    assert tops == {"api", "migrations", "ops", "worker"}
    for ops in (wheel / "ops", image.root / "app" / "ops"):
        folders = {path.name for path in ops.iterdir() if path.is_dir()}
        assert folders - {"__pycache__"} == {"audit", "cli", "docker", "doctor", "local"}
        console = ops.parent / "api" / "console"
        for name in ("templates/base.html", "static/htmx.min.js", "static/console.css", "zh.po"):
            assert (console / name).is_file(), name


def test_a_wheel_has_all_that_a_migration_needs(
    wheel: Path, image: Image, environment: dict[str, str], tmp_path: Path
) -> None:
    settings = environment | {"PYTHONPATH": str(wheel)}

    for code in (
        "import os; from ops.local import up; up.migrate(os.environ)",
        "from ops.cli import app; app(['lanes'])",
    ):
        done = image.run([image.python, "-c", code], settings, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_the_wheel_has_every_process_of_noria_up_for_real_and_says_that_the_sandbox_needs_a_checkout(
    wheel: Path, image: Image, tmp_path: Path
) -> None:
    settings = {"PYTHONPATH": str(wheel), "DASHSCOPE_API_KEY": "sk-nobody"}

    real = image.run([image.python, "-c", UP_FOR_REAL], settings, cwd=tmp_path)
    play = image.run([image.python, "-m", "ops.cli", "up"], settings, cwd=tmp_path)

    assert (real.returncode, real.stdout.split()) == (0, ["api", "worker-control", "worker-rest", "clock", "flower"])
    assert (play.returncode, "source checkout" in play.stderr) == (1, True)


def test_a_container_without_a_command_says_what_noria_can_do(image: Image) -> None:
    done = image.run(list(image.default))

    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: noria" in done.stdout


def test_the_images_noria_is_the_command_that_pyproject_names(image: Image) -> None:
    entry = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]["noria"]
    module, _, function = entry.partition(":")

    assert f"from {module} import {function}" in (image.root / "venv/bin/noria").read_text()


def test_a_module_of_noria_is_run_by_its_name_too(image: Image) -> None:
    assert "Usage: noria" in image.run("python -m ops.cli --help").stdout


def test_what_lies_in_the_current_folder_is_not_taken_for_noria(image: Image, tmp_path: Path) -> None:
    (tmp_path / "ops.py").write_text("raise SystemExit('not this one')")

    assert image.run("noria --help", cwd=tmp_path).returncode == 0


def test_the_compose_files_line_makes_a_key(image: Image, environment: dict[str, str], engine: Engine) -> None:
    (line,) = re.findall(r"docker compose run --rm migrate (noria keys create .*)", COMPOSE)

    made = image.run(f"{line} --json", environment)

    assert (made.returncode, made.stderr) == (0, "")
    with engine.begin() as connection:
        assert keys.authenticate(connection, keys.digest(json.loads(made.stdout)["key"]))


@pytest.mark.parametrize("line", ["noria projects list", "noria lanes", "noria audit", "noria doctor"])
def test_a_command_that_asks_the_database_answers_in_the_image(
    line: str, image: Image, environment: dict[str, str]
) -> None:
    done = image.run(line, environment)

    assert "Traceback" not in done.stderr
    assert done.returncode == (1 if line == "noria doctor" else 0)  # there is no provider, and no worker
    assert line != "noria doctor" or "PostgreSQL 18" in done.stdout


@pytest.mark.parametrize("line", ["noria demo", "noria up", "noria sandbox"])
def test_a_command_that_the_image_cannot_carry_out_says_what_it_needs(line: str, image: Image) -> None:
    done = image.run(line)

    assert done.returncode == 1
    assert "run this command in a source checkout" in done.stderr


def test_every_command_of_the_readme_is_one_that_the_image_knows(image: Image) -> None:
    code = """
import contextlib, io, json, sys
from ops import cli
for words in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = cli.run([*words, "--help"])
    assert code == 0 and "Usage: noria" in said.getvalue(), words
"""
    lines = [shlex.split(line)[1:] for line in COMMANDS]
    assert len(lines) > 20

    done = image.run([image.python, "-c", code], feed=json.dumps(lines))

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", BY_HAND)
def test_a_process_of_the_readme_is_one_that_the_image_has(
    line: str, image: Image, environment: dict[str, str]
) -> None:
    done = image.run(line if line.startswith("alembic") else f"{line} --help", environment)

    assert done.returncode == 0, done.stderr


def test_every_module_that_a_file_tells_people_to_run_does_something(image: Image) -> None:
    files = [DOCKERFILE, PROJECT / "docker-compose.yml", PROJECT / "README.md", *(PROJECT / "ops").rglob("*.py")]
    told = {
        name for file in files for name in re.findall(r"python -m ((?:ops|worker|api)\.[\w.]*\w)", file.read_text())
    }
    homes = {name: PROJECT / name.replace(".", "/") for name in told}
    sources = {n: home / "__main__.py" if home.is_dir() else home.with_suffix(".py") for n, home in homes.items()}

    assert {"ops.docker.health", "ops.sandbox"} <= told
    assert {
        n for n, source in sources.items() if source.exists() and "__main__" not in source.name + source.read_text()
    } == set()
