"""Tokens are ordered by their epoch first, and a fence still compares what etcd knows: the create revision."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instep.etcd import Compare, KeyValue
from instep.names import REVISION_BITS
from instep.protocol.keys import Keys
from instep.protocol.records import Epoch, Leader, Manifest
from instep.protocol.transactions import proclaim, raise_epoch
from instep.recipes.fence import Fence
from instep.recipes.token import MAX_EPOCH, epoch_of, make_token, revision_of
from unit.parts import manifest

epochs = st.integers(0, MAX_EPOCH)
revisions = st.integers(0, 2**REVISION_BITS - 1)
KEYS = Keys("/training", "gpt-a")


@given(epochs, revisions)
def test_a_token_returns_its_epoch_and_revision(epoch: int, revision: int) -> None:
    token = make_token(epoch, revision)
    assert (epoch_of(token), revision_of(token)) == (epoch, revision)
    assert token < 2**63


@given(revisions)
def test_in_epoch_0_a_token_is_the_create_revision(revision: int) -> None:
    assert make_token(0, revision) == revision


@given(epochs, revisions, epochs, revisions)
def test_tokens_order_by_epoch_and_then_by_revision(e1: int, r1: int, e2: int, r2: int) -> None:
    assert (make_token(e1, r1) < make_token(e2, r2)) == ((e1, r1) < (e2, r2))


@pytest.mark.parametrize(("epoch", "revision"), [(-1, 0), (MAX_EPOCH + 1, 0), (0, -1), (0, 2**REVISION_BITS)])
def test_numbers_that_do_not_fit_make_no_token(epoch: int, revision: int) -> None:
    with pytest.raises(ValueError, match="no token"):
        make_token(epoch, revision)


def test_a_fence_compares_the_create_revision_whatever_the_epoch() -> None:
    fence = Fence("k", make_token(7, 42))
    assert fence.compare().text == Compare.create_revision("k", "==", 42).text
    assert fence.is_held(KeyValue("k", b"", 42, 50, 1, 0))
    assert not fence.is_held(KeyValue("k", b"", 43, 50, 1, 0))
    assert not fence.is_held(None)


def test_the_id_of_a_checkpoint_can_hold_the_largest_token() -> None:
    token = make_token(MAX_EPOCH, 2**REVISION_BITS - 1)
    made = manifest(10**18, token)
    assert Manifest.decode(made.encode()) == made


def test_an_epoch_is_begun_once_and_kept_for_the_history() -> None:
    txn = raise_epoch(KEYS, 0, Epoch(number=1, why="etcd was restored"))
    assert [item.text for item in txn.compares] == ["mod_revision of /training/gpt-a/state/epoch == 0"]
    assert [op.text for op in txn.then] == [
        "put /training/gpt-a/state/epoch",
        "put /training/gpt-a/history/epochs/1",
    ]
    late = raise_epoch(KEYS, 9, Epoch(number=130, why="again"))
    assert late.then[-1].text == "delete /training/gpt-a/history/epochs/30"


def test_a_leader_is_proclaimed_in_the_epoch_that_its_token_was_made_in() -> None:
    leader = Leader(node="n", rank=0, incarnation="abcde", candidate="c", token=make_token(2, 5), term=1)
    compares = [item.text for item in proclaim(KEYS, leader, epoch_revision=77).compares]
    assert compares == ["create_revision of c == 5", "mod_revision of /training/gpt-a/state/epoch == 77"]
