"""A witness: it cosigns what extends what it cosigned before, and nothing else, whoever asks and whatever crashes."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ledger_client import (
    EMPTY_ROOT,
    Checkpoint,
    Note,
    Refusal,
    Signer,
    Submission,
    Witness,
    WitnessRefused,
    WitnessSigner,
    WitnessState,
    WitnessStateError,
    verify_consistency,
)
from ledger_client.witness import MAX_SUBMISSION_BYTES, decide, examine, trusted
from ledger_client.witness_state import origin_hash

from .conftest import ORIGIN
from .trees import Tree, hashed

LOG = Signer.generate(ORIGIN)
LOGS = trusted([LOG.verifier])
SIGNER = WitnessSigner.generate("witness.example/w1")
TREE = Tree(LOG, hashed(*map(str, range(20))))
FORK = Tree(LOG, [*TREE.leaves[:4], *hashed(*(f"other {number}" for number in range(4, 20)))])

# The example of c2sp.org/tlog-witness
C2SP_BODY = """\
old 20852014
PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=
jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=
5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=
/6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=

example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
— example.com/behind-the-sofa opLqBQsREYCgu6xQkYQwJr9fo45a62DN9EdmHXnZdXNqlcVGlCum2Wks+49/V6267UEjw6QUXTS5Rovnzv++qbSzm9Q=
"""  # noqa: E501 - as published


def refusal_of(submission: Submission, last: Checkpoint | None = None) -> Refusal | None:
    try:
        decide(examine(submission, LOGS), last)
    except WitnessRefused as refused:
        return refused.refusal
    return None


def test_the_example_of_add_checkpoint_parses() -> None:
    submission = Submission.parse(C2SP_BODY.encode())
    assert submission.old_size == 20_852_014
    assert len(submission.proof) == 4
    assert submission.note.startswith("example.com/behind-the-sofa\n")
    assert submission.format() == C2SP_BODY


@given(st.integers(0, 20), st.integers(0, 20))
def test_parse_undoes_format(old_size: int, size: int) -> None:
    submission = TREE.submission(min(old_size, size), size)
    assert Submission.parse(submission.format().encode()) == submission


GOOD = TREE.submission(3, 7).format()


@pytest.mark.parametrize(
    "body",
    [
        *["", "\n", "old 3", "old 3\n", "old 3\n\n", "old 3\n" + TREE.note(7), GOOD.removeprefix("old 3\n")],
        *[
            GOOD.replace("old 3", other, 1)
            for other in (
                "old 03",
                "old +3",
                "old -3",
                "old ３",
                "old  3",
                "old\t3",
                "Old 3",
                "old 3 ",
                "old",
                "old 3.0",
                "size 3",
                "old 9223372036854775808",
            )
        ],
        *[GOOD.replace("\n", "\r\n"), GOOD.replace("\n\n", "\n", 1), "\n" + GOOD, GOOD + "\n", GOOD.removesuffix("\n")],
        GOOD.replace("=\n", "\n", 1),
        GOOD.replace("=\n", "=\nAAAA\n", 1),
        GOOD.replace("=\n", "=\n" + "A" * 43 + "=\n" * 1, 1).replace("old 3\n", "old 3\n" + ("A" * 43 + "=\n") * 63),
        GOOD.replace("— ", "- "),
        GOOD.replace(f"{ORIGIN}\n", "\n", 1),
        GOOD.replace("\n7\n", "\n07\n"),
        GOOD.replace("\n7\n", "\n7\n\n"),
    ],
)
def test_malformed_submissions_are_refused(body: str) -> None:
    with pytest.raises(WitnessRefused) as caught:
        examine(Submission.parse(body.encode()), LOGS)
    assert caught.value.refusal is Refusal.MALFORMED


@pytest.mark.parametrize("body", [b"\xff\xfe", GOOD.encode("utf-16"), b"o" * (MAX_SUBMISSION_BYTES + 1)])
def test_bytes_that_are_no_text_are_refused(body: bytes) -> None:
    with pytest.raises(WitnessRefused) as caught:
        Submission.parse(body)
    assert caught.value.refusal is Refusal.MALFORMED


def test_a_first_checkpoint_needs_no_proof() -> None:
    assert refusal_of(TREE.submission(0, 7)) is None
    assert refusal_of(TREE.submission(0, 0)) is None
    padded = Submission(old_size=0, proof=(bytes(32),), note=TREE.note(7))
    assert refusal_of(padded) is Refusal.INCONSISTENT


def test_an_empty_tree_has_one_root() -> None:
    note = LOG.sign(Checkpoint(origin=ORIGIN, size=0, root=bytes(32)))
    assert refusal_of(Submission(old_size=0, proof=(), note=note)) is Refusal.INCONSISTENT


@given(st.integers(1, 20), st.integers(1, 20))
def test_whatever_extends_is_cosigned(old_size: int, size: int) -> None:
    old_size, size = sorted((old_size, size))
    assert refusal_of(TREE.submission(old_size, size), TREE.checkpoint(old_size)) is None


def test_an_old_size_that_is_not_the_last_is_answered_with_the_last() -> None:
    for old_size in (0, 3, 6):
        with pytest.raises(WitnessRefused) as caught:
            decide(examine(TREE.submission(old_size, 7), LOGS), TREE.checkpoint(5))
        assert (caught.value.refusal, caught.value.size) == (Refusal.STALE, 5)
    with pytest.raises(WitnessRefused) as caught:
        decide(examine(TREE.submission(3, 7), LOGS), None)
    assert (caught.value.refusal, caught.value.size) == (Refusal.STALE, 0)


def test_a_rollback_is_refused_however_it_is_put() -> None:
    last = TREE.checkpoint(7)
    assert refusal_of(TREE.submission(0, 5), last) is Refusal.STALE
    assert refusal_of(TREE.submission(5, 5), last) is Refusal.STALE
    shrinking = Submission(old_size=7, proof=(), note=TREE.note(5))
    assert refusal_of(shrinking, last) is Refusal.MALFORMED


def test_a_fork_is_refused_however_it_is_put() -> None:
    last = TREE.checkpoint(7)
    assert refusal_of(FORK.submission(7, 7), last) is Refusal.INCONSISTENT
    assert refusal_of(FORK.submission(7, 9), last) is Refusal.INCONSISTENT
    assert refusal_of(Submission(old_size=7, proof=TREE.proof(7, 9), note=FORK.note(9)), last) is Refusal.INCONSISTENT
    assert refusal_of(TREE.submission(7, 9), last) is None


def test_a_proof_with_a_hash_too_few_too_many_or_changed_is_refused() -> None:
    good = TREE.submission(7, 12)
    changed = (bytes(32), *good.proof[1:])
    for proof in (good.proof[:-1], (*good.proof, bytes(32)), changed, good.proof[::-1], ()):
        bad = Submission(old_size=7, proof=proof, note=good.note)
        assert refusal_of(bad, TREE.checkpoint(7)) is Refusal.INCONSISTENT


def test_the_same_checkpoint_again_is_cosigned_again() -> None:
    assert refusal_of(TREE.submission(7, 7), TREE.checkpoint(7)) is None


def test_a_log_that_is_not_known_and_a_key_that_is_not_trusted_are_refused() -> None:
    stranger = Tree(Signer.generate("example.com/other"), TREE.leaves)
    assert refusal_of(stranger.submission(0, 3)) is Refusal.UNKNOWN_LOG
    namesake = Tree(Signer.generate(ORIGIN), TREE.leaves)
    assert refusal_of(namesake.submission(0, 3)) is Refusal.UNTRUSTED
    posing = Submission(old_size=0, proof=(), note=stranger.signer.sign_text(TREE.checkpoint(3).format()))
    assert refusal_of(posing) is Refusal.UNTRUSTED
    changed = TREE.note(3).replace("\n3\n", "\n4\n")
    assert refusal_of(Submission(old_size=0, proof=(), note=changed)) is Refusal.UNTRUSTED


def test_signatures_of_others_are_ignored_and_bad_ones_of_the_log_are_not() -> None:
    note = TREE.note(3)
    others = (
        SIGNER.cosign(TREE.checkpoint(3).format(), 1).line + Tree(Signer.generate(ORIGIN), ()).note(0).split("\n\n")[1]
    )
    claim = examine(Submission(old_size=0, proof=(), note=note + others), LOGS)
    assert [line.format() for line in claim.signatures] == [note.split("\n\n")[1]]
    bad = note + TREE.note(4).split("\n\n")[1]
    assert refusal_of(Submission(old_size=0, proof=(), note=bad)) is Refusal.UNTRUSTED


def test_any_of_a_logs_keys_will_do() -> None:
    new_key = Signer.generate(ORIGIN)
    logs = trusted([new_key.verifier, LOG.verifier])
    assert examine(TREE.submission(0, 3), logs).head == TREE.checkpoint(3)
    assert examine(Tree(new_key, TREE.leaves).submission(0, 3), logs).head == TREE.checkpoint(3)


def test_extension_lines_are_cosigned_and_not_understood() -> None:
    text = TREE.checkpoint(3).format() + "anything\n"
    claim = examine(Submission(old_size=0, proof=(), note=LOG.sign_text(text)), LOGS)
    assert (claim.text, claim.head) == (text, TREE.checkpoint(3))


# What it remembers


@pytest.fixture
def state(tmp_path: Path) -> Iterator[WitnessState]:
    made = WitnessState.create(tmp_path / "witness.db")
    yield made
    made.close()


def witness_of(state: WitnessState, clock: Callable[[], float] = lambda: 1000.0) -> Witness:
    return Witness(signer=SIGNER, logs=[LOG.verifier], state=state, clock=clock)


def submit(witness: Witness, tree: Tree, old_size: int, size: int) -> int:
    """The time of the cosignature, which must hold."""
    line = witness.add_checkpoint(tree.submission(old_size, size).format().encode())
    found = SIGNER.verifier.find(Note.parse(tree.note(size) + line))
    assert found
    assert found.line == line
    return found.time_s


def test_a_witness_goes_on_from_what_it_cosigned(state: WitnessState, tmp_path: Path) -> None:
    submit(witness_of(state), TREE, 0, 3)
    submit(witness_of(state), TREE, 3, 8)
    again = WitnessState.open(tmp_path / "witness.db")
    witness = witness_of(again)
    with pytest.raises(WitnessRefused) as caught:
        submit(witness, FORK, 3, 9)
    assert (caught.value.refusal, caught.value.size) == (Refusal.STALE, 8)
    with pytest.raises(WitnessRefused) as caught:
        submit(witness, FORK, 8, 9)
    assert caught.value.refusal is Refusal.INCONSISTENT
    submit(witness, TREE, 8, 9)
    again.close()


def test_a_reply_that_is_lost_does_no_harm(state: WitnessState) -> None:
    witness = witness_of(state)
    submit(witness, TREE, 0, 3)  # and the log never hears of it
    with pytest.raises(WitnessRefused) as caught:
        submit(witness, TREE, 0, 3)
    assert (caught.value.refusal, caught.value.size) == (Refusal.STALE, 3)
    submit(witness, TREE, 3, 3)


def test_logs_are_remembered_apart(state: WitnessState) -> None:
    other = Tree(Signer.generate("example.com/other"), FORK.leaves)
    witness = Witness(signer=SIGNER, logs=[LOG.verifier, other.signer.verifier], state=state)
    submit(witness, TREE, 0, 9)
    submit(witness, other, 0, 5)
    assert [remembered and remembered.head for remembered in map(witness.last, (ORIGIN, "example.com/other", "x"))] == [
        TREE.checkpoint(9),
        other.checkpoint(5),
        None,
    ]


def test_what_was_cosigned_last_is_handed_out_with_both_signatures(state: WitnessState) -> None:
    witness = witness_of(state)
    assert witness.checkpoint(origin_hash(ORIGIN)) is None
    stranger = Tree(Signer.generate(ORIGIN), ()).note(0).split("\n\n")[1]
    submission = Submission(old_size=0, proof=(), note=TREE.note(3) + stranger)
    line = witness.add_checkpoint(submission.format().encode())
    assert witness.checkpoint(origin_hash(ORIGIN)) == TREE.note(3) + line
    submit(witness, TREE, 3, 5)
    note = witness.checkpoint(origin_hash(ORIGIN))
    assert note
    assert LOG.verifier.open(note) == TREE.checkpoint(5)
    assert SIGNER.verifier.find(Note.parse(note))


def test_time_does_not_go_back(state: WitnessState) -> None:
    times = iter([1000.9, 400.0, 1001.0])
    witness = witness_of(state, lambda: next(times))
    assert [submit(witness, TREE, *sizes) for sizes in ((0, 3), (3, 5), (5, 8))] == [1000, 1000, 1001]


def test_of_concurrent_submissions_only_one_passes(state: WitnessState) -> None:
    witness = witness_of(state)
    submit(witness, TREE, 0, 4)

    def attempt(number: int) -> bool:
        try:
            submit(witness, (TREE, FORK)[number % 2], 4, 6 + number // 2)
        except WitnessRefused as refused:
            refusals.append(refused.refusal)
            return False
        return True

    refusals: list[Refusal] = []

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(16))) == 1
    assert set(refusals) == {Refusal.STALE}


SHARED = """
import sys
from pathlib import Path
from ledger_client import Signer, Witness, WitnessRefused, WitnessSigner, WitnessState
folder = Path(sys.argv[1])
witness = Witness(signer=WitnessSigner.load(folder / "witness.key"), logs=[Signer.load(folder / "log.key").verifier],
                  state=WitnessState.open(folder / "witness.db"))
