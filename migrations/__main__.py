"""`python -m migrations` is `alembic upgrade head`, from any folder and from an install that has no pyproject.toml."""

from __future__ import annotations

from alembic import command
from alembic.config import Config

import migrations

if __name__ == "__main__":
    config = Config()
    config.set_main_option("script_location", str(migrations.FOLDER).replace("%", "%%"))
    command.upgrade(config, "head")
