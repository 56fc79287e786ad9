# SPDX-License-Identifier: Apache-2.0
"""``shoal queue`` on the files of any service."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from shoal.cli.app import main
from shoal.queue.config import queue_file
from shoal.queue.database import QueueDatabase
from shoal.queue.tasks import State

ONE, TWO = (f"sha256:{character * 64}" for character in "ab")


def fill(folder: Path, queue: str, *keys: str) -> None:
    database = QueueDatabase.open_to_work(queue_file(folder, queue), latest_due=1e12)
    try:
        for number, key in enumerate(keys):
            database.transact([partial(database.add, key, '{"a": 1}', 1.0 + number)])
    finally:
        database.close()


def states(folder: Path, queue: str) -> dict[str, State]:
    database = QueueDatabase.open_beside(queue_file(folder, queue))
    try:
        found = database.tasks(list(State), -1)
    finally:
        database.close()
    return {task.key: task.state for task in found}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["queue", *arguments])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    fill(tmp_path, "writeback", f"s3://bucket|{ONE}", f"s3://bucket|{TWO}")
    fill(tmp_path, "tags", "team/app:v1")
    return tmp_path


def listed(data: Path, *arguments: str) -> list[tuple[str, str]]:
    done = run("list", "--json", "--data-dir", str(data), *arguments)
    assert done.exit_code == 0, done.output
    return [(task["queue"], task["key"]) for task in json.loads(done.stdout)]


def test_all_queues_of_a_service_are_listed_or_one(data: Path) -> None:
    tags = [("tags", "team/app:v1")]
    writeback = [("writeback", f"s3://bucket|{ONE}"), ("writeback", f"s3://bucket|{TWO}")]
    assert listed(data) == tags + writeback
    assert listed(data, "--queue", "tags") == tags
    lines = run("list", "--data-dir", str(data))
    assert "tags: 1 waiting, 0 running, 0 dead" in lines.output
    assert "writeback: 2 waiting, 0 running, 0 dead" in lines.output


def test_a_task_is_named_by_its_key_or_digest(data: Path) -> None:
    for name in (ONE, f"s3://bucket|{ONE}"):
        shown = run("show", name, "--data-dir", str(data))
        assert json.loads(shown.stdout)["key"] == f"s3://bucket|{ONE}"
    assert run("show", "sha256:other", "--data-dir", str(data)).exit_code == 1


def test_tasks_are_dropped_and_retried_where_they_are(data: Path) -> None:
    done = run("drop", ONE, "team/app:v1", "--data-dir", str(data))
    assert done.exit_code == 0, done.output
    assert f"dropped: s3://bucket|{ONE}" in done.stdout
    assert states(data, "writeback") == {
        f"s3://bucket|{ONE}": State.DROPPED,
        f"s3://bucket|{TWO}": State.WAITING,
    }
    assert states(data, "tags") == {"team/app:v1": State.DROPPED}
    missed = run("retry", ONE, TWO, "--data-dir", str(data))
    assert missed.exit_code == 1
    assert f"due now: s3://bucket|{TWO}" in missed.stdout
    assert f"not in the queue, or being worked on now: {ONE}" in missed.output


def test_the_dead_of_all_queues_are_retried_at_once(data: Path) -> None:
    for queue in ("writeback", "tags"):
        database = QueueDatabase.open_beside(queue_file(data, queue))
        database._connection.execute("UPDATE tasks SET state = 'dead'")
        database.close()
    done = run("retry", "--dead", "--data-dir", str(data))
    assert done.exit_code == 0, done.output
    assert done.stdout.count("due now") == 3
    assert set(states(data, "writeback").values()) == {State.WAITING}


@pytest.mark.parametrize(
    "config",
    [
        {"origins": {"hosts": ["a:1", "b:1", "127.0.0.1:5002"]}, "gc": {"grace": "1h"}},
        {"origins": {"hosts": ["a:1", "b:1", "c:1"]}, "build_index": {"hosts": ["i:1"]}},
    ],
    ids=["origin", "proxy"],
)
def test_the_config_of_any_service_will_do(data: Path, config: dict[str, object]) -> None:
    file = data / "service.yaml"
    file.write_text(yaml.safe_dump({"data_dir": str(data), **config}))
    done = run("list", "--json", "--config", str(file))
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)) == 3
    file.write_text(yaml.safe_dump({"data_dir": str(data), **config, "lisen": "a:1"}))
    assert "lisen" in run("list", "--config", str(file)).output


def test_a_folder_without_queues_is_said_to_have_none(tmp_path: Path) -> None:
    done = run("list", "--data-dir", str(tmp_path))
    assert done.exit_code == 1
    assert "there is no queue at" in done.output
