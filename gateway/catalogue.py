"""The served models, each with its terms as the log dates them. A reload replaces them whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from gateway.adapters import Adapter
from gateway.registry import Registry, RegistryError, Terms
from gateway.settings import Settings
from ledger_client import EntryConflict
from metering import Books, Price, SplitPolicy, Transaction


class UnknownModelError(LookupError):
    """The caller named a model that is not served."""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A base model, perhaps an adapter, corpora, a price and a policy, with the log entries that date them."""

    name: str
    kind: str
    base: str
    adapter: Adapter | None
    corpora: tuple[str, ...]
    licences: tuple[str, ...] | None
    top_k: int
    instruction: str
    description: str
    price: Price
    price_index: int
    policy: SplitPolicy
    policy_index: int

    @property
    def adapter_name(self) -> str | None:
        """The registered name of the adapter."""
        return self.adapter.name if self.adapter else None

    @property
    def resident_adapter(self) -> str | None:
        """The name under which an engine holds the adapter."""
        return self.adapter.resident_name if self.adapter else None

    @property
    def terms(self) -> Terms:
        """What attributions of its answers rest on."""
        return Terms(policy=self.policy, policy_index=self.policy_index, adapter=self.adapter)


class Catalogue:
    """The served models of one gateway, in the order of the configuration."""

    def __init__(self, models: list[ServedModel]) -> None:
        self._models = {model.name: model for model in models}

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    @property
    def adapters(self) -> list[Adapter]:
        """The adapters of its models, each once."""
        return list({model.adapter.digest: model.adapter for model in self if model.adapter}.values())

    def get(self, name: str) -> ServedModel | None:
        """The served model of that name, if there is one."""
        return self._models.get(name)

    def find(self, name: str, kind: str | None = None) -> ServedModel:
        """The served model of that name, and of that kind if one is given; raises UnknownModelError listing them."""
        model = self._models.get(name)
        if model is None or kind not in (None, model.kind):
            wanted = f"{kind} model" if kind else "model"
            names = ", ".join(repr(model.name) for model in self if kind in (None, model.kind)) or "none"
            raise UnknownModelError(f"there is no {wanted} {name!r} here; there are: {names}")
        return model


def offered(connection: sa.Connection, settings: Settings, registry: Registry) -> dict[str, Adapter]:
    """The adapters that the models name, as they name them.

    Raises RegistryError when one is not registered or was made for another base.
    """
    adapters = {}
    for section in settings.models:
        if section.adapter is None:
            continue
        adapter = adapters[section.adapter] = registry.adapters.find(connection, section.adapter)
        if adapter.base_model != section.base:
            raise RegistryError(
                f"model {section.name!r} puts adapter {adapter.name!r} on base {section.base!r}, "
                f"but it was made for {adapter.base_model!r}"
            )
    return adapters


def publish(transaction: Transaction, settings: Settings, adapters: Mapping[str, Adapter], books: Books) -> Catalogue:
    """Date every configured model's price and policy in the log. adapters: as the models name them.

    Raises RegistryError when a policy is not what the log has under its version.
    """
    policies = {policy.name: policy for policy in settings.policies}
    models = []
    for section in settings.models:
        price = section.price.parsed()
        policy = policies[section.policy].parsed(section.base)
        models.append(
            ServedModel(
                name=section.name,
                kind=section.kind,
                base=section.base,
                adapter=None if section.adapter is None else adapters[section.adapter],
                corpora=section.corpora,
                licences=section.licences,
                top_k=section.top_k or settings.retrieval.top_k,
                instruction=section.instruction,
                description=section.description,
                price=price,
                price_index=books.publish_price(transaction, section.name, price),
                policy=policy,
                policy_index=_publish_policy(transaction, policy, books),
            )
        )
    return Catalogue(models)


def _publish_policy(transaction: Transaction, policy: SplitPolicy, books: Books) -> int:
    try:
        return books.publish_policy(transaction, policy)
    except EntryConflict as conflict:
        raise RegistryError(
            f"policy {policy.name!r} was published as version {policy.version} with other parts, at log index "
            f"{conflict.log_index}; give what has changed another version"
        ) from None
