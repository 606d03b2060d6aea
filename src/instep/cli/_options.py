"""Arguments and options that several commands share.

A command takes a group of options as one keyword argument, such as `target: Target`. `command_line` shows the command
line each option of the group by itself.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_origin, get_type_hints

import typer

from instep.cli import _completion
from instep.errors import SettingsError

if TYPE_CHECKING:
    from instep.control import Keys
    from instep.etcd import Client

T = TypeVar("T")

MAX_TIMEOUT_S = 86400.0

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
WhyOption = Annotated[str | None, typer.Option("--why", metavar="TEXT", help="The reason, for the history.")]
AuthorOption = Annotated[str | None, typer.Option("--author", help="The author, for the history. Default: user@host.")]
WaitOption = Annotated[
    bool | None,
    typer.Option(
        "--wait/--no-wait",
        help="Wait until every rank has done it. Default: wait on a terminal, not in scripts.",
        show_default=False,
    ),
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", help="How long --wait waits, up to a day.")
]


@dataclass(frozen=True, slots=True)
class Asking:
    """The options of every command that changes a run and has a receipt. Raises SettingsError for a timeout that is not
    usable."""

    why: WhyOption = None
    author: AuthorOption = None
    wait: WaitOption = None
    timeout: TimeoutOption = 60.0

    def __post_init__(self) -> None:
        if not 0 < self.timeout <= MAX_TIMEOUT_S:
            raise SettingsError(f"a timeout of {self.timeout:g} s is not usable: give more than 0 and up to 86400")

    def waits(self, *, as_json: bool) -> bool:
        """Whether to wait for the receipt: as the option says, else if a person looks at the output."""
        return self.wait if self.wait is not None else not as_json and sys.stdout.isatty()


@dataclass(frozen=True, slots=True)
class Target:
    """Which etcd and namespace, and how to print. What is given after the command's name overrides what is given before
    it."""

    etcd: EtcdOption = None
    namespace: NamespaceOption = None
    as_json: JsonOption = False

    def with_client(self, work: Callable[[Client, str], Awaitable[T]]) -> T:
        """Run `work(client, namespace)` against the etcd that the options and the environment name."""
        from instep.control import connect
        from instep.settings import resolve

        settings = resolve(self.etcd or _before.etcd, namespace=self.namespace or _before.namespace)

        async def connected() -> T:
            async with connect(settings) as client:
                return await work(client, settings.namespace)

        return asyncio.run(connected())

    def with_run(self, run: str, work: Callable[[Client, Keys], Awaitable[T]]) -> T:
        """Run `work(client, keys)` for one run. Its name is checked before etcd is contacted."""
        from instep.control import Keys
        from instep.names import check_run_name

        check_run_name(run)
        return self.with_client(lambda client, prefix: work(client, Keys(prefix, run)))


_before = Target()


def remember(etcd: str | None, namespace: str | None) -> None:
    """Keep the options that are given before the command's name."""
    global _before
    _before = Target(etcd, namespace)


def command_line(
    command: Callable[..., None], takes: Mapping[str, tuple[Any, Any]] = MappingProxyType({})
) -> Callable[..., None]:
    """The command as typer reads it: each parameter that is a group of options is replaced by those options.

    `takes` has the type and default of parameters that the command declares without an option or argument of the
    command line. It does not take the others of these.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if is_dataclass(hint) and isinstance(hint, type)}
    shown: dict[str, tuple[Any, Any]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            types = get_type_hints(groups[name], include_extras=True)
            shown |= {item.name: (types[item.name], item.default) for item in fields(groups[name])}
        elif name in takes:
            shown[name] = takes[name]
        elif get_origin(hints[name]) is Annotated:
            shown[name] = hints[name], parameter.default

    @wraps(command)
    def called(**given: Any) -> None:
        grouped = {
            name: kind(**{item.name: given.pop(item.name) for item in fields(kind)}) for name, kind in groups.items()
        }
        command(**given, **grouped)

    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint, default=default)
        for name, (hint, default) in shown.items()
    ]
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect reads it
    called.__annotations__ = {name: hint for name, (hint, _) in shown.items()}
    return called
