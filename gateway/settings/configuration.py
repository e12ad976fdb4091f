"""One TOML file, every key also an environment variable, read once and passed down.

`TRIBUTARY__SERVER__PORT=9000` overrides `port` under `[server]`. A key that does not exist, or a value of the wrong
type, stops start-up with the key's name.
"""

from __future__ import annotations

import os
import tomllib
from collections import Counter
from pathlib import Path
from typing import Self

import sqlalchemy as sa
from pydantic import BaseModel, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from gateway.settings.fields import nano_from_usd
from gateway.settings.sections import (
    AdaptersSection,
    AliasSection,
    AttributionSection,
    ChainSection,
    DatabaseSection,
    EngineSection,
    LedgerSection,
    Limits,
    LogSection,
    ModelSection,
    PolicySection,
    RetrievalSection,
    RoutingSection,
    Server,
    SettlementSection,
    WitnessSection,
)
from ledger_client import Quorum
from metering import SettlementTerms

ENVIRONMENT_PREFIX = "TRIBUTARY__"
AUTO = "auto"
LIVE = ("models", "policies", "aliases", "routing")  # what a running gateway takes up when it reloads


class SettingsError(ValueError):
    """The configuration cannot be used; the message names the key and says what it may be."""


class Settings(BaseSettings):
    """Everything an operator can set."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True
    )

    server: Server = Server()
    database: DatabaseSection = DatabaseSection()
    log: LogSection = LogSection()
    engine: EngineSection = EngineSection()
    adapters: AdaptersSection = AdaptersSection()
    retrieval: RetrievalSection = RetrievalSection()
    attribution: AttributionSection = AttributionSection()
    limits: Limits = Limits()
    settlement: SettlementSection = SettlementSection()
    chain: ChainSection = ChainSection()
    routing: RoutingSection = RoutingSection()
    witnesses: tuple[WitnessSection, ...] = ()
    models: tuple[ModelSection, ...] = ()
    aliases: tuple[AliasSection, ...] = ()
    policies: tuple[PolicySection, ...] = (PolicySection(name="default"),)
    ledgers: tuple[LedgerSection, ...] = ()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over the file, which `load` passes in as arguments."""
        del settings_cls, dotenv_settings, file_secret_settings
        return env_settings, init_settings

    @property
    def settlement_terms(self) -> SettlementTerms:
        """How a month is paid, in integers."""
        settlement = self.settlement
        return SettlementTerms(
            method=settlement.method,
            distributor=self.chain.distributor if settlement.method == "chain" else None,
            minimum_nano=nano_from_usd(settlement.minimum_payout),
            token_decimals=settlement.token_decimals,
        )

    @model_validator(mode="after")
    def _chain_is_named(self) -> Self:
        if self.settlement.method == "chain" and self.chain.contract is None:
            raise ValueError('[settlement] method = "chain" needs a [chain]; `tributary payouts deploy` makes one')
        return self

    @model_validator(mode="after")
    def _names_resolve(self) -> Self:
        for kind, names in (
            ("models", [model.name for model in self.models]),
            ("aliases", [alias.name for alias in self.aliases]),
            ("policies", [policy.name for policy in self.policies]),
            ("ledgers", [ledger.name for ledger in self.ledgers]),
            ("witnesses", [witness.name for witness in self.witnesses]),
        ):
            repeated = [name for name, count in Counter(names).items() if count > 1]
            if repeated:
                raise ValueError(f"[[{kind}]] has {repeated[0]!r} twice; names must differ")
        policies = {policy.name for policy in self.policies}
        for model in self.models:
            if model.policy not in policies:
                raise ValueError(f"model {model.name!r} names policy {model.policy!r}, which no [[policies]] defines")
        return self

    @model_validator(mode="after")
    def _aliases_lead_to_models(self) -> Self:
        kinds = {model.name: model.kind for model in self.models}
        aliases = {alias.name for alias in self.aliases}
        if AUTO in kinds.keys() | aliases:
            raise ValueError(f"{AUTO!r} means that the gateway chooses; name the model or alias otherwise")
        if taken := aliases & kinds.keys():
            raise ValueError(f"{min(taken)!r} is in [[aliases]] and in [[models]]; names must differ")
        for alias in self.aliases:
            for target in alias.targets:
                if target.model in aliases | {AUTO}:
                    raise ValueError(f"alias {alias.name!r} leads to {target.model!r}, and an alias leads to models")
                if target.model not in kinds:
                    raise ValueError(f"alias {alias.name!r} leads to {target.model!r}, which no [[models]] defines")
            if len({kinds[target.model] for target in alias.targets}) > 1:
                raise ValueError(f"alias {alias.name!r} leads to models of different kinds")
        return self

    @model_validator(mode="after")
    def _auto_falls_back(self) -> Self:
        fallback = self.routing.auto_fallback
        if fallback is None:
            if chosen := next((model.name for model in self.models if model.auto), None):
                raise ValueError(f"model {chosen!r} has auto, and routing.auto_fallback names no model")
        elif fallback not in {model.name for model in self.models if model.kind == "chat"}:
            raise ValueError(f"routing.auto_fallback is {fallback!r}, which no [[models]] of kind chat defines")
        return self

    @model_validator(mode="after")
    def _some_server_is_left(self) -> Self:
        _require_servers(self)
        return self

    @model_validator(mode="after")
    def _logs_differ(self) -> Self:
        origins = Counter([self.log.origin, *(ledger.verifier.name for ledger in self.ledgers)])
        for origin, count in origins.items():
            if count > 1:
                raise ValueError(f"{origin!r} names two logs; [log] origin and the keys of [[ledgers]] must differ")
        return self

    @model_validator(mode="after")
    def _witnesses_make_the_quorum(self) -> Self:
        if self.log.quorum is not None and not self.witnesses:
            raise ValueError("log.quorum asks for witnesses, and no [[witnesses]] names one")
        _ = self.quorum
        return self

    def reloaded(self, newer: Self) -> Self:
        """These settings with what of newer ones a running gateway can take up. Raises SettingsError."""
        changed = self.model_copy(update={name: getattr(newer, name) for name in LIVE})
        try:
            # The engine that runs may not be the one that the newer settings name.
            _require_bases(changed)
            _require_servers(changed)
        except ValueError as error:
            raise SettingsError(str(error)) from None
        return changed

    def differing_for_good(self, newer: Self) -> list[str]:
        """The keys that newer settings change and a running gateway does not."""
        found = []
        for name in type(self).model_fields.keys() - set(LIVE):
            ours, theirs = getattr(self, name), getattr(newer, name)
            if isinstance(ours, BaseModel):
                keys = type(ours).model_fields
                found += [f"{name}.{key}" for key in keys if getattr(ours, key) != getattr(theirs, key)]
            elif ours != theirs:
                found.append(name)
        return sorted(found)

    @property
    def quorum(self) -> Quorum | None:
        """The witnesses, and how many a checkpoint should have; None where there are none."""
        witnesses = tuple(witness.verifier for witness in self.witnesses)
        if not witnesses:
            return None
        if self.log.quorum is None:
            return Quorum.majority(witnesses)
        return Quorum(witnesses=witnesses, count=self.log.quorum)

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        _require_bases(self)
        _require_one_engine(self)
        return self


