"""Every asyncio task has an owner that notices how it ends: only `instep.tasks` starts any."""

from __future__ import annotations

import ast
import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import instep
from async_support import run, until
from instep.tasks import Background, all_of, first_of

SOURCE = Path(instep.__file__).resolve().parent
BESIDE = [SOURCE.parent / name for name in ("instep_torchrun.py", "instep_command.py")]
HELPER = SOURCE / "tasks.py"

STARTS = {"create_task", "ensure_future", "gather", "shield", "as_completed", "run_coroutine_threadsafe"}
"""What makes a task of a coroutine. `asyncio.wait` takes tasks, and `wait_for` leaves none behind."""

WITH_A_CALLER_THAT_WAITS = {
    "testing/_proxy_thread.py": "the thread that asks waits for the result",
    "torch/_rendezvous/loop_thread.py": "the calling thread waits for the result; on exit, for the thread's end",
}
"""The only other modules that start any, each from another thread."""


def unowned(source: str) -> Iterator[str]:
    """Calls that start a task, but for those of an `asyncio.TaskGroup`."""
    tree = ast.parse(source)
    groups = {
        item.optional_vars.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncWith)
        for item in node.items
        if isinstance(item.optional_vars, ast.Name) and ast.unparse(item.context_expr).endswith("TaskGroup()")
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "asyncio":
            yield from (f"line {node.lineno}: {alias.name}" for alias in node.names if alias.name in STARTS)
        if isinstance(node, ast.Attribute) and node.attr in STARTS and ast.unparse(node.value) not in groups:
            yield f"line {node.lineno}: {ast.unparse(node)}"


def test_only_the_helper_starts_tasks() -> None:
    found = {
        os.path.relpath(path, SOURCE): starts
        for path in (*SOURCE.rglob("*.py"), *BESIDE)
        if path != HELPER and (starts := list(unowned(path.read_text())))
    }
    assert {name: starts for name, starts in found.items() if name not in WITH_A_CALLER_THAT_WAITS} == {}
    assert set(WITH_A_CALLER_THAT_WAITS) <= set(found)


@pytest.mark.parametrize(
    "source",
    [
        "asyncio.create_task(work())",
        "task = asyncio.ensure_future(work())",
        "loop.create_task(work())",
        "from asyncio import create_task",
        "await asyncio.gather(one(), other())",
        "start = asyncio.get_running_loop().create_task",
    ],
)
def test_a_task_without_an_owner_is_found(source: str) -> None:
    assert list(unowned(f"async def f():\n    {source}"))


def test_a_task_of_a_task_group_has_an_owner() -> None:
    source = "async def f():\n    async with asyncio.TaskGroup() as group:\n        group.create_task(work())"
    assert not list(unowned(source))


async def _fails(text: str) -> None:
    raise ValueError(text)


def test_a_background_task_that_fails_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        seen: list[BaseException] = []
        async with Background("the watch", seen.append) as background, Background("the write") as logged:
            background.start(_fails("one"))
            logged.start(_fails("two"))
            await until(lambda: not background and not logged)
        assert [str(error) for error in seen] == ["one"]

    run(main())
    (record,) = caplog.records
    assert record.getMessage() == "the write failed"
    assert record.exc_info
    assert str(record.exc_info[1]) == "two"


def test_leaving_ends_the_background_tasks() -> None:
    async def main() -> None:
        async with Background("waits") as background:
            task = background.start(asyncio.sleep(60))
        assert task.cancelled()
        assert not background

    run(main())


def test_the_first_to_end_ends_the_others() -> None:
    async def main() -> None:
        await first_of(asyncio.sleep(60), asyncio.sleep(0))
        with pytest.raises(ValueError, match="over"):
            await first_of(asyncio.sleep(60), _fails("over"))

    run(main())


def test_all_of_gives_every_result_or_the_first_failure() -> None:
    async def main() -> None:
        assert await all_of(asyncio.sleep(0, 1), asyncio.sleep(0, "a")) == (1, "a")
        with pytest.raises(ValueError, match="first"):
            await all_of(asyncio.sleep(60), _fails("first"))

    run(main())
