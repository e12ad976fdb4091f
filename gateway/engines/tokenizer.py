"""Between conversations, text and token ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from gateway.grounding import Message

# Stands for control tokens that a message spells out, while the template is rendered: from a plane of Unicode that is
# reserved for private use, one character for each control token.
_STAND_INS = 0xF0000


class ChatTokenizer:
    """A model's tokenizer and chat template. Safe to use from several threads: nothing in it changes."""

    def __init__(self, directory: Path) -> None:
        self._chat = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        self._tokenizer: Tokenizer = self._chat.backend_tokenizer
        # The same vocabulary, but what looks like a control token is text like any other.
        self._literal = Tokenizer.from_str(self._tokenizer.to_str())
        self._literal.encode_special_tokens = True
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._control = [token.content for token in added if token.special]
        last = chr(_STAND_INS + max(len(self._control) - 1, 0))
        self._stand_in = re.compile(f"([{chr(_STAND_INS)}-{last}])")

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids of the tokens that end the assistant's turn."""
        return frozenset({self._chat.eos_token_id})

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, control tokens included, nothing added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without control tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def render(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation up to where the assistant's answer begins.

        A document that says `<|im_end|>` must not end the turn that quotes it: control tokens that messages spell out
        are encoded as text.
        """
        turns = [{"role": message.role, "content": self._disarm(message.content)} for message in messages]
        rendered = str(self._chat.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        ids: list[int] = []
        for part in self._stand_in.split(rendered):
            if self._stand_in.fullmatch(part):
                ids += self._literal.encode(self._control[ord(part) - _STAND_INS], add_special_tokens=False).ids
            else:
                ids += self.encode(part)
        return ids

    def _disarm(self, content: str) -> str:
        for number, control in enumerate(self._control):
            content = content.replace(control, chr(_STAND_INS + number))
        return content
