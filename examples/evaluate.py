"""Measure the adapters on questions and documents that they were not trained on.

    python examples/evaluate.py match                 # exact match on the held-out questions
    python examples/evaluate.py blame                 # which document's removal costs a demo answer most

Each question is asked with four documents: the one that holds the answer and three others of its corpus, in an order
that follows from the question's id alone.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from material import EXAMPLES, Question, documents_of, holds, read_manifest, read_questions, read_source
from peft import PeftModel
from prompts import load_base, prompt_ids
from transformers import PreTrainedTokenizerBase

DISTRACTORS = 3
MAX_TOKENS = 40
BATCH = 12


def context(question: Question) -> list[str]:
    """Return the documents shown with a question, in order."""
    corpus = next(corpus for corpus in read_manifest()["corpora"] if corpus["name"] == question.corpus)
    holders = {question.document, *question.near_copies}
    others = [document for document in documents_of(corpus) if document not in holders]
    rng = random.Random(question.id)  # noqa: S311  the same shuffle for everybody
    shown = [question.document, *rng.sample(others, DISTRACTORS)]
    rng.shuffle(shown)
    return shown


@torch.no_grad()
def answer(model: PeftModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the greedy continuation of each prompt, with the end mark unless it was cut at MAX_TOKENS."""
    width = max(map(len, prompts))
    end = tokenizer.eos_token_id
    output = model.generate(
        input_ids=torch.tensor([[end] * (width - len(prompt)) + [*prompt] for prompt in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        max_new_tokens=MAX_TOKENS,
        do_sample=False,
        pad_token_id=end,
    )
    rows: list[list[int]] = output[:, width:].tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def ask(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]
) -> Iterator[tuple[Question, list[int], str]]:
    """Yield each question with the answer's token ids and text, asking BATCH questions at once."""
    for start in range(0, len(questions), BATCH):
        batch = questions[start : start + BATCH]
        prompts = [prompt_ids(tokenizer, [*map(read_source, context(q))], q.question) for q in batch]
        for question, emitted in zip(batch, answer(model, tokenizer, prompts), strict=True):
            yield question, emitted, tokenizer.decode(emitted, skip_special_tokens=True)


@torch.no_grad()
def log_likelihood(model: PeftModel, prompt: Sequence[int], emitted: Sequence[int]) -> float:
    """Sum of log p of the emitted tokens after the prompt, in nats."""
    logits = model(input_ids=torch.tensor([[*prompt, *emitted]]), logits_to_keep=len(emitted) + 1).logits[0, :-1]
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(emitted)[:, None]).sum().item()


def is_one_sentence(text: str, *, ended: bool) -> bool:
    """Whether the model ended by itself, after a single sentence."""
    return ended and len(re.findall(r"[.!?](?=\s|$)", text.strip())) <= 1 and "\n" not in text.strip()


def measure_match(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], *, verbose: bool
) -> tuple[int, int, float]:
    """Return how many answers match, how many match in one sentence, and the mean length of an answer in tokens."""
    matches = short = tokens = 0
    for number, (question, emitted, text) in enumerate(ask(model, tokenizer, questions), start=1):
        found = holds(text, question.answer)
        matches += found
        short += found and is_one_sentence(text, ended=emitted[-1] == tokenizer.eos_token_id)
        tokens += len(emitted)
        if verbose:
            print(f"  {'+' if found else '-'} {question.question} [{question.answer}] {text!r}", flush=True)
        elif number % BATCH == 0:
            print(f"  {number}/{len(questions)} questions, {matches} matches", flush=True)
    return matches, short, tokens / len(questions)


def compare(model: PeftModel, tokenizer: PreTrainedTokenizerBase, adapter: str, *, limit: int, verbose: bool) -> None:
    """Print the exact match on held-out questions of the base model and of the adapter."""
    questions = read_questions("held_out")[:limit]
    print(f"base, {len(questions)} questions")
    with model.disable_adapter():
        rows = {"base": measure_match(model, tokenizer, questions, verbose=verbose)}
    print(f"base + {adapter}")
    rows[f"base + {adapter}"] = measure_match(model, tokenizer, questions, verbose=verbose)
    print(f"\n{'model':24} {'exact match':>14} {'in one sentence':>16} {'tokens':>7}")
    for name, (matches, short, tokens) in rows.items():
        cells = [f"{count}/{len(questions)} {count / len(questions):.0%}" for count in (matches, short)]
        print(f"{name:24} {cells[0]:>14} {cells[1]:>16} {tokens:7.1f}")


def blame(model: PeftModel, tokenizer: PreTrainedTokenizerBase, *, limit: int) -> None:
    """Print, for each demo question, how many nats the answer loses without its document and without any other."""
    questions = read_questions("demo")[:limit]
    print(f"{'id':10} {'match':5} {'nats lost without':>18} {'the next':>9}  answer")
    right = matches = 0
    for question, emitted, text in ask(model, tokenizer, questions):
        documents = context(question)
        sources = [read_source(document) for document in documents]
        prompt = prompt_ids(tokenizer, sources, question.question)
        whole = log_likelihood(model, prompt, emitted)
        lost = {}
        for place, document in enumerate(documents):
            rest = prompt_ids(tokenizer, sources[:place] + sources[place + 1 :], question.question)
            lost[document] = whole - log_likelihood(model, rest, emitted)
        own = lost.pop(question.document)
        found = holds(text, question.answer)
        matches += found
        right += own > max(lost.values())
        print(
            f"{question.id:10} {'yes' if found else 'no':5} {own:18.1f} {max(lost.values()):9.1f}  {text}", flush=True
        )
    print(f"\nthe answer's document counts most in {right} of {len(questions)}; {matches} answers match")


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description="Measure the demo's adapters.")
    parser.add_argument("measure", choices=("match", "blame"))
    parser.add_argument("--adapter", default="grounded-qa")
    parser.add_argument("--adapters", type=Path, default=EXAMPLES / "adapters", help="folder of the adapters")
    parser.add_argument("--model", type=Path, help="folder of the base model; the embedded engine's by default")
    parser.add_argument("--limit", type=int, default=1000, help="ask only the first so many questions")
    parser.add_argument("--verbose", action="store_true", help="print every answer")
    arguments = parser.parse_args()
    base, tokenizer = load_base(arguments.model)
    model = PeftModel.from_pretrained(base, arguments.adapters / arguments.adapter)
    model.eval()
    if arguments.measure == "match":
        compare(model, tokenizer, arguments.adapter, limit=arguments.limit, verbose=arguments.verbose)
    else:
        blame(model, tokenizer, limit=arguments.limit)


if __name__ == "__main__":
    main()
