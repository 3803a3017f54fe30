"""Clients that others wrote get from the sandbox what they get from DashScope, unchanged.

OpenAI's is used in the sandbox's own tests. Each of these runs as a process: two versions of the official one cannot be
imported together, and the Vercel AI SDK runs on Node.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from ops.sandbox.options import Limits, Options
from ops.sandbox.testing import Sandbox, running

PROGRAMS = Path(__file__).with_name("sdks")
PATIENCE = 150  # seconds, to run
INSTALLING, TRIES = 45, 2  # seconds that one try may take; it takes two where the registry answers
SAW = "I was shown image cat.png."


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with running(Options(run_seconds=0.1, queue_seconds=0, limits={"*": Limits(rps=100)})) as made:
        yield made


def ran(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=dict(os.environ) | environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def installed(command: list[str]) -> bool:
    """Whether a registry gave what the command asks for; it may not answer, or not be there."""
    try:
        return subprocess.run(command, capture_output=True, timeout=INSTALLING, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


@pytest.fixture(params=["1.27.8", "2.0.2"])
def sdk(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The environment in which `import dashscope` gives this version; 1.x needs no package that 2.x does not."""
    if request.param == metadata.version("dashscope"):
        return {}
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", tmp_path)
    ran(*pip, f"dashscope=={request.param}")
    return {"PYTHONPATH": str(tmp_path)}


def test_the_calls_of_the_official_sdk_get_their_answers(
    sandbox: Sandbox, sdk: dict[str, str], request: pytest.FixtureRequest
) -> None:
    told = json.loads(ran(sys.executable, PROGRAMS / "dashscope_calls.py", URL=sandbox.url, **sdk))

    assert told["version"] in request.node.name
    assert told["plain"][0] == 200
    assert told["plain"][1] == told["streamed"] != ""
    assert (told["called"], told["formed"]) == ("weather", ["summary"])
    assert all(said.startswith(SAW) for said in told["seen"])
    assert told["spoken"] == ["http", 4]
    assert told["embedded"] == [256, 256]
    assert told["video"] == ["SUCCEEDED", "http", 2]
    assert told["pictures"] == ["SUCCEEDED", 2]
    assert told["refused"] == [400, "InvalidParameter"]


def test_the_client_of_the_official_sdk_gets_its_answers(sandbox: Sandbox) -> None:
    told = json.loads(ran(sys.executable, PROGRAMS / "dashscope_client.py", URL=sandbox.url))

    assert told["native"] == told["compatible"]
    said, streamed, called, formed = told["native"]
    assert said == streamed != ""
    assert (called, formed) == ("weather", ["summary"])
    assert told["seen"].startswith(SAW)
    assert told["spoken"] == ["http", 4]
    assert told["embedded"] == [256, 256]
    assert told["video"] == [True, "http", True]
    assert told["pictures"] == [2, 1]
    assert told["refused"] == [400, "InvalidParameter"]


@pytest.mark.skipif(shutil.which("npm") is None, reason="the Vercel AI SDK runs on Node, and there is none here")
def test_the_vercel_ai_sdk_gets_its_answers(sandbox: Sandbox, tmp_path: Path) -> None:
    for name in ("package.json", "ask.mjs"):
        shutil.copy(PROGRAMS / name, tmp_path)
    npm, node = shutil.which("npm"), shutil.which("node")
    assert npm is not None
    assert node is not None
    quietly = ("--silent", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts")
    if not any(installed([npm, "install", "--prefix", str(tmp_path), *quietly]) for _ in range(TRIES)):
        pytest.skip("there is Node, and no registry that gives its packages in time")

    told: dict[str, Any] = json.loads(ran(node, tmp_path / "ask.mjs", URL=sandbox.url))

    assert (told["plain"]["reason"], told["plain"]["tokens"] > 0) == ("stop", True)
    assert told["streamed"]["said"]
    assert told["streamed"]["usage"] > 0
    assert [name for name, _ in told["tool"]] == ["weather"]
    assert isinstance(told["json"]["title"], str)
    assert told["seen"].startswith(SAW)
    assert told["thought"]
    assert told["vectors"] == [1024, 1024]
    assert all(video["bytes"] > 1000 for video in told["videos"])
    asked = [task["model"] for task in sandbox.ledger()["tasks"] if task["model"].startswith("wan")]
    assert {"wan2.6-t2v", "wan2.7-t2v", "wan3.0-video"} <= set(asked)
