"""Every setting, typed and described where it is declared.

Read from `loraway.toml` (or the file named by LORAWAY_CONFIG), with the environment on top:
`LORAWAY_GATEWAY__PORT=9000` sets `gateway.port`. `loraway config` prints the effective tree.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, SecretStr, field_serializer
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from sqlalchemy import make_url

EngineKind = Literal["vllm", "sglang", "openai"]


class Timeouts(BaseModel):
    """How long a request may take, in seconds, by phase."""

    connect_seconds: float = Field(5.0, gt=0, description="Opening a connection to a replica.")
    first_byte_seconds: float = Field(
        120.0, gt=0, description="From the request sent to the first byte back."
    )
    between_chunks_seconds: float = Field(60.0, gt=0, description="Silence inside a stream.")
    total_seconds: float = Field(600.0, gt=0, description="The whole request.")
    request_arrival_seconds: float = Field(
        30.0, gt=0, description="Until a client has sent its whole request."
    )
    idle_seconds: float = Field(75.0, gt=0, description="A client connection without a request.")


class GatewaySettings(BaseModel):
    """The process that clients talk to."""

    host: str = Field("127.0.0.1", description="Address to listen on; loopback unless you say otherwise.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 lets the system choose.")
    workers: int = Field(1, ge=1, le=64, description="Gateway processes sharing the port.")
    max_body_bytes: int = Field(16 * 2**20, gt=0, description="Largest body of a data-plane request.")
    max_header_bytes: int = Field(64 * 2**10, gt=0, description="Largest request head.")
    max_upload_bytes: int = Field(2**30, gt=0, description="Largest uploaded file.")
    routing_policy: str = Field("adapter_affinity", description="How a replica is chosen.")
    snapshot_poll_seconds: float = Field(
        0.05, gt=0, description="How often a worker looks for a new routing revision."
    )
    timeouts: Timeouts = Timeouts()


class DatabaseSettings(BaseModel):
    """Where state lives."""

    url: str | None = Field(
        None, description="SQLAlchemy URL (postgresql+psycopg://...); empty: SQLite inside data_dir."
    )

    @field_serializer("url", when_used="json")
    def _without_password(self, url: str | None) -> str | None:
        return url and make_url(url).render_as_string(hide_password=True)


class EngineSettings(BaseModel):
    """The engines that `loraway up` starts or uses, and their LoRA limits."""

    kinds: list[EngineKind] = Field(["vllm"], description="One local engine is started for each.")
    urls: list[str] = Field(
        [], description="Engines already running, as kind=URL or URL (vllm); then none is started."
    )
    api_key: SecretStr | None = Field(
        None, description="Key the engines take; empty: made once, kept in data_dir."
    )
    base_model: str = Field("smollm2-135m", description="Name of the base model, as clients ask for it.")
    model_path: Path | None = Field(
        None, description="Folder of the base model; empty: the embedded one, made once."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where an NVIDIA GPU is.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 where the processor computes it, else float32."
    )
    max_loras: int = Field(4, ge=1, description="Adapters in one batch.")
    max_cpu_loras: int = Field(8, ge=1, description="Adapters loaded at once on a replica; never exceeded.")
    max_lora_rank: int = Field(32, ge=1, description="Largest rank an engine takes.")
    max_model_len: int = Field(2048, ge=128, description="Context length in tokens.")
    ready_seconds: float = Field(300.0, gt=0, description="Deadline for a local engine to become ready.")
    sglang_python: Path | None = Field(
        None, description="Python of SGLang's own environment; empty: .venv-sglang."
    )


class ControllerSettings(BaseModel):
    """The one process that owns replicas, residency and rollouts."""

    host: str = Field("127.0.0.1", description="Address of its internal HTTP interface.")
    port: int = Field(8001, ge=0, le=65535, description="Port of its internal HTTP interface.")
    poll_seconds: float = Field(0.2, gt=0, description="How often it looks for work.")
    health_seconds: float = Field(1.0, gt=0, description="How often each replica's health is read.")
    logprob_tolerance: float = Field(
        0.04, gt=0, description="Largest logprob difference between trained and served adapter (float32)."
    )


class TrainerSettings(BaseModel):
    """The process that runs fine-tuning jobs."""

    concurrency: int = Field(1, ge=1, description="Jobs trained at once.")
    lease_seconds: float = Field(
        15.0, gt=1, description="A job whose trainer is silent this long is taken over."
    )
    heartbeat_seconds: float = Field(3.0, gt=0, description="How often the lease is renewed.")
    minimum_examples: int = Field(10, ge=1, description="Fewest examples a job takes.")
    held_out_fraction: float = Field(0.1, ge=0, lt=1, description="Part of the examples kept for evaluation.")
    checkpoint_steps: int = Field(10, ge=1, description="Steps between checkpoints.")
    threads: int = Field(2, ge=1, description="CPU threads of a training process.")


class TrafficSettings(BaseModel):
    """The log of completions."""

    store_by_default: bool = Field(False, description="Store requests that do not say `store`.")
    flush_seconds: float = Field(
        0.02, ge=0, description="How long a commit waits for others to join it, while several come at once."
    )
    queue_limit: int = Field(
        10_000, ge=1, description="Stored completions waiting for the disk before the client is told."
    )


class TelemetrySettings(BaseModel):
    """OpenTelemetry; the standard OTEL_* variables are honoured as well."""

    otlp_endpoint: str | None = Field(
        None, description="OTLP/HTTP endpoint; empty: OTEL_EXPORTER_OTLP_ENDPOINT."
    )
    sample_ratio: float = Field(1.0, ge=0, le=1, description="Part of the requests that become spans.")


class Settings(BaseSettings):
    """The whole tree."""

    model_config = SettingsConfigDict(
        env_prefix="LORAWAY_", env_nested_delimiter="__", extra="forbid", validate_default=True
    )

    data_dir: Path = Field(
        Path(".loraway"), description="Database, blobs, models, logs and keys of this machine."
    )
    database: DatabaseSettings = DatabaseSettings()
    gateway: GatewaySettings = GatewaySettings()
    engine: EngineSettings = EngineSettings()
    controller: ControllerSettings = ControllerSettings()
    trainer: TrainerSettings = TrainerSettings()
    traffic: TrafficSettings = TrafficSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @property
    def database_url(self) -> str:
        """The SQLAlchemy URL in use."""
        return self.database.url or f"sqlite:///{self.data_dir.resolve() / 'loraway.db'}"

    @property
    def blobs_dir(self) -> Path:
        """The local folder of the blob store."""
        return self.data_dir.resolve() / "blobs"

    @property
    def logs_dir(self) -> Path:
        """Where the processes' logs go."""
        return self.data_dir.resolve() / "logs"

    @property
    def model_path(self) -> Path:
        """The folder of the base model."""
        return self.engine.model_path or self.data_dir.resolve() / "models" / self.engine.base_model

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        config = Path(os.environ.get("LORAWAY_CONFIG", "loraway.toml"))
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=config)


def load_settings() -> Settings:
    """The effective settings of this process."""
    return Settings()


def changed(settings: Settings, section: str, **values: object) -> Settings:
    """A copy with these values of one section changed, checked like any other; None changes nothing."""
    tree = getattr(settings, section)
    given = {name: value for name, value in values.items() if value is not None}
    return settings.model_copy(update={section: type(tree).model_validate(tree.model_dump() | given)})
