"""`python -m ops.cli`, which is `noria`."""

from ops.cli import main

main()
