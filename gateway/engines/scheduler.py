"""The engine's thread, and the order in which it works.

Each turn: one piece of one waiting prompt, then one step of every batch, and only when no caller is left, one piece
of scoring. So answers advance in step whatever their adapter, nobody waits behind a whole prompt, and scoring delays
a caller by at most the piece that was begun. Under callers without pause, scoring waits.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

import torch
from transformers import DynamicCache

from gateway.engines.adapters import AdapterFiles
from gateway.engines.base import AdapterNotLoaded, EngineError, EngineUnavailable, Scores
from gateway.engines.generation import Batch, Generation
from gateway.engines.language_model import PREFILL_TOKENS, LanguageModel
from gateway.engines.scoring import score

T = TypeVar("T")


@dataclass(kw_only=True, eq=False)
class Task(Generic[T]):
    """Work whose outcome somebody may await. Cancelling the future takes the work back."""

    future: Future[T] = field(default_factory=Future)

    def succeed(self, outcome: T) -> None:
        """Hand over the outcome, unless nobody awaits it any more."""
        with suppress(InvalidStateError):
            self.future.set_result(outcome)

    def fail(self, error: EngineError) -> None:
        """Hand over an error, unless nobody awaits the outcome any more."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(kw_only=True, eq=False)
class ScoreTask(Task[Scores]):
    """Score one answer after each prompt."""

    prompts: Sequence[Sequence[int]]
    answer: Sequence[int]
    adapter: str | None


@dataclass(kw_only=True, eq=False)
class LoadTask(Task[None]):
    """Make an adapter resident; arguments as LanguageModel.load takes them."""

    adapter: AdapterFiles
    weights: bytes
    probe: Sequence[int]


@dataclass(kw_only=True, eq=False)
class UnloadTask(Task[None]):
    """Refuse new work for an adapter, and free it when its running work has ended."""

    name: str


AnyTask = Generation | ScoreTask | LoadTask | UnloadTask


@dataclass(kw_only=True, eq=False)
class _Prefill:
    generation: Generation
    rest: list[int]  # of the prompt, not yet in the cache
    cache: DynamicCache


@dataclass(kw_only=True, eq=False)
class _Scoring:
    task: ScoreTask
    work: Generator[None, None, Scores]


