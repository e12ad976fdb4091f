from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval import Span, split


def count(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


def texts(text: str, max_tokens: int = 8) -> list[str]:
    return [span.of(text) for span in split(text, count_tokens=count, max_tokens=max_tokens)]


def test_a_short_text_is_one_passage() -> None:
    text = "The mole is long.\n\nIt is old. " + "word " * 80
    assert count(text) <= 110
    assert split(text, count_tokens=count) == [Span(start=0, end=len(text.strip()))]


def test_a_text_of_white_space_has_no_passage() -> None:
    assert texts("") == texts(" \n\n\t") == []


def test_paragraphs_share_a_passage_while_they_fit() -> None:
    assert texts("One two.\n\nThree four.\n\nFive six seven.") == ["One two.\n\nThree four.", "Five six seven."]


def test_a_paragraph_that_fits_is_not_divided() -> None:
    assert texts("A b c d.\n\nE f g. H i.") == ["A b c d.", "E f g. H i."]


def test_a_long_paragraph_is_divided_between_sentences() -> None:
    said = 'He said: "Go away!" She went. Then at 3.5 knots, it sailed.'
    assert texts(said, 10) == ['He said: "Go away!"', "She went.", "Then at 3.5 knots, it sailed."]
    assert texts("潮が満ちる。船が出る。", 2) == ["潮が満ちる。", "船が出る。"]
    assert texts("- one two three\n- four five six\n- seven", 8) == ["- one two three\n- four five six", "- seven"]


def test_a_long_sentence_is_divided_between_words() -> None:
    words = " ".join(f"word{n}" for n in range(40))
    passages = texts(words)
    assert " ".join(passages) == words
    assert all(4 <= count(passage) <= 8 for passage in passages)


def test_a_long_word_is_divided_anywhere() -> None:
    assert "".join(texts("x" * 1000)) == "x" * 1000
    assert max(map(len, texts("x" * 1000))) <= 8 * 16


def test_a_heading_stays_with_what_it_heads() -> None:
    text = "One two three four five.\n\n# Six\n\n## Seven\n\nEight nine."
    assert texts(text) == ["One two three four five.", "# Six\n\n## Seven\n\nEight nine."]


def test_a_large_text_is_split_in_linear_time() -> None:
    text = ("A sentence of some words. " * 20 + "\n\n") * 2000 + "\n" * 100_000 + "x" * 100_000 + "# " * 50_000
    assert split(text, count_tokens=count)


@given(st.text(alphabet=st.sampled_from("ab .!?\n#-。\u00a0é😀"), max_size=300), st.integers(1, 12))
def test_passages_cover_the_text_in_order_without_overlap(text: str, max_tokens: int) -> None:
    spans = split(text, count_tokens=count, max_tokens=max_tokens)
    assert all(one.end <= two.start for one, two in pairwise(spans))
    kept = "".join(span.of(text) for span in spans)
    assert "".join(kept.split()) == "".join(text.split())
    assert all(span.of(text) == span.of(text).strip() for span in spans)
    assert all(count(span.of(text)) <= max_tokens for span in spans)
    assert texts(text, max_tokens) == [span.of(text) for span in spans]


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        texts("text", 0)
    with pytest.raises(ValueError, match="at least one character"):
        Span(start=3, end=3)
