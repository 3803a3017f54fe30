"""Run the sandbox: `python -m ops.sandbox --port 9000 --time-scale 0.02`.

Any switch of `Options` can be given as `--set name=value`; what reads as JSON is taken as JSON.
"""

import argparse
import json
import os
from pathlib import Path

import uvicorn

from ops.sandbox.app import create_app
from ops.sandbox.options import Options
from ops.sandbox.serving import bind, configuration


def main() -> None:
    """Serve until stopped; print one line once connections are taken."""
    arguments = _arguments()
    changes = dict(_change(text) for text in arguments.set) | {"time_scale": arguments.time_scale}
    listener = bind(arguments.host, arguments.port)
    app = create_app(Options().changed(changes), arguments.state)
    host, port = listener.getsockname()[:2]
    # The socket listens already: whoever reads this line may connect, and waits for the first answer at most.
    print(f"sandbox ready http://{host}:{port}", flush=True)
    uvicorn.Server(configuration(app)).run(sockets=[listener])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ops.sandbox", description="A DashScope that runs here.")
    environment = os.environ.get
    parser.add_argument("--host", default=environment("SANDBOX_HOST", "127.0.0.1"))
    parser.add_argument("--port", type=int, default=int(environment("SANDBOX_PORT", "9000")), help="0: any free one")
    parser.add_argument("--time-scale", type=float, default=float(environment("SANDBOX_TIME_SCALE", "1.0")))
    parser.add_argument("--state", type=Path, default=environment("SANDBOX_STATE"), help="a file to remember tasks in")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any other switch")
    return parser.parse_args()


def _change(text: str) -> tuple[str, object]:
    name, _, value = text.partition("=")
    try:
        return name.replace("-", "_"), json.loads(value)
    except ValueError:
        return name.replace("-", "_"), value


if __name__ == "__main__":
    main()