bodies = sorted(folder.glob("body-*"))
print("ready", flush=True)
sys.stdin.readline()
for body in bodies:
    try:
        print(body.name, witness.add_checkpoint(body.read_bytes()), end="", flush=True)
    except WitnessRefused as refused:
        print(body.name, refused.refusal.name, flush=True)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SHARED, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    SIGNER.save(tmp_path / "witness.key")
    LOG.save(tmp_path / "log.key")
    WitnessState.create(tmp_path / "witness.db").close()
    return tmp_path


def test_two_processes_on_one_state_do_not_cosign_two_roots(shared: Path) -> None:
    for size in range(1, 20):
        for name, tree in (("a", TREE), ("b", FORK)):
            body = tree.submission(size - 1, size).format()
            (shared / f"body-{size:02}-{name}").write_text(body, encoding="utf-8")
    processes = [start(shared) for _ in range(2)]
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    cosigned = {line.split()[0] for output in outputs for line in output.splitlines() if "—" in line}
    state = WitnessState.open(shared / "witness.db")
    remembered = witness_of(state).last(ORIGIN)
    state.close()
    assert remembered
    assert remembered.head.size == len({name[:7] for name in cosigned}) == 19
    forked = [size for size in range(5, 20) if {f"body-{size:02}-a", f"body-{size:02}-b"} <= cosigned]
    assert not forked


