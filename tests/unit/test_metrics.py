"""What the gateway counts, and how a scrape of one worker answers for all."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics import STALE_SECONDS, Metrics
from gateway.metrics_text import WorkerFigures, render_figures
from gateway.record import RequestRecord
from loraway.ids import ProjectId


class CountedStores:
    waiting, stored, failed = 3, 20, 1


def record(**fields: object) -> RequestRecord:
    values: dict[str, object] = {
        "request_id": "req_1",
        "path": "/v1/chat/completions",
        "started_at": 1000.0,
        "started": 10.0,
        "first_byte": 10.03,
        "ended": 10.5,
        "project_id": ProjectId("proj_1"),
        "target_name": "codename@1",
        "status": 200,
    }
    return RequestRecord(**{**values, **fields})  # type: ignore[arg-type]  # fields are each test's own


def samples(text: bytes) -> dict[str, list[tuple[dict[str, str], float]]]:
    """By name: labels and value, as Prometheus itself reads the text."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def finish(metrics: Metrics, **fields: object) -> None:
    metrics.on_start()
    metrics.on_end(record(**fields))


def test_requests_are_counted_by_model_and_status() -> None:
    metrics = Metrics()
    finish(metrics)
    finish(metrics)
    finish(metrics, status=429)
    finish(metrics, target_name="base")

    counted = samples(metrics.render())["loraway_requests_total"]

    assert sorted((labels["model"], labels["status"], value) for labels, value in counted) == [
        ("base", "200", 1.0),
        ("codename@1", "200", 2.0),
        ("codename@1", "429", 1.0),
    ]


def test_durations_and_first_bytes_of_streams_are_histograms() -> None:
    metrics = Metrics()
    finish(metrics, is_stream=True, chunks=7, prompt_tokens=5, completion_tokens=7)
    finish(metrics)  # not a stream: its first byte says nothing

    found = samples(metrics.render())

    assert found["loraway_request_duration_seconds_count"][0][1] == 2
    assert abs(found["loraway_request_duration_seconds_sum"][0][1] - 1.0) < 1e-9
    assert found["loraway_ttft_seconds_count"][0][1] == 1
    buckets = {labels["le"]: value for labels, value in found["loraway_ttft_seconds_bucket"]}
    assert (buckets["0.02"], buckets["0.04"], buckets["+Inf"]) == (0, 1, 1)
    assert found["loraway_stream_chunks_total"][0][1] == 7
    assert {labels["type"]: value for labels, value in found["loraway_tokens_total"]} == {
        "input": 5,
        "output": 7,
    }


def test_only_the_engines_faults_count_as_upstream_errors() -> None:
    metrics = Metrics()
    finish(metrics, status=502, error_code="upstream_error", retries=2)
    finish(metrics, status=404, error_code="model_not_found")

    found = samples(metrics.render())

    errors = found["loraway_upstream_errors_total"]
    assert [(labels["code"], value) for labels, value in errors] == [("upstream_error", 1.0)]
    assert found["loraway_upstream_retries_total"][0][1] == 2


def test_requests_in_flight_and_stores_are_shown() -> None:
    metrics = Metrics(traffic=CountedStores())
    metrics.on_start()
    metrics.on_start()
    metrics.on_end(record())

    found = samples(metrics.render())

    assert found["loraway_inflight_requests"][0][1] == 1
    assert {labels["outcome"]: value for labels, value in found["loraway_stored_total"]} == {
        "stored": 20,
        "not_stored": 1,
    }
    assert found["loraway_storing"][0][1] == 3
    assert found["process_resident_memory_bytes"][0][1] > 2**20


def test_names_from_clients_cannot_break_the_text() -> None:
    metrics = Metrics()
    finish(metrics, target_name='a"b\\c\nd')

    assert samples(metrics.render())["loraway_requests_total"][0][0]["model"] == 'a"b\\c\nd'


async def wait_for_file(path: Path) -> None:
    async with asyncio.timeout(10):
        while not path.exists():  # noqa: ASYNC110 - another task writes it
            await asyncio.sleep(0.01)


async def test_a_scrape_of_one_worker_answers_for_the_others(tmp_path: Path) -> None:
    first, second = Metrics(worker=0, run_dir=tmp_path), Metrics(worker=1, run_dir=tmp_path)
    finish(second)
    await first.start()
    await second.start()
    await wait_for_file(tmp_path / "metrics" / "worker-1.json")
    finish(first)

    found = samples(first.render())

    counted = {labels["worker"]: value for labels, value in found["loraway_requests_total"]}
    assert counted == {"0": 1.0, "1": 1.0}
    ages = {labels["worker"] for labels, _ in found["loraway_worker_snapshot_age_seconds"]}
    assert ages == {"0", "1"}
    await second.stop()
    assert {labels["worker"] for labels, _ in samples(first.render())["loraway_requests_total"]} == {"0"}
    await first.stop()


def test_a_worker_that_is_gone_or_wrote_nonsense_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    (folder / "worker-7.json").write_text("{")
    old = time.time() - STALE_SECONDS - 1
    (folder / "worker-8.json").write_text(f'{{"worker": 8, "read_at": {old}}}')
    metrics = Metrics(run_dir=tmp_path)

    workers = {labels["worker"] for labels, _ in samples(metrics.render())["loraway_inflight_requests"]}

    assert workers == {"0"}


def test_every_family_says_what_it_is() -> None:
    text = render_figures([WorkerFigures(worker=0, read_at=1.0)], now=2.0).decode()

    families = list(text_string_to_metric_families(text))
    assert all(family.documentation and family.type != "unknown" for family in families)
    assert text.count("# HELP") == text.count("# TYPE") == len(families)
