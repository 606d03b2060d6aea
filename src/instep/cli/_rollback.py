"""`instep rollback`: what held before a plan is wanted again, as one change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from instep.cli._options import EtcdOption, JsonOption, NamespaceOption, RunArgument, with_run
from instep.cli._output import talk
from instep.cli._receipt import (
    AuthorOption,
    TimeoutOption,
    WaitOption,
    WhyOption,
    check_timeout,
    is_awaited,
    receipt_of,
    tell,
)
from instep.errors import InstepError, SettingsError

if TYPE_CHECKING:
    from instep.cli._receipt import Receipt
    from instep.control import Keys, RolledBack
    from instep.etcd import Client


def rollback(
    run: RunArgument,
    plan: Annotated[
        str | None,
        typer.Argument(metavar="PLAN", help="Its number, or v and a view's, in 'instep history'. Default: the newest."),
    ] = None,
    why: WhyOption = None,
    author: AuthorOption = None,
    wait: WaitOption = None,
    timeout: TimeoutOption = 60.0,
    etcd: EtcdOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take back a change and all that came after it: the values from before PLAN, at one step, on every rank.

    It is a change itself: it shows in the history, and can be rolled back.
    """
    check_timeout(timeout)
    from instep.control import parse_moment

    moment = parse_moment(plan) if plan is not None else None
    if moment in ("start", "now"):
        raise SettingsError(f"{moment!r} names no plan: give a number, as 'instep history' shows it")

    async def work(client: Client, keys: Keys) -> tuple[RolledBack, Receipt | InstepError | None]:
        from instep import control

        view = control.view_of(moment) if moment is not None else None
        number = int(moment) if moment is not None and view is None else None
        done = await control.rollback(client, keys, number, view=view, author=author, reason=why)
        return done, await receipt_of(client, keys, done.written, timeout) if is_awaited(wait, as_json) else None

    done, end = with_run(work, run, etcd, namespace)
    if not as_json:
        talk(f"rollback of plan {done.plan}" if done.view is None else f"rollback of the start of view {done.view}")
    tell(done.written, end, as_json=as_json, wait=wait, plan=done.plan, view=done.view)
