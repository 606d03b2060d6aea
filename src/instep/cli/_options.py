"""Options that several commands share, and what they amount to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from instep.cli import _completion

if TYPE_CHECKING:
    from instep.control import Keys
    from instep.etcd import Client

T = TypeVar("T")

RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="The run's name, as given to instep.join, or torchrun's --rdzv-id.",
        autocompletion=_completion.runs,
    ),
]
EtcdOption = Annotated[
    str | None,
    typer.Option(
        "--etcd", metavar="URLS", help="etcd endpoints, comma separated. Default: INSTEP_ETCD, then a local one."
    ),
]
NamespaceOption = Annotated[
    str | None,
    typer.Option(
        "--namespace", metavar="PREFIX", help="Key prefix of all runs. Default: INSTEP_NAMESPACE, then /training."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]


@dataclass(slots=True)
class Target:
    """Which etcd and which namespace: given before or after the command's name; after it wins."""

    etcd: str | None = None
    namespace: str | None = None


_given = Target()


def remember(etcd: str | None, namespace: str | None) -> None:
    """Keep what was given before the command's name."""
    _given.etcd, _given.namespace = etcd, namespace


def with_client(work: Callable[[Client, str], Awaitable[T]], etcd: str | None, namespace: str | None) -> T:
    """Run `work(client, namespace)` against the etcd that the options and the environment name."""
    from instep.control import connect
    from instep.settings import resolve

    settings = resolve(etcd or _given.etcd, namespace=namespace or _given.namespace)

    async def connected() -> T:
        async with connect(settings) as client:
            return await work(client, settings.namespace)

    return asyncio.run(connected())


def with_run(work: Callable[[Client, Keys], Awaitable[T]], run: str, etcd: str | None, namespace: str | None) -> T:
    """As `with_client`, for one run; its name is checked before anything is contacted."""
    from instep.control import Keys
    from instep.names import check_run_name

    check_run_name(run)
    return with_client(lambda client, prefix: work(client, Keys(prefix, run)), etcd, namespace)
