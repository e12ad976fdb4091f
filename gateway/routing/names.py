"""From the name that a client gives to the served model that answers: the model's own name, an alias, or `auto`.

An alias spreads its requests over models by weight, and the request id alone decides which one takes a request. `auto`
takes the model whose description and examples are most like the question, or a fallback when none is like it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from gateway.catalogue import Catalogue, ServedModel, UnknownModelError
from gateway.settings import AUTO, Settings
from retrieval import Embedder

Reason = Literal["named", "alias", "auto", "auto_fallback"]

# An embedder sees the beginning of a text. This much is more than it sees, and bounds what it must cut up to find that.
ASKED_CHARACTERS = 4096
REMEMBERED = 1024
READING = 2
_SIMILARITY_DECIMALS = 4


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """The served model that takes a request, and why.

    request_id: of the request that it was resolved for. requested: the name that the client gave. similarity: of the
    question to the model that is most like it, a mean cosine, where `auto` compared.
    """

    request_id: str
    model: ServedModel
    requested: str
    reason: Reason
    similarity: float | None = None

    def data(self) -> dict[str, Any] | None:
        """As an attribution object shows it; None where the client named what answered."""
        if self.reason == "named":
            return None
        shown = {"requested": self.requested, "served_model": self.model.name, "reason": self.reason}
        if self.similarity is None:
            return shown
        return shown | {"similarity": round(self.similarity, _SIMILARITY_DECIMALS)}


@dataclass(frozen=True, kw_only=True)
class Alias:
    """A name for models of one kind. targets: each with its weight, in the order of the configuration; sum above 0."""

    name: str
    description: str
    targets: tuple[tuple[ServedModel, int], ...]

    @property
    def kind(self) -> str:
        """The kind of its models."""
        return self.targets[0][0].kind

    def target(self, request_id: str) -> ServedModel:
        """The model that takes a request.

        SHA-256 of `alias:request id`, as one number modulo the sum of the weights, falls into one target's part of the
        sum. Anyone who knows the weights finds the same; nobody who asks can aim, for the gateway makes the request id.
        """
        digest = hashlib.sha256(f"{self.name}:{request_id}".encode()).digest()
        point = int.from_bytes(digest) % sum(weight for _, weight in self.targets)
        for model, weight in self.targets:
            if point < weight:
                return model
            point -= weight
        raise AssertionError("the parts cover the sum")


@dataclass(frozen=True, kw_only=True, eq=False)
class Auto:
    """What `auto` chooses among.

    vectors: float32 (n_candidates, dimension), for each candidate the mean of the unit vectors of its description and
    examples, so that an inner product with a question's unit vector is the mean of the cosines. threshold: the least
    mean cosine at which a candidate is taken.
    """

    candidates: tuple[ServedModel, ...]
    vectors: NDArray[np.float32]
    threshold: float
    fallback: ServedModel

    def choose(self, asked: NDArray[np.float32] | None) -> tuple[ServedModel, Reason, float | None]:
        """The model for a question's unit vector, the first of equals; for no question, the fallback."""
        if asked is None or not self.candidates:
            return self.fallback, "auto_fallback", None
        similarities = self.vectors @ asked
        best = int(similarities.argmax())
        similarity = float(similarities[best])
        if similarity < self.threshold:
            return self.fallback, "auto_fallback", similarity
        return self.candidates[best], "auto", similarity


def compared(settings: Settings, embedder: Embedder) -> NDArray[np.float32]:
    """What `auto` compares a question with: the vectors of Auto, one for each model that it may choose."""
    texts = [section.said_of_it for section in settings.models if section.auto]
    means = [embedder.embed(each).mean(axis=0) for each in texts]
    return np.array(means, dtype=np.float32).reshape(len(texts), embedder.dimension)


@dataclass(frozen=True, kw_only=True, eq=False)
class Names:
    """Every name that means something at one time. auto: None where there is no `auto`."""

    catalogue: Catalogue
    aliases: Mapping[str, Alias]
    auto: Auto | None

    @classmethod
    def of(cls, catalogue: Catalogue, settings: Settings, vectors: NDArray[np.float32]) -> Self:
        """The names that the settings give. vectors: what `compared` made of the same settings."""
        aliases = {
            section.name: Alias(
                name=section.name,
                description=section.description,
                targets=tuple((catalogue.find(target.model), target.weight) for target in section.targets),
            )
            for section in settings.aliases
        }
        routing = settings.routing
        auto = None
        if routing.auto_fallback is not None:
            auto = Auto(
                candidates=tuple(catalogue.find(section.name) for section in settings.models if section.auto),
                vectors=vectors,
                threshold=routing.auto_threshold,
                fallback=catalogue.find(routing.auto_fallback),
            )
        return cls(catalogue=catalogue, aliases=MappingProxyType(aliases), auto=auto)

    def __iter__(self) -> Iterator[str]:
        yield from (model.name for model in self.catalogue)
        yield from self.aliases
        if self.auto is not None:
            yield AUTO

    def resolve(self, name: str, kind: str, request_id: str) -> Resolved:
        """The model behind a name other than `auto`; raises UnknownModelError listing the names of that kind."""
        alias = self.aliases.get(name)
        if alias is not None and alias.kind == kind:
            return Resolved(request_id=request_id, model=alias.target(request_id), requested=name, reason="alias")
        model = self.catalogue.get(name)
        if model is None or model.kind != kind:
            raise UnknownModelError(f"there is no {kind} model {name!r} here; there are: {self._known(kind)}")
        return Resolved(request_id=request_id, model=model, requested=name, reason="named")

    def _known(self, kind: str) -> str:
        kinds = {model.name: model.kind for model in self.catalogue}
        kinds |= {alias.name: alias.kind for alias in self.aliases.values()} | {AUTO: "chat"}
        return ", ".join(repr(name) for name in self if kinds[name] == kind) or "none"


class Router:
    """Resolves names; what they mean is replaced whole, and a resolution sees one set of them."""

    def __init__(self, names: Names, embedder: Embedder) -> None:
        self.names = names
        # The last user message of an agent's conversation stays the same from call to call.
        self._vector = lru_cache(maxsize=REMEMBERED)(lambda text: embedder.embed([text])[0])
        # Whoever asks has not been admitted yet: a flood of questions must leave threads to everything else.
        self._reading = asyncio.Semaphore(READING)

    async def resolve(self, name: str, *, kind: str, asked: str | None, request_id: str) -> Resolved:
        """The served model of that kind for a request.

        asked: what `auto` compares with, of which it reads the beginning: the last user message, or a raw prompt.
        Raises UnknownModelError, and EmbedderError where `auto` cannot read.
        """
        names = self.names
        if name != AUTO or names.auto is None or kind != "chat":
            return names.resolve(name, kind, request_id)
        vector = None
        if asked:
            async with self._reading:
                vector = await asyncio.to_thread(self._vector, asked[:ASKED_CHARACTERS])
        model, reason, similarity = names.auto.choose(vector)
        return Resolved(request_id=request_id, model=model, requested=name, reason=reason, similarity=similarity)