def test_a_witness_that_is_killed_remembers_every_cosignature_it_gave(shared: Path) -> None:
    for size in range(1, 20):
        body = TREE.submission(size - 1, size).format()
        (shared / f"body-{size:02}").write_text(body, encoding="utf-8")
    for killed_after in (1, 4, 9):
        process = start(shared)
        assert process.stdin
        assert process.stdout
        process.stdin.write("\n")
        process.stdin.flush()
        given_out = 0
        for line in process.stdout:
            if "—" in line:
                given_out = int(line.split()[0].removeprefix("body-"))
            if given_out >= killed_after:
                break
        os.kill(process.pid, signal.SIGKILL)
        given_out = max([given_out, *(int(line[5:7]) for line in process.stdout if "—" in line)])
        process.wait(30)
        process.stdin.close()
        process.stdout.close()
        state = WitnessState.open(shared / "witness.db")
        remembered = witness_of(state).last(ORIGIN)
        state.close()
        assert remembered
        assert remembered.head.size >= given_out


def test_a_witness_that_cannot_remember_does_not_cosign(state: WitnessState, tmp_path: Path) -> None:
    witness = witness_of(state)
    submit(witness, TREE, 0, 3)
    with sqlite3.connect(tmp_path / "witness.db") as other:
        other.execute("CREATE TRIGGER full BEFORE INSERT ON witness_checkpoint BEGIN SELECT RAISE(FAIL, 'full'); END")
    other.close()
    with pytest.raises(Exception, match="full"):
        submit(witness, TREE, 3, 5)
    remembered = witness.last(ORIGIN)
    assert remembered
    assert remembered.head.size == 3


