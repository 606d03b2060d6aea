"""`instep reset`: the failures of a run are forgotten, so that it may be restarted again."""

from __future__ import annotations

from instep.cli._options import EtcdOption, JsonOption, NamespaceOption, RunArgument, with_run
from instep.cli._output import document, line
from instep.cli._receipt import AuthorOption, WhyOption


def reset(
    run: RunArgument,
    why: WhyOption = None,
    author: AuthorOption = None,
    etcd: EtcdOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Forget the failures of a run: it may be restarted again as often as max_restarts says.

    Needed when joins are refused because the run has failed too often; a run that ends cleanly forgets them by itself.
    """
    from instep import control

    was = with_run(lambda client, keys: control.reset(client, keys, author=author, reason=why), run, etcd, namespace)
    if as_json:
        document(was.to_json())
        return
    count = was.before.count
    if not count:
        line(f"{run}: no failure was counted, so there is nothing to reset")
        return
    line(f"{run}: reset, {count} failure{'' if count == 1 else 's'} forgotten ({was.before.causes})")
