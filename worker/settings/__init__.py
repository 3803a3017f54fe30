"""The settings, read once from the environment, prefix `NORIA_`.

Every setting is in `ops/env.example` too, with the same description; a test compares the two.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from worker.settings import addresses

Network = IPv4Network | IPv6Network
_BEIJING, _PROVIDERS = "cn-beijing", ".aliyuncs.com"
_BATCH_CHAT = "https://batch.dashscope.aliyuncs.com"  # Alibaba docs, 'OpenAI compatible - Batch Chat' (May 2026)

ProviderUrl = Annotated[str, AfterValidator(addresses.provider_root)]


def _secret(read: Callable[[str], str]) -> AfterValidator:
    return AfterValidator(lambda value: SecretStr(read(value.get_secret_value())))


def _networks(value: Any) -> Any:
    """`10.0.0.0/8,127.0.0.1/32`, since a list of networks reads better without JSON."""
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    return tuple(ip_network(part) for part in parts if part)


Networks = Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_networks)]


class Limit(BaseModel):
    """A model's limits as the operator sets them; None leaves the catalog's."""

    model_config = ConfigDict(extra="forbid")

    concurrency: int | None = Field(None, ge=0)
    rps: float | None = Field(None, gt=0)
    rpm: int | None = Field(None, gt=0)
    tpm: int | None = Field(None, gt=0)
    tpd: int | None = Field(None, gt=0)


class Account(BaseModel):
    """A DashScope credential. `owner` is the main account that the provider counts limits by."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "default"
    owner: str = "default"
    region: str = "cn-beijing"
    url: ProviderUrl
    key: SecretStr | None = None
    key_file: str | None = None  # read again on 401, so that a key is changed without a restart
    workspace: str | None = None
    data_inspection: bool = False  # ask the provider for its stricter inspection of what goes in and comes out
    batch_chat_url: ProviderUrl | None = None  # of Batch Chat, where the account has it at another host than usual

    @property
    def batch_chat(self) -> str | None:
        """The host of Batch Chat; None: the account has none. The provider offers it in Beijing alone."""
        is_usual = self.region == _BEIJING and (urlsplit(self.url).hostname or "").endswith(_PROVIDERS)
        return self.batch_chat_url or (_BATCH_CHAT if is_usual else None)