def test_a_state_is_private_durable_and_never_made_by_opening(tmp_path: Path) -> None:
    path = tmp_path / "witness.db"
    with pytest.raises(WitnessStateError, match="there is no state of a witness"):
        WitnessState.open(path)
    assert not path.exists()
    state = WitnessState.create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with state.writing() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    state.close()
    with pytest.raises(FileExistsError):
        WitnessState.create(path)


@pytest.mark.parametrize("content", [b"", b"not a database at all, but long enough to be looked at as one" * 40])
def test_another_file_is_no_state(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "witness.db"
    path.write_bytes(content)
    with pytest.raises(WitnessStateError, match="is not the state"):
        WitnessState.open(path)


class WitnessMachine(RuleBasedStateMachine):
    """A log that grows, forks, rolls back and lies about proofs, and a witness that is restarted at any time.

    Whatever the log sends, the checkpoints that were cosigned form one line of trees, each extending the one before.
    """

    @initialize(fork_at=st.integers(0, 6))
    def begin(self, fork_at: int) -> None:
        main = hashed(*(f"{number}" for number in range(16)))
        self.trees = [Tree(LOG, main), Tree(LOG, [*main[:fork_at], *hashed(*(f"x{number}" for number in range(16)))])]
        self.last: Checkpoint | None = None
        self.refused: WitnessRefused | None = None
        self.cosigned: list[tuple[Checkpoint, Tree]] = []

    def offer(self, submission: Submission, tree: Tree) -> None:
        try:
            claim = examine(Submission.parse(submission.format().encode()), LOGS)
            decide(claim, self.last)
        except WitnessRefused as refused:
            self.refused = refused
            return
        self.cosigned.append((claim.head, tree))
        self.last = claim.head

    @rule(branch=st.integers(0, 1), old_size=st.integers(0, 16), size=st.integers(0, 16))
    def submit_any(self, branch: int, old_size: int, size: int) -> None:
        self.offer(self.trees[branch].submission(min(old_size, size), size), self.trees[branch])

    @rule(branch=st.integers(0, 1), more=st.integers(0, 4))
    def grow(self, branch: int, more: int) -> None:
        old_size = self.last.size if self.last else 0
        self.offer(self.trees[branch].submission(old_size, min(old_size + more, 16)), self.trees[branch])

    @rule(
        branch=st.integers(0, 1), size=st.integers(0, 16), proof=st.lists(st.sampled_from(hashed("0", "x")), max_size=4)
    )
    def lie(self, branch: int, size: int, proof: list[bytes]) -> None:
        old_size = self.last.size if self.last else 0
        note = self.trees[branch].note(size)
        self.offer(Submission(old_size=old_size, proof=tuple(proof), note=note), self.trees[branch])

    @rule(branch=st.integers(0, 1), size=st.integers(1, 16))
    def borrow_a_proof(self, branch: int, size: int) -> None:
        old_size = min(self.last.size if self.last else 0, size)
        proof = self.trees[1 - branch].proof(old_size, size)
        self.offer(Submission(old_size=old_size, proof=proof, note=self.trees[branch].note(size)), self.trees[branch])

    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        if self.cosigned:
            head, tree = data.draw(st.sampled_from(self.cosigned))
            self.offer(tree.submission(head.size, head.size), tree)

    @invariant()
    def a_log_learns_where_to_go_on(self) -> None:
        if self.refused and self.refused.refusal is Refusal.STALE:
            assert self.refused.size == (self.last.size if self.last else 0)
        self.refused = None

    @invariant()
    def one_line(self) -> None:
        heads = [head for head, _ in self.cosigned]
        assert len({head.size: head.root for head in heads}) == len({(head.size, head.root) for head in heads})
        for (old, _), (new, tree) in zip(self.cosigned, self.cosigned[1:], strict=False):
            old_root = old.root if old.size else EMPTY_ROOT
            verify_consistency(old.size, old_root, new.size, new.root, tree.proof(old.size, new.size))


TestWitnessMachine = WitnessMachine.TestCase
TestWitnessMachine.settings = settings(max_examples=60, stateful_step_count=25)
