"""The cases of PyTorch's own rendezvous tests, in our words: a situation, and what is to come of it.

A situation is a row of nodes in the order of their coming: `a1` is at work in round 1, `a1?` was in it and asks for
the next, `a0?` asks for its first. The round that stands is `1:ab` (its number, its nodes by rank), and `1:ab!` once it
is wanted anew. The run has `--nnodes=MIN:MAX`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from instep.rendezvous.decision import (
    RefuseNode,
    RegisteredNode,
    RendezvousSituation,
    decide,
    round_status,
)
from instep.rendezvous.records import Closed, Limits, Registration, Round, Seat


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`outcome`: "round 2: a b", "last call", "wanted", "not wanted any more", or "" for nothing at all."""

    name: str
    nnodes: tuple[int, int]
    nodes: str
    outcome: str
    round: str = ""
    gone: str = ""
    """Nodes that are known to have left for good."""
    closed: bool = False
    calm: bool = True
    """Etcd has been within reach for so long that an absent node is a dead one."""
    last_call_over: bool = False

    def scene(self) -> RendezvousSituation:
        limits = Limits(min_nodes=self.nnodes[0], max_nodes=self.nnodes[1])
        return RendezvousSituation(
            nodes=tuple(_registered(word, token, limits) for token, word in enumerate(self.nodes.split(), start=100)),
            round=_round(self.round, limits),
            closed=Closed(epoch=1) if self.closed else None,
            gone=frozenset(self.gone),
            etcd_stable=self.calm,
            last_call_over=self.last_call_over,
        )


def _registered(word: str, token: int, limits: Limits) -> RegisteredNode:
    name, round_, asks = word[0], int(word.rstrip("?")[1:]), word.endswith("?")
    return RegisteredNode(
        name, token, Registration(epoch=1, host=f"host-{name}", pid=token, limits=limits, round=round_, asks=asks)
    )


def _round(text: str, limits: Limits) -> Round | None:
    if not text:
        return None
    number, names = text.rstrip("!").split(":")
    seats = tuple(Seat(node=name, host=f"host-{name}", pid=1) for name in names)
    return Round(epoch=1, number=int(number), limits=limits, seats=seats, wanted=text.endswith("!"))


def outcome(scene: RendezvousSituation) -> str:
    """What the coordinator does in this situation, in the words of `Case.outcome`."""
    action = decide(scene)
    if action is None:
        return "last call" if round_status(scene).is_last_call else ""
    if isinstance(action, RefuseNode):
        return f"refused: {action.node}"
    made = action.round
    if scene.round is None or made.number != scene.round.number:
        return f"round {made.number}: {' '.join(seat.node for seat in made.seats)}"
    return "wanted" if made.wanted else "not wanted any more"


_NAMES = "abcd"


def _asking(count: int) -> str:
    return " ".join(f"{name}0?" for name in _NAMES[:count])


def _last_calls() -> Iterable[Case]:
    for count in (1, 2, 3):
        yield Case(
            name=f"the last call begins when {count} make the least number",
            nnodes=(count, count + 1),
            nodes=_asking(count),
            outcome="last call",
        )


def _complete_at_once() -> Iterable[Case]:
    for count in (1, 2, 3):
        for least in sorted({1, count}):
            yield Case(
                name=f"{count} of at least {least} are complete at once when that is the most",
                nnodes=(least, count),
                nodes=_asking(count),
                outcome=f"round 1: {' '.join(_NAMES[:count])}",
            )