class Scheduler:
    """Owns the model on a thread of its own; takes tasks from any thread."""

    def __init__(self, model: LanguageModel, *, max_generating: int, threads: int | None) -> None:
        """Start the thread. max_generating: answers that advance at once. threads: CPU threads, all by default."""
        self.resident: frozenset[str] = frozenset()
        self._model = model
        self._max_generating = max_generating
        self._waiting: deque[Generation] = deque()
        self._prefill: _Prefill | None = None
        self._batches: dict[str | None, Batch] = {}
        self._scoring: deque[_Scoring] = deque()
        self._leaving: dict[str, UnloadTask] = {}
        self._inbox: SimpleQueue[AnyTask | None] = SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, args=(threads,), name="engine", daemon=True)
        self._thread.start()

    @property
    def open(self) -> bool:
        """Whether tasks are taken."""
        return not self._closed

    @property
    def generating(self) -> int:
        """Answers in the making."""
        return sum(len(batch) for batch in list(self._batches.values())) + (self._prefill is not None)

    @property
    def waiting(self) -> int:
        """Answers not begun."""
        return len(self._waiting)

    @property
    def scoring(self) -> int:
        """Scorings not finished."""
        return len(self._scoring)

    def submit(self, task: AnyTask) -> None:
        """Have a task done; it fails with EngineUnavailable when the engine is closed first."""
        with self._closing:
            if not self._closed:
                self._inbox.put(task)
                return
        task.fail(EngineUnavailable("the engine is closed"))

    def close(self) -> None:
        """Fail what is unfinished and wait for the thread to end."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self, threads: int | None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            with torch.inference_mode():
                while self._take_in():
                    self._turn()
        finally:
            self._fail_all(EngineUnavailable("the engine is closed"))

    def _take_in(self) -> bool:
        """Receive what was submitted, waiting for it when there is nothing to do. False once the engine closes."""
        busy = bool(self._waiting or self._prefill or self._batches or self._scoring)
        try:
            task = self._inbox.get(block=not busy)
            while task is not None:
                self._receive(task)
                task = self._inbox.get(block=False)
        except Empty:
            return True
        return False

    def _receive(self, task: AnyTask) -> None:
        match task:
            case Generation() | ScoreTask() if task.adapter is not None and task.adapter not in self.resident:
                task.fail(AdapterNotLoaded(task.adapter))
            case Generation():
                self._waiting.append(task)
            case ScoreTask():
                work = score(self._model, task.prompts, task.answer, adapter=task.adapter)
                self._scoring.append(_Scoring(task=task, work=work))
            case LoadTask():
                self._load(task)
            case UnloadTask() if task.name not in self.resident:
                task.fail(AdapterNotLoaded(task.name))
            case UnloadTask():
                self.resident -= {task.name}
                self._leaving[task.name] = task

    def _load(self, task: LoadTask) -> None:
        name = task.adapter.name
        if name in self._leaving:
            self._leaving.pop(name).succeed(None)
        elif name not in self.resident:
            try:
                self._model.load(task.adapter, task.weights, task.probe)
            except EngineError as error:
                task.fail(error)
                return
            except Exception as error:
                task.fail(_broken("loading an adapter", error))
                return
        self.resident |= {name}
        task.succeed(None)

    def _turn(self) -> None:
        self._prefill_piece()
        for batch in list(self._batches.values()):
            self._step(batch)
        if not self.generating:
            self._score_piece()
        for name in self._leaving.keys() - self._in_use():
            self._model.unload(name)
            self._leaving.pop(name).succeed(None)

    def _prefill_piece(self) -> None:
        if self._prefill is None:
            if not self._waiting or self.generating >= self._max_generating:
                return
            generation = self._waiting.popleft()
            self._prefill = _Prefill(generation=generation, rest=generation.prompt, cache=self._model.new_cache())
        current = self._prefill
        generation = current.generation
        if generation.cancelled:
            self._prefill = None
            return
        try:
            logits = self._model.extend(current.rest[:PREFILL_TOKENS], current.cache, adapter=generation.adapter)
            current.rest = current.rest[PREFILL_TOKENS:]
            if not current.rest:
                self._prefill = None
                if (next_id := generation.advance(logits[-1])) is not None:
                    batch = self._batches.setdefault(generation.adapter, Batch(generation.adapter))
                    batch.join(generation, next_id, current.cache)
        except Exception as error:
            self._prefill = None
            generation.fail(_broken("reading the prompt", error))

    def _step(self, batch: Batch) -> None:
        try:
            batch.step(self._model)
        except Exception as error:
            batch.fail(_broken("generating", error))
        if not batch:
            del self._batches[batch.adapter]

    def _score_piece(self) -> None:
        if not self._scoring:
            return
        scoring = self._scoring[0]
        try:
            if not scoring.task.future.cancelled():
                next(scoring.work)
                return
        except StopIteration as finished:
            scoring.task.succeed(finished.value)
        except Exception as error:
            scoring.task.fail(_broken("scoring", error))
        self._scoring.popleft()

    def _in_use(self) -> set[str | None]:
        generations = [*self._waiting, *([self._prefill.generation] if self._prefill else [])]
        return {
            *(generation.adapter for generation in generations),
            *self._batches,
            *(scoring.task.adapter for scoring in self._scoring),
        }

    def _fail_all(self, error: EngineError) -> None:
        with self._closing:
            self._closed = True
        tasks: list[AnyTask | Batch] = [*self._waiting, *self._batches.values(), *self._leaving.values()]
        tasks += [scoring.task for scoring in self._scoring]
        tasks += [self._prefill.generation] if self._prefill else []
        with suppress(Empty):
            while True:
                if (task := self._inbox.get(block=False)) is not None:
                    tasks.append(task)
        for unfinished in tasks:
            unfinished.fail(error)


def _broken(doing: str, cause: Exception) -> EngineUnavailable:
    error = EngineUnavailable(f"the engine failed while {doing}: {cause!r}")
    error.__cause__ = cause
    return error