class Settings(BaseSettings):
    """All settings; the defaults fit one machine."""

    model_config = SettingsConfigDict(
        env_prefix="NORIA_",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,  # addresses hold passwords, and accounts keys
        populate_by_name=True,
    )

    database_url: Annotated[SecretStr, _secret(addresses.database_url)] = Field(
        description="postgresql://user:password@host/database; PgBouncer may stand between, but not for alembic"
    )
    broker_url: Annotated[SecretStr, _secret(addresses.broker_url)] = Field(
        description="redis://user:password@host:6379/0 (Valkey too), or sentinel://:password@host,host/0?master=NAME; "
        "with TLS rediss://, sentinels://"
    )

    dashscope_url: ProviderUrl = Field(
        "https://dashscope.aliyuncs.com",
        description="the provider's host; /api/v1 and /compatible-mode/v1 are appended",
    )
    dashscope_api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("NORIA_DASHSCOPE_API_KEY", "DASHSCOPE_API_KEY"),
        description="the provider's key; plain DASHSCOPE_API_KEY is read too",
    )
    dashscope_workspace: str | None = Field(None, description="a workspace id, sent with each call")
    dashscope_batch_chat_url: ProviderUrl | None = Field(
        None, description="the host of Batch Chat; in Beijing the provider's own, elsewhere there is none"
    )
    dashscope_region: str = Field("cn-beijing", description="the region that the key and the host belong to")
    accounts: Annotated[tuple[Account, ...], NoDecode] = Field(
        (),
        description='JSON list of {"name","owner","region","url","key"|"key_file","workspace","data_inspection",'
        '"batch_chat_url"}',
    )

    s3_bucket: str = Field("noria", description="made beforehand; private")
    s3_endpoint_url: str | None = Field(None, description="empty: AWS's own")
    s3_public_endpoint_url: str | None = Field(
        None, description="the host in links for users and the provider, if another"
    )
    s3_access_key_id: SecretStr | None = Field(None, description="empty: the machine's role")
    s3_secret_access_key: SecretStr | None = Field(None, description="empty: the machine's role")
    s3_region: str = Field("us-east-1", description="the region that signs requests")
    s3_addressing_style: str = Field("auto", pattern="^(auto|path|virtual)$", description="OSS wants virtual")

    public_url: str = Field("http://127.0.0.1:8080", description="where users reach the API")
    console_secret: SecretStr | None = Field(
        None,
        description="signs the console's sessions in all processes; empty: the database's and bucket's passwords do",
    )
    limits: dict[str, Limit] = Field(
        default_factory=dict, description='JSON: model → {"concurrency","rps","rpm","tpm","tpd"}'
    )
    catalog: str | None = Field(
        None, description="a file of your own models, limits and prices, laid over the catalog's; in every process"
    )
    calls_concurrency: int = Field(8, ge=1, description="synchronous calls at once where the provider sets none")
    egress_allow: Networks = Field(
        (),
        description="networks where webhooks and sources may lie though private, on any port, plain http too",
    )
    documents_allow: Networks = Field(
        (),
        description="networks where users' document links may lead though private: all there can be read by any user",
    )
    source_hosts: str = Field(
        r"^dashscope-[a-z0-9-]+\.oss-[a-z0-9-]+\.aliyuncs\.com$",
        description="a pattern of the hosts that serve the provider's outputs",
    )
    settle_seconds: int = Field(600, ge=1, description="how late a lost create may still show in the task list")
    poll_qps: float = Field(15, gt=0, description="task queries a second, of the provider's 20 for an account")
    api_rate: int = Field(200, ge=1, description="requests a second that one API key may make")
    max_waiting: int = Field(100_000, ge=1, description="unfinished jobs that one project may have, and as many parts")
    max_schedules: int = Field(100, ge=1, description="schedules that one project may have")
    max_output_bytes: int = Field(4 << 30, ge=1, description="the largest output that is copied")
    posters: bool = Field(
        True, description="whether a small still is made of each video and picture that is copied from now on"
    )
    max_input_bytes: int = Field(50 << 20, ge=1, description="the largest file that is taken as an input")
    input_handover: str = Field(
        "link",
        pattern="^(link|upload)$",
        description="how the provider gets files: upload, or link if the public endpoint is https and not private",
    )
    speech_limit_unit: str = Field(
        "bytes", pattern="^(bytes|characters)$", description="what the provider's limit of one text to speak counts"
    )
    alert_url: str | None = Field(None, description="where an alarm is sent when an account is stopped")
    alert_format: str = Field(
        "",
        pattern="^(|json|feishu|dingtalk|wecom)$",
        description="json, feishu, dingtalk or wecom; empty: a group's robot is known by its host",
    )
    metrics_token: SecretStr | None = Field(None, description="what is said to read /metrics; empty: nobody can")
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")

    @field_validator("s3_endpoint_url", "s3_public_endpoint_url")
    @classmethod
    def _store(cls, value: str | None, info: ValidationInfo) -> str | None:
        return addresses.store_root(value, info.data.get("s3_bucket", "")) if value else None

    @field_validator("accounts", mode="before")
    @classmethod
    def _decoded(cls, value: Any) -> Any:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except ValueError:  # the error quotes the text, which holds keys
            raise ValueError("must be JSON") from None

    @field_validator("source_hosts")
    @classmethod
    def _pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"must be a regular expression: {error.msg}") from None
        return value

    @cached_property
    def all_accounts(self) -> tuple[Account, ...]:
        """`accounts`, or the one of the DASHSCOPE settings; never empty."""
        if self.accounts:
            return self.accounts
        return (
            Account(
                region=self.dashscope_region,
                url=self.dashscope_url,
                key=self.dashscope_api_key,
                workspace=self.dashscope_workspace,
                batch_chat_url=self.dashscope_batch_chat_url,
            ),
        )

    def bound_to(self, name: str | None) -> Settings:
        """The settings with that account alone, or with none where it is not among them; None: as they are."""
        if name is None:
            return self
        found = tuple(account for account in self.all_accounts if account.name == name)
        return self.model_copy(update={"accounts": found, "all_accounts": found})


def load() -> Settings:
    """The settings of this process; raises pydantic's ValidationError, which names each wrong variable."""
    return Settings()
