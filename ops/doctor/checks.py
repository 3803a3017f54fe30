"""The checks of `noria doctor`, in the order in which they are made."""

from __future__ import annotations

from ops.doctor import Check
from ops.doctor import rows as rows
from ops.doctor import services as services

CHECKS = (
    Check("database", rows.database, "is NORIA_DATABASE_URL right, and does Postgres run?"),
    Check("upkeep", rows.upkeep, "alembic upgrade head", needs="database"),
    Check("broker", services.broker, "is NORIA_BROKER_URL right, and does Redis run? Jobs wait, none is lost"),
    Check("workers", services.workers, "see the broker", needs="broker"),
    Check("clock", rows.clock, "alembic upgrade head", needs="database"),
    Check("work", rows.work, "alembic upgrade head", needs="database"),
    Check("stuck rows", rows.stuck, "alembic upgrade head", needs="database"),
    Check("accounts", rows.money, "alembic upgrade head", needs="database"),
    Check("bucket", services.bucket, "are the NORIA_S3 settings right, and may the key put, get, list and delete?"),
    Check("uploads", services.uploads, "may the key list uploads?", needs="bucket"),
    Check("provider", services.provider, "is NORIA_DASHSCOPE_URL right, and may this machine reach it?"),
    Check("webhooks", services.webhooks, "report it"),
    Check("alerts", services.alerted, "report it"),
    Check("Flower", services.flower, "it only shows; jobs run without it"),
)