def _require_one_engine(settings: Settings) -> None:
    """Raise ValueError where several processes would each have a model of their own."""
    if settings.server.workers > 1 and settings.engine.kind == "embedded":
        raise ValueError(
            'server.workers above 1 needs [engine] kind = "vllm"; the embedded engine lives in one process'
        )


def _require_servers(settings: Settings) -> None:
    """Raise ValueError unless the servers that are drained are the engine's, and not all of them."""
    servers, drained = set(settings.engine.servers), set(settings.routing.drain)
    if unknown := drained - servers:
        raise ValueError(f"routing.drain has {min(unknown)}, which is not among engine.servers")
    if drained and drained == servers:
        raise ValueError("routing.drain has every one of engine.servers; some server must take work")


def _require_bases(settings: Settings) -> None:
    """Raise ValueError unless the engine and the embedder run what the models are based on."""
    runs = {
        "chat": ("[engine] name", settings.engine.name),
        "embedding": ("[retrieval] embedder", settings.retrieval.embedder),
    }
    for model in settings.models:
        key, base = runs[model.kind]
        if model.base != base:
            raise ValueError(
                f"model {model.name!r} has base {model.base!r}; a model of kind {model.kind} runs on {key}, {base!r}"
            )


def load(path: Path) -> Settings:
    """Read a configuration file and the environment; relative paths in it become relative to its folder.

    Raises SettingsError naming the key.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path} does not exist; `tributary init` writes one") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SettingsError(f"{path}: {error}") from None
    _refuse_unknown_variables()
    try:
        settings = Settings(**document)
    except ValidationError as error:
        raise SettingsError(f"{path}: {describe(error)}") from None
    return _anchored(settings, path.resolve().parent)


def describe(error: ValidationError) -> str:
    """A validation error as one line a fault: the key's dotted name, then what is wrong with it."""
    lines = []
    for fault in error.errors(include_url=False):
        key = ".".join(str(part) for part in fault["loc"]) or "file"
        message = "this key does not exist" if fault["type"] == "extra_forbidden" else fault["msg"]
        lines.append(f"{key}: {message.removeprefix('Value error, ')}")
    return "\n".join(lines)


def _refuse_unknown_variables() -> None:
    for variable in os.environ:
        if variable.startswith(ENVIRONMENT_PREFIX):
            section = variable.removeprefix(ENVIRONMENT_PREFIX).split("__")[0].lower()
            if section not in Settings.model_fields:
                raise SettingsError(f"environment variable {variable}: there is no section {section!r}")


def _anchored_model(folder: Path, model: str, kind: str) -> str:
    """A folder's path made absolute. What is no folder may be a name that vLLM knows."""
    path = folder / model
    return str(path) if kind == "embedded" or path.is_dir() else model


def _anchored(settings: Settings, folder: Path) -> Settings:
    """The same settings with every relative path made absolute against the configuration file's folder."""
    url = sa.make_url(settings.database.url)
    if url.get_backend_name() == "sqlite" and url.database:
        url = url.set(database=str(folder / url.database))
    model, chain_key = settings.engine.model, settings.chain.key_file
    changes: dict[str, dict[str, object]] = {
        "database": {"url": url.render_as_string(hide_password=False)},
        "log": {"signing_key_file": folder / settings.log.signing_key_file},
        "engine": {"model": model and _anchored_model(folder, model, settings.engine.kind)},
        "chain": {"key_file": chain_key and folder / chain_key},
        "adapters": {"directory": folder / settings.adapters.directory},
        "retrieval": {"index_file": folder / settings.retrieval.index_file},
    }
    sections = {name: getattr(settings, name).model_copy(update=change) for name, change in changes.items()}
    return settings.model_copy(update=sections)
