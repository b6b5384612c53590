"""`loraway jobs`: submit, list, look at, watch and cancel fine-tuning jobs."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Column, Table

from loraway.cli.client import GatewayClient, fail
from loraway.settings import load_settings

app = typer.Typer(no_args_is_help=True, help="Fine-tuning jobs.")
console = Console()
ENDED = {"succeeded", "failed", "cancelled"}


@app.command()
def create(
    model: Annotated[str, typer.Option(help="Base model to train on.")] = "smollm2-135m",
    suffix: Annotated[str | None, typer.Option(help="Name of the adapter.")] = None,
    file: Annotated[Path | None, typer.Option(help="Training file (JSONL) to upload.", exists=True)] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(help="key=value: train on stored completions with this metadata.")
    ] = None,
    hyperparameter: Annotated[list[str] | None, typer.Option("--set", help="name=value.")] = None,
    watch_it: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
) -> None:
    """Submit a job, from an uploaded file or from logged traffic."""
    client = GatewayClient(load_settings())
    body: dict[str, Any] = {"model": model, "suffix": suffix}
    if file is not None:
        body["training_file"] = client.upload("/v1/files", file, "fine-tune")["id"]
    elif metadata:
        body["training_data"] = {"traffic": {"metadata": _pairs(metadata)}}
    else:
        fail("Give --file, or --metadata key=value to train on logged traffic.")
    values = {name: _number(value) for name, value in _pairs(hyperparameter or []).items()}
    body["method"] = {"type": "supervised", "supervised": {"hyperparameters": values}}
    job = client.post("/v1/fine_tunes", body)
    console.print(job["id"])
    if watch_it:
        _watch(client, job["id"])


@app.command("list")
def list_jobs(limit: int = 20) -> None:
    """The newest jobs first."""
    table = Table(Column("id", no_wrap=True, min_width=32), "status", "model", "result", "created")
    for job in GatewayClient(load_settings()).get("/v1/fine_tuning/jobs", limit=limit)["data"]:
        created = datetime.fromtimestamp(job["created_at"]).strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(job["id"], job["status"], job["model"], job["fine_tuned_model"] or "", created)
    console.print(table)


@app.command()
def show(job_id: str) -> None:
    """One job, as the API gives it, and its events."""
    client = GatewayClient(load_settings())
    console.print_json(json.dumps(client.get(f"/v1/fine_tuning/jobs/{job_id}")))
    for event in _events(client, job_id):
        _print_event(event)


@app.command()
def watch(job_id: str) -> None:
    """Follow a job to its end, with a bar, the loss and the time left; status 1 unless it succeeds."""
    _watch(GatewayClient(load_settings()), job_id)


@app.command()
def cancel(job_id: str) -> None:
    """Cancel a job; its process ends within seconds."""
    console.print(GatewayClient(load_settings()).post(f"/v1/fine_tuning/jobs/{job_id}/cancel")["status"])


def _watch(client: GatewayClient, job_id: str) -> None:
    figures = TextColumn("{task.fields[figures]}")
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), figures)
    seen: set[str] = set()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("waiting", total=None, figures="")
        while True:
            job = client.get(f"/v1/fine_tuning/jobs/{job_id}")
            for event in _events(client, job_id):
                if event["id"] in seen:
                    continue
                seen.add(event["id"])
                if event["type"] == "metrics":
                    _advance(bar, task, event.get("data") or {})
                else:
                    _print_event(event)
            bar.update(task, description=job["status"])
            if job["status"] in ENDED:
                break
            time.sleep(0.3)
    if job["status"] != "succeeded":
        fail((job.get("error") or {}).get("message") or f"The job was {job['status']}.")


def _advance(bar: Progress, task: Any, figures: dict[str, Any]) -> None:
    parts = []
    if figures.get("loss") is not None:
        parts.append(f"loss {figures['loss']:.3f}")
    if figures.get("seconds_left") is not None:
        parts.append(f"{figures['seconds_left']:.0f} s left")
    bar.update(
        task, completed=figures.get("step"), total=figures.get("total_steps"), figures="  ".join(parts)
    )


def _events(client: GatewayClient, job_id: str) -> list[dict[str, Any]]:
    """All events, oldest first."""
    events: list[dict[str, Any]] = []
    after = None
    while True:
        page = client.get(f"/v1/fine_tuning/jobs/{job_id}/events", limit=100, after=after)
        events += page["data"]
        if not page["has_more"]:
            return sorted(events, key=lambda event: (event["created_at"], event["id"]))
        after = page["data"][-1]["id"]


def _print_event(event: dict[str, Any]) -> None:
    colour = {"warn": "yellow", "error": "red"}.get(event["level"], "default")
    clock = datetime.fromtimestamp(event["created_at"]).strftime("%H:%M:%S")
    console.print(f"[dim]{clock}[/dim] [{colour}]{event['message']}[/{colour}]", highlight=False)


def _pairs(items: list[str]) -> dict[str, str]:
    pairs = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            fail(f"{item!r} is not key=value.")
        pairs[key] = value
    return pairs


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
