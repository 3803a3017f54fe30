"""What jobs cost, measured on a whole stack beside peers: `python -m tests.bench`, and the page README.md."""
