"""Every table, one schema for SQLite and PostgreSQL.

Times are seconds since the epoch (UTC). Ids are those of `loraway.ids`. JSON columns hold what a client
sent or what is only ever read whole. Who writes what: `adapters_store.registry` adapters, versions,
aliases and rollouts' outcome; `engines` (controller) replicas, residencies; `finetune` files, datasets,
jobs and what hangs on them; `gateway.traffic` completions; `gateway.api` feedback, keys.
Each change that a gateway worker's routing snapshot must see also bumps the `routing` revision.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _id(name: str = "id") -> Column[str]:
    return Column(name, String(64), primary_key=True)


def _ref(name: str, target: str, *, nullable: bool = False, index: bool = True) -> Column[str]:
    return Column(name, String(64), ForeignKey(target), nullable=nullable, index=index)


def _time(name: str, *, nullable: bool = False) -> Column[float]:
    return Column(name, Float(53), nullable=nullable)


#: Counters that move when a snapshot must be read again. Row "routing" is the gateway workers'.
revisions = Table(
    "revisions",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", BigInteger, nullable=False),
)

#: Tenants: owners of keys, adapters, files, traffic and jobs.
projects = Table(
    "projects",
    metadata,
    _id(),
    Column("name", String(128), nullable=False, unique=True),
    #: null: the setting `traffic.store_by_default` decides.
    Column("store_by_default", Boolean, nullable=True),
    _time("created_at"),
)

#: API keys; only a digest (BLAKE2b, 16 bytes) is stored.
api_keys = Table(
    "api_keys",
    metadata,
    _id(),
    _ref("project_id", "projects.id"),
    Column("name", String(128), nullable=False),
    Column("digest", LargeBinary(16), nullable=False, unique=True),
    #: The last four characters, to recognise a key by.
    Column("hint", String(8), nullable=False),
    _time("created_at"),
    _time("revoked_at", nullable=True),
)

#: Base models that replicas serve.
base_models = Table(
    "base_models",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("path", Text, nullable=False),
    #: sha256 of config.json and the weight files' names and sizes.
    Column("revision", String(64), nullable=False),
    Column("template_sha256", String(64), nullable=False),
    _time("created_at"),
)

#: One engine process serving one base model at one URL.
replicas = Table(
    "replicas",
    metadata,
    _id(),
    Column("url", Text, nullable=False, unique=True),
    Column("engine", String(16), nullable=False),
    Column("base_model", String(64), nullable=False, index=True),
    #: starting, ready, unhealthy, draining, gone
    Column("state", String(16), nullable=False),
    #: Slots for adapters: the largest number loaded at once.
    Column("adapter_slots", Integer, nullable=False),
    Column("running", Integer, nullable=False, default=0),
    Column("waiting", Integer, nullable=False, default=0),
    Column("kv_cache_usage", Float, nullable=False, default=0.0),
    Column("error", Text, nullable=True),
    _time("created_at"),
    _time("seen_at", nullable=True),
)

#: Which version is loaded on which replica, as last read from the replica.
residencies = Table(
    "residencies",
    metadata,
    Column("replica_id", String(64), ForeignKey("replicas.id"), primary_key=True),
    Column("version_id", String(64), ForeignKey("versions.id"), primary_key=True),
    #: loaded (proved, may serve), loading, failed
    Column("state", String(16), nullable=False),
    Column("error", Text, nullable=True),
    _time("updated_at"),
    #: When a request last asked for it there; evictions take the oldest.
    _time("used_at", nullable=True),
)

#: A name in a project.
adapters = Table(
    "adapters",
    metadata,
    _id(),
    _ref("project_id", "projects.id"),
    Column("name", String(64), nullable=False),
    Column("base_model", String(64), nullable=False),
    #: The number the next version takes; numbers are never used twice.
    Column("next_number", Integer, nullable=False),
    _time("created_at"),
    UniqueConstraint("project_id", "name"),
)

#: An immutable set of weights of an adapter, `name@number`.
versions = Table(
    "versions",
    metadata,
    _id(),
    _ref("adapter_id", "adapters.id"),
    Column("number", Integer, nullable=False),
    #: The name engines know it by: unique over all projects and never used again.
    Column("engine_name", String(128), nullable=False, unique=True),
    #: Folder below the blob store, relative.
    Column("folder", Text, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("manifest", JSON, nullable=False),
    #: registered, serving, retired
    Column("state", String(16), nullable=False),
    Column("job_id", String(64), nullable=True, unique=True),
    _time("created_at"),
    UniqueConstraint("adapter_id", "number"),
)

#: What clients put in `model`; points at one version. Moves are kept for rollback.
aliases = Table(
    "aliases",
    metadata,
    Column("project_id", String(64), ForeignKey("projects.id"), primary_key=True),
    Column("name", String(64), primary_key=True),
    _ref("version_id", "versions.id"),
    #: Where a rollback goes; null when there was none before.
    Column("previous_version_id", String(64), ForeignKey("versions.id"), nullable=True),
    _time("updated_at"),
)

alias_moves = Table(
    "alias_moves",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("project_id", String(64), nullable=False),
    Column("name", String(64), nullable=False),
    Column("from_version_id", String(64), nullable=True),
    Column("to_version_id", String(64), nullable=False),
    Column("reason", String(32), nullable=False),
    _time("moved_at"),
    Index("ix_alias_moves_name", "project_id", "name"),
)

#: A version on its way to the replicas, then under its alias. The controller runs it.
rollouts = Table(
    "rollouts",
    metadata,
    _id(),
    _ref("project_id", "projects.id"),
    Column("alias", String(64), nullable=False),
    _ref("version_id", "versions.id"),
    #: pending, running, done, failed
    Column("state", String(16), nullable=False, index=True),
    Column("error", JSON, nullable=True),
    #: Per replica: load and proof times in seconds, largest logprob difference.
    Column("report", JSON, nullable=True),
    _time("created_at"),
    _time("finished_at", nullable=True),
)

files = Table(
    "files",
    metadata,
    _id(),
    _ref("project_id", "projects.id"),
    Column("filename", String(255), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    #: uploaded, processed, error
    Column("status", String(16), nullable=False),
    Column("status_details", Text, nullable=True),
    Column("lines", Integer, nullable=True),
    _time("created_at"),
    _time("deleted_at", nullable=True),
)

#: An immutable snapshot: JSONL, manifest, sha256.
datasets = Table(
    "datasets",
    metadata,
    _id(),
    _ref("project_id", "projects.id"),
    Column("sha256", String(64), nullable=False),
    Column("folder", Text, nullable=False),
    Column("manifest", JSON, nullable=False),
    _time("created_at"),
)

#: Lineage: the completions a dataset was made of.
dataset_completions = Table(
    "dataset_completions",
    metadata,
    Column("dataset_id", String(64), ForeignKey("datasets.id"), primary_key=True),
    Column("completion_id", String(64), primary_key=True, index=True),
)

jobs = Table(
    "jobs",
    metadata,
    _id(),
    _ref("project_id", "projects.id"),
    Column("base_model", String(64), nullable=False),
    Column("suffix", String(64), nullable=False),
    #: The request as accepted (`finetune.jobs.request.JobRequest`).
    Column("request", JSON, nullable=False),
    #: `finetune.jobs.states.JobState`
    Column("status", String(24), nullable=False, index=True),
    #: Finer than status: validating, training, evaluating, registering, rolling_out
    Column("stage", String(24), nullable=True),
    Column("error", JSON, nullable=True),
    _ref("dataset_id", "datasets.id", nullable=True, index=False),
    Column("version_id", String(64), nullable=True),
    Column("fine_tuned_model", String(96), nullable=True),
    Column("trained_tokens", BigInteger, nullable=True),
    #: step, total_steps, loss, ... as last reported
    Column("progress", JSON, nullable=True),
    Column("metrics", JSON, nullable=True),
    #: Concrete values; the request may say "auto".
    Column("hyperparameters", JSON, nullable=True),
    Column("cancel_requested", Boolean, nullable=False, default=False),
    _time("created_at"),
    _time("started_at", nullable=True),
    _time("finished_at", nullable=True),
    _time("estimated_finish", nullable=True),
    #: Who runs it, with a token that only grows: a write with an older token changes nothing.
    Column("lease_owner", String(128), nullable=True),
    Column("lease_token", Integer, nullable=False, default=0),
    _time("lease_expires_at", nullable=True),
    Column("attempts", Integer, nullable=False, default=0),
)

job_events = Table(
    "job_events",
    metadata,
    _id(),
    _ref("job_id", "jobs.id"),
    #: info, warn, error
    Column("level", String(8), nullable=False),
    #: message, metrics
    Column("type", String(16), nullable=False),
    Column("message", Text, nullable=False),
    Column("data", JSON, nullable=True),
    _time("created_at"),
)

job_checkpoints = Table(
    "job_checkpoints",
    metadata,
    _id(),
    _ref("job_id", "jobs.id"),
    Column("step", Integer, nullable=False),
    Column("metrics", JSON, nullable=False),
    _time("created_at"),
    UniqueConstraint("job_id", "step"),
)

#: One logged request and response.
completions = Table(
    "completions",
    metadata,
    _id(),
    _ref("project_id", "projects.id", index=False),
    Column("request_id", String(64), nullable=False),
    #: What the client asked for, and what answered.
    Column("model", String(128), nullable=False),
    Column("base_model", String(64), nullable=False),
    Column("version_id", String(64), nullable=True),
    Column("replica_id", String(64), nullable=True),
    #: JSON texts as they went over the wire.
    Column("request", Text, nullable=False),
    Column("response", Text, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("is_stream", Boolean, nullable=False),
    Column("finish_reason", String(32), nullable=True),
    Column("prompt_tokens", Integer, nullable=True),
    Column("completion_tokens", Integer, nullable=True),
    Column("ttft_seconds", Float, nullable=True),
    Column("duration_seconds", Float, nullable=True),
    Column("traceparent", String(64), nullable=True),
    _time("created_at"),
    Index("ix_completions_project_created", "project_id", "id"),
)

#: The pairs of a completion's metadata, to filter by.
completion_metadata = Table(
    "completion_metadata",
    metadata,
    Column("completion_id", String(64), ForeignKey("completions.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("value", String(512), nullable=False),
    Index("ix_completion_metadata_key_value", "key", "value"),
)

#: Score, label, correction or preference about a completion.
feedback = Table(
    "feedback",
    metadata,
    _id(),
    _ref("project_id", "projects.id"),
    Column(
        "completion_id",
        String(64),
        ForeignKey("completions.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    Column("score", Float, nullable=True),
    Column("label", String(128), nullable=True),
    #: The better answer: {"role": "assistant", "content": ...}
    Column("correction", JSON, nullable=True),
    #: {"preferred": ..., "non_preferred": ...}
    Column("preference", JSON, nullable=True),
    Column("comment", Text, nullable=True),
    _time("created_at"),
)
