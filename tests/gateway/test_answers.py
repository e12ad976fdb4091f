"""What an answer waits with."""

from __future__ import annotations

from dataclasses import fields

from gateway import tables
from gateway.answers import AnswerRow, GroundedPassage, SealedInputs
from gateway.grounding import Message


def test_sealed_inputs_are_read_back_as_they_were() -> None:
    called = {"tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}
    sealed = SealedInputs(
        instruction="Answer briefly.",
        policy_index=1,
        adapter_index=2,
        messages=(Message(role="user", content="Who? ☕"), Message(role="assistant", content="", more=called)),
        prompt_ids=(1, 2, 3),
        passages=(GroundedPassage(document="d", digest="0" * 64, owner="ada", title="T", text="ü"),),
        choices=((4, 5), (6,)),
        tools=({"type": "function", "function": {"name": "f"}},),
    )
    assert SealedInputs.decode(sealed.encode()) == sealed


def test_a_row_is_stored_in_the_order_of_its_columns() -> None:
    assert [field.name for field in fields(AnswerRow)] == tables.answer.c.keys()