CASES: tuple[Case, ...] = (
    # -- joining -------------------------------------------------------------------------------------------------------
    Case(name="nobody there", nnodes=(1, 1), nodes="", outcome=""),
    Case(name="the first of two waits", nnodes=(2, 2), nodes="a0?", outcome=""),
    *_last_calls(),
    *_complete_at_once(),
    Case(
        name="during the last call nothing happens but more may come",
        nnodes=(2, 3),
        nodes="a0? b0?",
        outcome="last call",
    ),
    Case(
        name="once the last call is over the least number is enough",
        nnodes=(2, 3),
        nodes="a0? b0?",
        last_call_over=True,
        outcome="round 1: a b",
    ),
    Case(
        name="a last call that is over helps nobody below the least number",
        nnodes=(3, 4),
        nodes="a0? b0?",
        last_call_over=True,
        outcome="",
    ),
    Case(
        name="who waited for the last round is in the next",
        nnodes=(2, 3),
        nodes="a1? b1? c0?",
        round="1:ab!",
        outcome="round 2: a b c",
    ),
    # -- ranks ---------------------------------------------------------------------------------------------------------
    Case(
        name="ranks are given in the order of coming, whatever the names",
        nnodes=(3, 3),
        nodes="c0? a0? b0?",
        outcome="round 1: c a b",
    ),
    Case(
        name="who had a rank keeps its place in the order, and newcomers follow",
        nnodes=(2, 4),
        nodes="d0? b2? a2? c2?",
        round="2:cab!",
        outcome="round 3: c a b d",
    ),
    Case(
        name="ranks close up where a node is missing",
        nnodes=(2, 3),
        nodes="c1? b1?",
        round="1:abc!",
        gone="a",
        last_call_over=True,
        outcome="round 2: b c",
    ),
    # -- a round that is complete --------------------------------------------------------------------------------------
    Case(name="a complete round stands", nnodes=(2, 2), nodes="a1 b1", round="1:ab", outcome=""),
    Case(
        name="a node that has not yet noticed its round is in it all the same",
        nnodes=(2, 2),
        nodes="a1 b0?",
        round="1:ab",
        outcome="",
    ),
    Case(
        name="a newcomer for whom there is room makes the round wanted",
        nnodes=(1, 2),
        nodes="a1 b0?",
        round="1:a",
        outcome="wanted",
    ),
    Case(
        name="a round is wanted once, however long the newcomer waits",
        nnodes=(1, 2),
        nodes="a1 b0?",
        round="1:a!",
        outcome="last call",
    ),
    Case(
        name="a newcomer that goes away again makes nobody stop",
        nnodes=(1, 2),
        nodes="a1",
        round="1:a!",
        outcome="not wanted any more",
    ),
    Case(name="a node too many is passed over", nnodes=(1, 1), nodes="a1 b0?", round="1:a", outcome=""),
    Case(
        name="a node too many is let in once a place is free",
        nnodes=(1, 2),
        nodes="a1 c0?",
        round="1:ab",
        gone="b",
        outcome="wanted",
    ),
    Case(
        name="a node too many gets the free place in the next round",
        nnodes=(1, 2),
        nodes="a1? c0?",
        round="1:ab!",
        gone="b",
        outcome="round 2: a c",
    ),
    Case(
        name="of too many at once those who came last are passed over",
        nnodes=(1, 2),
        nodes="b0? c0? a0?",
        outcome="round 1: b c",
    ),
    # -- leaving -------------------------------------------------------------------------------------------------------
    Case(
        name="a node that leaves its round to join again makes the others join too",
        nnodes=(2, 3),
        nodes="a1 b1 c1?",
        round="1:abc",
        outcome="wanted",
    ),
    Case(
        name="a node that gave up before the round was complete is not waited for",
        nnodes=(2, 3),
        nodes="a0? b0?",
        gone="c",
        outcome="last call",
    ),
    Case(
        name="the last of a round to leave it begins the next",
        nnodes=(1, 1),
        nodes="a1?",
        round="1:a",
        outcome="round 2: a",
    ),
    Case(
        name="the last call is off once too few are left",
        nnodes=(3, 4),
        nodes="a0? b0?",
        outcome="",
    ),
    # -- the dead ------------------------------------------------------------------------------------------------------
    Case(
        name="the dead are not waited for",
        nnodes=(2, 3),
        nodes="a1? b1?",
        round="1:abc!",
        last_call_over=True,
        outcome="round 2: a b",
    ),
    Case(
        name="a dead newcomer is no newcomer",
        nnodes=(1, 2),
        nodes="a1",
        round="1:a",
        gone="b",
        outcome="",
    ),
    Case(
        name="nodes that trouble with etcd may have hidden count as alive",
        nnodes=(2, 3),
        nodes="a1? b1?",
        round="1:abc!",
        calm=False,
        last_call_over=True,
        outcome="last call",
    ),
    Case(
        name="nodes that are known to have gone do not, whatever the trouble",
        nnodes=(2, 3),
        nodes="a1? b1?",
        round="1:abc!",
        gone="c",
        calm=False,
        last_call_over=True,
        outcome="round 2: a b",
    ),
    Case(name="after all have died the round is nobody's", nnodes=(1, 2), nodes="", round="3:ab", outcome=""),
    Case(
        name="after all have died the next to come form the next round",
        nnodes=(1, 2),
        nodes="c0? d0?",
        round="3:ab",
        outcome="round 4: c d",
    ),
    # -- the end -------------------------------------------------------------------------------------------------------
    Case(
        name="nothing is formed of a run that is closed",
        nnodes=(2, 2),
        nodes="a1? b1?",
        round="1:ab!",
        closed=True,
        outcome="",
    ),
    Case(
        name="newcomers do not change that",
        nnodes=(1, 2),
        nodes="a0? b0?",
        closed=True,
        last_call_over=True,
        outcome="",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """To write the round `number`, knowing only so much of what is there, in a term."""

    number: int
    knows: Literal["nothing", "what was before", "all"] = "all"
    """ "what was before": as it was before the last attempt."""
    term: Literal["its own", "another's"] = "its own"
    closed_before: bool = False
    """The run is closed by somebody else just before, and that is not known yet."""
    taken: bool


@dataclass(frozen=True, slots=True)
class Contract:
    name: str
    attempts: tuple[Attempt, ...]


CONTRACTS: tuple[Contract, ...] = (
    Contract("the first round needs none before it", (Attempt(number=1, taken=True),)),
    Contract(
        "whoever knows the round as it is replaces it",
        (Attempt(number=1, taken=True), Attempt(number=2, taken=True), Attempt(number=3, taken=True)),
    ),
    Contract(
        "what was read before the last change replaces nothing",
        (
            Attempt(number=1, taken=True),
            Attempt(number=2, taken=True),
            Attempt(number=3, knows="what was before", taken=False),
            Attempt(number=3, taken=True),
        ),
    ),
    Contract(
        "whoever believes that there is no round replaces none",
        (Attempt(number=1, taken=True), Attempt(number=2, knows="nothing", taken=False)),
    ),
    Contract(
        "a term that is over replaces nothing, whatever is known",
        (Attempt(number=1, taken=True), Attempt(number=2, term="another's", taken=False)),
    ),
    Contract(
        "a term that is over begins nothing",
        (Attempt(number=1, knows="nothing", term="another's", taken=False),),
    ),
    Contract(
        "a run that was closed meanwhile gets no further round",
        (Attempt(number=1, taken=True), Attempt(number=2, closed_before=True, taken=False)),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What torchrun passes on from its command line, and the sentence about it; "" where it is fine."""

    name: str
    endpoint: str = "localhost:2379"
    conf: Mapping[str, str | int] = field(default_factory=dict)
    run_id: str = "ported"
    nnodes: tuple[int, int] = (1, 1)
    says: str = ""
    """A part of the sentence."""


ACCEPTED: tuple[tuple[Given, Mapping[str, object]], ...] = (
    (
        Given(name="nothing but the endpoint"),
        {"join_s": 600.0, "last_call_s": 30.0, "close_s": 30.0, "read_s": 60.0, "ttl_s": 15, "local_addr": None},
    ),
    (
        Given(
            name="times of one's own",
            conf={"join_timeout": "50", "last_call_timeout": "60", "close_timeout": "70", "read_timeout": "10"},
        ),
        {"join_s": 50.0, "last_call_s": 60.0, "close_s": 70.0, "read_s": 10.0},
    ),
    (
        Given(name="keep-alive of one's own", conf={"keep_alive_interval": "2", "keep_alive_max_attempt": "5"}),
        {"ttl_s": 10},
    ),
    (Given(name="numbers with spaces around them", conf={"join_timeout": "  4 "}), {"join_s": 4.0}),
    (Given(name="as many at least as at most", nnodes=(3, 3)), {"limits": Limits(min_nodes=3, max_nodes=3)}),
    (Given(name="one at least", nnodes=(1, 6)), {"limits": Limits(min_nodes=1, max_nodes=6)}),
    (Given(name="what torchrun always adds", conf={"timeout": 900}), {"join_s": 600.0}),
)


def _refused() -> Iterable[Given]:
    for value in ("0", "-1", "-10"):
        for name in ("join_timeout", "close_timeout", "read_timeout", "keep_alive_interval"):
            yield Given(name=f"{name}={value}", conf={name: value}, says=f"{name}={value}: it must be between")
    for value in ("a", "0a", "3b", "abc", "", "1.5"):
        yield Given(
            name=f"keep_alive_max_attempt={value}",
            conf={"keep_alive_max_attempt": value},
            says="it must be a whole number",
        )
    for value in ("a", "3b", "", "nan"):
        yield Given(name=f"join_timeout={value}", conf={"join_timeout": value}, says=f"join_timeout={value}: it must")


REFUSED: tuple[Given, ...] = (
    *_refused(),
    Given(name="a last call of less than no time", conf={"last_call_timeout": "-1"}, says="must be between"),
    Given(name="the protocol of etcd-v2", conf={"protocol": "dummy"}, says="write the endpoints as https://"),
    Given(name="the store of c10d", conf={"store_type": "file"}, says="each round has a TCPStore of its own"),
    Given(name="the host of c10d", conf={"is_host": "true"}, says="no agent hosts the rendezvous"),
    Given(name="what torchrun always adds, as a wish", conf={"timeout": "900"}, says="'join_timeout' with etcd3"),
    Given(name="an option that nobody knows", conf={"dummy_param": "x"}, says="does not know"),
    Given(name="no run id", run_id="", says="--rdzv-id"),
    Given(name="none at least", nnodes=(0, 1), says="must be greater than zero"),
    Given(name="less than none at least", nnodes=(-5, 1), says="must be greater than zero"),
    Given(name="less at most than at least", nnodes=(3, 2), says="greater than or equal to the minimum"),
    Given(name="an endpoint that is none", endpoint="dummy://x:1", says="dummy"),
)
"""What torch itself refuses before it asks us is here too: the sentence is then torch's."""
