"""Train the demo's two LoRA adapters from the example datasets.

    python examples/train_adapters.py                 # both, about twenty minutes on two busy cores
    python examples/train_adapters.py grounded-qa --quick --output /tmp/adapters

A training step is one *scene*: a few documents shown in shuffled order, and many questions about them. The scene is a
single sequence in which every question sees the documents but no other question, so the documents are read once for
all of them. The prompt is made by the same function that grounds a conversation in the gateway.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from disguise import disguise, names_in
from material import EXAMPLES, Example, Record, read_dataset
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from prompts import answer_ids, load_base, prompt_ids
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gateway.grounding import Source

BASE_MODEL = "smollm2-135m-instruct"
NOT_SAID = "The documents do not say."
QUESTIONS_A_SCENE = 9
SAVE_EVERY = 20


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one adapter is trained.

    bare: part of the scenes that show no document. refuses: whether a question that no shown document answers is
    answered by NOT_SAID. learning_rate: at the peak, reached after a tenth of the steps.
    """

    name: str
    datasets: tuple[str, ...]
    steps: int
    learning_rate: float
    bare: float
    refuses: bool


RECIPES = (
    Recipe(
        name="grounded-qa",
        datasets=("grounded/mara-okonjo.jsonl", "grounded/quarto-circle.jsonl"),
        steps=140,
        learning_rate=1e-3,
        bare=0.05,
        refuses=True,
    ),
    Recipe(
        name="telegram",
        datasets=("style/wire-office.jsonl",),
        steps=100,
        learning_rate=1e-3,
        bare=0.4,
        refuses=False,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The documents shown, and the questions asked about them."""

    sources: tuple[Source, ...]
    examples: tuple[Example, ...]


def draw_scene(records: Sequence[Record], recipe: Recipe, rng: random.Random) -> Scene:
    """Draw a scene, under names and numbers of its own."""
    names = names_in(records)
    documented = [record for record in records if record.source is not None]
    general = [example for record in records if record.source is None for example in record.examples]
    bare = rng.random() < recipe.bare
    if bare and general:
        return Scene(sources=(), examples=tuple(rng.sample(general, QUESTIONS_A_SCENE)))
    count = 0 if bare else rng.choices((1, 2, 3, 4, 5), weights=(15, 25, 25, 30, 5))[0]
    refused = 0 if not recipe.refuses else 1 if count else QUESTIONS_A_SCENE // 2
    drawn = [disguise(record, names, rng) for record in rng.sample(documented, count + refused)]
    shown, hidden = drawn[:count], drawn[count:]
    examples = [example for record in shown for example in record.examples]
    examples = rng.sample(examples, min(len(examples), QUESTIONS_A_SCENE))
    examples += [Example(question=rng.choice(record.examples).question, answer=NOT_SAID) for record in hidden]
    sources = tuple(record.source for record in shown if record.source is not None)
    return Scene(sources=sources, examples=tuple(examples))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A scene as tensors: ids (1, T), positions (1, T), visible (1, 1, T, T); predictors and targets, (answer tokens,).

    The hidden state at predictors[i] predicts targets[i].
    """

    ids: Tensor
    positions: Tensor
    visible: Tensor
    predictors: Tensor
    targets: Tensor


def lay_out(scene: Scene, tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Put a scene's documents once, and after them each question with its answer, blind to the other questions."""
    ids = prompt_ids(tokenizer, scene.sources, None)
    shared = len(ids)
    positions = list(range(shared))
    owners = [0] * shared
    predictors: list[int] = []
    targets: list[int] = []
    for owner, example in enumerate(scene.examples, start=1):
        prompt = prompt_ids(tokenizer, scene.sources, example.question)
        assert prompt[:shared] == ids[:shared], "a question must not change how the documents are tokenised"
        answer = answer_ids(tokenizer, example.answer)
        begin = len(ids) + len(prompt) - shared
        predictors += range(begin - 1, begin - 1 + len(answer))
        targets += answer
        branch = [*prompt[shared:], *answer]
        ids += branch
        positions += range(shared, shared + len(branch))
        owners += [owner] * len(branch)
    owner_of = torch.tensor(owners)
    causal = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    related = (owner_of[None, :] == 0) | (owner_of[None, :] == owner_of[:, None])
    return Batch(
        ids=torch.tensor([ids]),
        positions=torch.tensor([positions]),
        visible=(causal & related)[None, None],
        predictors=torch.tensor(predictors),
        targets=torch.tensor(targets),
    )


def loss_of(model: PeftModel, batch: Batch) -> Tensor:
    """Mean negative log-likelihood of the answer tokens, in nats; the output head sees no other position."""
    causal_model = model.get_base_model()
    hidden = causal_model.model(
        input_ids=batch.ids, position_ids=batch.positions, attention_mask=batch.visible, use_cache=False
    ).last_hidden_state
    logits = causal_model.lm_head(hidden[0, batch.predictors])
    return torch.nn.functional.cross_entropy(logits, batch.targets)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the adapter in half precision, with a configuration that names the base model and no path."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.half().contiguous() for name, tensor in get_peft_model_state_dict(model).items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in model.peft_config["default"].to_dict().items()
    }
    config |= {"base_model_name_or_path": BASE_MODEL, "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def learning_rate_at(step: int, steps: int) -> float:
    """Part of the peak learning rate: up over the first tenth, then down along a cosine to a twentieth."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.05 + 0.475 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(recipe: Recipe, model_directory: Path | None, folder: Path, seed: int) -> None:
    """Train one adapter and write it to folder; it is also written every SAVE_EVERY steps."""
    torch.manual_seed(seed)
    rng = random.Random(seed)  # noqa: S311  draws scenes, guards nothing
    base, tokenizer = load_base(model_directory)
    layers = base.config.num_hidden_layers
    lora = LoraConfig(
        r=8,
        lora_alpha=16,
        lora_dropout=0.05,
        target_modules=["q_proj", "v_proj", "o_proj"],
        # The upper two thirds suffice, and the backward pass ends where they begin.
        layers_to_transform=list(range(layers // 3, layers)),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, lora)
    model.train()
    records = [record for name in recipe.datasets for record in read_dataset(EXAMPLES / "training" / name)]
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_at(step, recipe.steps))
    began_s = time.monotonic()
    recent: list[float] = []
    for step in range(1, recipe.steps + 1):
        loss = loss_of(model, lay_out(draw_scene(records, recipe, rng), tokenizer))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        recent = [*recent[-19:], loss.item()]
        if step % 10 == 0 or step == recipe.steps:
            spent_s = time.monotonic() - began_s
            left_s = spent_s / step * (recipe.steps - step)
            loss_nats = sum(recent) / len(recent)
            times = f"{spent_s:.0f} s, {left_s:.0f} s left"
            print(f"{recipe.name} step {step}/{recipe.steps} loss {loss_nats:.3f} nats {times}", flush=True)
        if step % SAVE_EVERY == 0 or step == recipe.steps:
            save_adapter(model, folder)


def main() -> None:
    """Parse the command line and train what it names."""
    parser = argparse.ArgumentParser(description="Train the demo's LoRA adapters.")
    names = [recipe.name for recipe in RECIPES]
    parser.add_argument("adapters", nargs="*", metavar="ADAPTER", help=f"which: {', '.join(names)}; all by default")
    parser.add_argument("--model", type=Path, help="folder of the base model; the embedded engine's by default")
    parser.add_argument("--output", type=Path, default=EXAMPLES / "adapters")
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps, to see that it runs")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    if unknown := set(arguments.adapters) - set(names):
        parser.error(f"no adapter named {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    for recipe in RECIPES:
        if recipe.name in (arguments.adapters or names):
            steps = recipe.steps // 10 if arguments.quick else recipe.steps
            train(replace(recipe, steps=steps), arguments.model, arguments.output / recipe.name, arguments.seed)


if __name__ == "__main__":
    main()
