"""One TOML file, every key also an environment variable, read once and passed down.

`TRIBUTARY__SERVER__PORT=9000` overrides `port` under `[server]`. A key that does not exist, or a value of the wrong
type, stops start-up with the key's name.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal, Self

import sqlalchemy as sa
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from gateway.adapter_sources import SourceKind
from gateway.grounding import DEFAULT_INSTRUCTION
from gateway.identifiers import ADAPTER_NAME, ADAPTER_VERSION
from ledger_client import Quorum, Verifier, WitnessVerifier, from_address
from metering import Price, SettlementTerms, SplitPolicy

ENVIRONMENT_PREFIX = "TRIBUTARY__"
BASE_MODEL = "smollm2-135m-instruct"
AUTO = "auto"
LIVE = ("models", "policies", "aliases", "routing")  # what a running gateway takes up when it reloads
DATABASES = ("sqlite", "postgresql")


class SettingsError(ValueError):
    """The configuration cannot be used; the message names the key and says what it may be."""


def _whole(pattern: str) -> StringConstraints:
    """Text that a pattern matches from its first character to its last; pydantic alone would search for it."""
    return StringConstraints(pattern=f"^(?:{pattern})$")


def _is_database(value: str) -> str:
    try:
        url = sa.make_url(value)
    except sa.exc.ArgumentError:
        url = None
    if url is None or url.get_backend_name() not in DATABASES:
        raise ValueError("it must be a database's URL: sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME")
    if url.get_backend_name() == "sqlite" and (not url.database or url.database.startswith((":memory:", "file:"))):
        raise ValueError("it must name a file, as sqlite:///tributary.db does; books in memory end with the process")
    return value


def _is_price(value: str) -> str:
    Price.parse(prompt=value, completion=value)
    return value


def _is_verifier_key(value: str) -> str:
    return Verifier.parse(value).verifier_key


def nano_from_usd(value: str) -> int:
    """Read USD as whole nano-USD. Raises ValueError on a sign, an exponent, or more than nine decimals."""
    match = re.fullmatch(r"(0|[1-9][0-9]{0,9})(?:\.([0-9]{1,9}))?", value)
    if match is None:
        raise ValueError('it must be USD as a string with at most 9 decimals, such as "5.00"')
    whole, decimals = match.groups()
    return int(whole) * 10**9 + int((decimals or "").ljust(9, "0"))


def _is_usd(value: str) -> str:
    nano_from_usd(value)
    return value


def _is_address(value: str) -> str:
    from_address(value)
    return value


def _is_witness_key(value: str) -> str:
    WitnessVerifier.parse(value)
    return value


UsdAmount = Annotated[str, AfterValidator(_is_usd)]
EvmAddress = Annotated[str, AfterValidator(_is_address)]
Name = Annotated[str, _whole(r"[a-z0-9][a-z0-9._-]{0,62}")]
AdapterReference = Annotated[str, _whole(f"{ADAPTER_NAME}(?:@{ADAPTER_VERSION})?")]
GatewayId = Annotated[str, _whole(r"[a-z0-9][a-z0-9-]{0,62}")]
Origin = Annotated[str, _whole(r"[^\s+\x00-\x1f\x7f]{1,255}")]
DatabaseUrl = Annotated[str, AfterValidator(_is_database)]
Decimals = Annotated[str, AfterValidator(_is_price)]
VerifierKey = Annotated[str, AfterValidator(_is_verifier_key)]
WitnessKey = Annotated[str, AfterValidator(_is_witness_key)]
Sha256 = Annotated[str, _whole(r"[0-9a-f]{64}")]
HttpUrl = Annotated[str, _whole(r"https?://[^\s/?#@]+(?:/[^\s?#]*)?")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Server(_Section):
    """Where the gateway listens."""

    id: GatewayId = Field(default="gateway-1", description="names its sequence of requests")
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535, description="0 takes any free port")
    workers: int = Field(default=1, ge=1, le=64, description="processes that serve; above 1 the engine is vLLM")


class DatabaseSection(_Section):
    """Where the records are kept: an SQLAlchemy URL; a relative SQLite path is relative to the configuration file."""

    url: DatabaseUrl = "sqlite:///tributary.db"


class LogSection(_Section):
    """The transparency log's name and signing key; a relative path is relative to the configuration file."""

    origin: Origin = "tributary.local/log"
    signing_key_file: Path = Path("log.key")
    quorum: int | None = Field(
        default=None, ge=1, description="how many witnesses a checkpoint should have; absent, more than half of them"
    )
    cosign_interval_s: float = Field(default=5, gt=0, le=3600, description="how often witnesses are asked")


class WitnessSection(_Section):
    """A witness that is asked to cosign the log's checkpoints."""

    name: Name = Field(description="what metrics call it")
    url: HttpUrl = Field(description="its submission prefix")
    key: WitnessKey = Field(description="its verifier key")

    @property
    def verifier(self) -> WitnessVerifier:
        """The key, read."""
        return WitnessVerifier.parse(self.key)


EngineKind = Literal["embedded", "vllm"]


class EngineSection(_Section):
    """What generates and scores."""

    kind: EngineKind = "embedded"
    servers: tuple[HttpUrl, ...] = Field(
        default=(), max_length=256, description="vLLM servers that run already; absent, `serve` starts one"
    )
    command: tuple[str, ...] = Field(default=("vllm",), min_length=1, description="what starts a vLLM server")
    arguments: tuple[str, ...] = Field(default=(), description="more of `vllm serve`'s, for the one that is started")
    slots: int = Field(default=16, ge=1, le=4096, description="adapters that each vLLM server holds at once")
    api_key: SecretStr | None = Field(default=None, description="what the vLLM servers ask for")
    digest: Sha256 | None = Field(default=None, description="of the base's weights; absent, computed from `model`")
    priorities: bool = Field(default=False, description="whether the servers run `--scheduling-policy priority`")
    name: Name = Field(default=BASE_MODEL, description="what models call it in `base`")
    model: str | None = Field(
        default=None,
        description="a folder of safetensors, or a name that vLLM knows; absent, SmolLM2 from its wheel",
    )
    context_tokens: int = Field(default=2048, ge=64, le=1_048_576)
    dtype: Literal["fp32", "bf16"] = "fp32"
    device: str = "cpu"
    threads: int | None = Field(default=None, ge=1, description="absent, PyTorch decides")

    @model_validator(mode="after")
    def _servers_are_of_vllm(self) -> Self:
        if self.servers and self.kind != "vllm":
            raise ValueError('servers are of kind = "vllm"')
        if repeated := [url for url, count in Counter(self.servers).items() if count > 1]:
            raise ValueError(f"servers has {repeated[0]} twice")
        if self.digest is not None and self.folder is not None:
            raise ValueError("digest is computed from model; give one of them")
        return self

    @property
    def folder(self) -> Path | None:
        """Where the model's files are, if `model` names a folder of this machine."""
        return Path(self.model) if self.model is not None and Path(self.model).is_dir() else None


class AdaptersSection(_Section):
    """Where adapters may come from, and where they are kept."""

    directory: Path = Field(default=Path("adapters"), description="the store; relative to the configuration file")
    sources: tuple[SourceKind, ...] = Field(default=("directory",), description="of directory, s3 and hub")
    max_rank: int = Field(default=64, ge=1, le=512, description="what the engine can hold")


class RetrievalSection(_Section):
    """How passages are found."""

    embedder: Literal["all-minilm-l6-v2"] = "all-minilm-l6-v2"
    top_k: int = Field(default=4, ge=1, le=32)
    index_file: Path = Path("passages.faiss")


class AttributionSection(_Section):
    """How answers are attributed."""

    estimator: Literal["two-end", "exact"] = "two-end"
    mode: Literal["async", "inline"] = "async"


class Limits(_Section):
    """What one request may cost the gateway, and how long what is left of it is kept."""

    body_bytes: int = Field(default=1 << 20, ge=1024)
    default_max_tokens: int = Field(default=128, ge=1)
    body_s: float = Field(default=30, gt=0, description="a request's body arrives within it, or is not read further")
    first_token_s: float = Field(default=120, gt=0, description="a stream begins within it, or nothing is charged")
    stall_s: float = Field(default=60, gt=0, description="a client that takes nothing of its stream for so long is cut")
    answer_s: float = Field(default=600, gt=0, description="an answer that takes longer ends there, as by max_tokens")
    intent_s: float = Field(default=900, gt=0, description="what was admitted earlier and has not ended is voided")
    sweep_s: float = Field(default=30, gt=0, description="how often what is left over is looked for")
    concurrent: int = Field(default=256, ge=1, description="answers at once, over all keys")
    concurrent_per_key: int | None = Field(default=None, ge=1, description="absent, three quarters of `concurrent`")
    queue: int = Field(default=1024, ge=0, description="requests that may wait for a turn; more are told to come later")
    queue_s: float = Field(default=30, gt=0, description="how long one waits for a turn")
    replay_hours: float = Field(default=24, ge=0, description="responses to keyed requests are kept so long; 0, never")
    replay_bytes: int = Field(default=1 << 22, ge=0, description="longer responses to keyed requests are not kept")

    @model_validator(mode="after")
    def _answers_end_before_their_intents(self) -> Self:
        if self.intent_s <= self.answer_s:
            raise ValueError("intent_s must be above answer_s, or a gateway would void what another still answers")
        return self


class SettlementSection(_Section):
    """How a closed month is paid: `tributary settle`."""

    method: Literal["csv", "chain"] = Field(
        default="csv", description="csv pays everyone by an exported list; chain those who bound an address"
    )
    minimum_payout: UsdAmount = Field(default="1.00", description="USD; less is carried forward")
    token_decimals: int = Field(default=6, ge=0, le=18, description="of the token paid in; dust stays on the account")


class ChainSection(_Section):
    """The distributor contract on an EVM chain; absent, nothing is posted or claimed."""

    rpc_url: str | None = Field(default=None, description="any EVM JSON-RPC endpoint")
    chain_id: int | None = Field(default=None, ge=1, le=2**53 - 1)
    contract: EvmAddress | None = Field(default=None, description="the distributor, by EIP-55")
    key_file: Path | None = Field(default=None, description="the owner's key; absent, TRIBUTARY_CHAIN_KEY is read")

    @property
    def distributor(self) -> str | None:
        """The contract, and the chain that it is on, as CAIP-10 names them."""
        return f"eip155:{self.chain_id}:{self.contract}" if self.contract else None

    @model_validator(mode="after")
    def _all_or_nothing(self) -> Self:
        named = [self.rpc_url is not None, self.chain_id is not None, self.contract is not None]
        if any(named) and not all(named):
            raise ValueError("rpc_url, chain_id and contract go together")
        return self


class PriceSection(_Section):
    """USD for a million tokens, as decimal strings."""

    prompt: Decimals = "0"
    completion: Decimals = "0"

    def parsed(self) -> Price:
        """The price in integer nano-USD a token."""
        return Price.parse(prompt=self.prompt, completion=self.completion)


class ModelSection(_Section):
    """A served model: what a client names in `model`."""

    name: Name
    kind: Literal["chat", "embedding"] = "chat"
    base: Name = Field(default=BASE_MODEL, description="[engine] name, or [retrieval] embedder for an embedding model")
    adapter: AdapterReference | None = Field(default=None, description="NAME, its newest version, or NAME@VERSION")
    corpora: tuple[Name, ...] = ()
    licences: tuple[str, ...] | None = Field(default=None, description="those that allow the use; absent, any")
    top_k: int | None = Field(default=None, ge=1, le=32, description="absent, [retrieval] top_k")
    instruction: str = DEFAULT_INSTRUCTION
    policy: str = "default"
    price: PriceSection = PriceSection()
    description: str = ""
    examples: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), description="questions that it is for, which `auto` compares with"
    )
    auto: bool = Field(default=False, description="whether `auto` may choose it")

    @property
    def said_of_it(self) -> list[str]:
        """What `auto` compares a question with."""
        return [*filter(None, [self.description]), *self.examples]

    @model_validator(mode="after")
    def _auto_has_something_to_compare(self) -> Self:
        if self.auto and self.kind != "chat":
            raise ValueError("auto chooses among models of kind chat")
        if self.auto and not self.said_of_it:
            raise ValueError("auto needs a description or examples to compare questions with")
        return self


class TargetSection(_Section):
    """A model behind an alias, and its weight beside the others'."""

    model: Name
    weight: int = Field(default=1, ge=0, le=1_000_000, description="0 sends nothing there")


class AliasSection(_Section):
    """Another name for one model, or for several by weight."""

    name: Name
    targets: Annotated[tuple[TargetSection, ...], Field(min_length=1, max_length=32)]
    description: str = ""

    @model_validator(mode="after")
    def _some_target_is_reached(self) -> Self:
        if not any(target.weight for target in self.targets):
            raise ValueError("a weight must be above 0")
        repeated = [model for model, count in Counter(target.model for target in self.targets).items() if count > 1]
        if repeated:
            raise ValueError(f"targets has {repeated[0]!r} twice; add the weights")
        return self


class RoutingSection(_Section):
    """How `auto` chooses a model."""

    auto_fallback: Name | None = Field(default=None, description="takes what no model is like; absent, no `auto`")
    auto_threshold: float = Field(default=0.2, ge=-1, le=1, description="the least mean cosine that counts as like")


class PolicySection(_Section):
    """A split policy: who takes which parts per million of a charge."""

    name: Name
    version: int = Field(default=1, ge=1)
    fixed: dict[str, Annotated[int, Field(ge=0, le=1_000_000)]] = {"platform": 100_000, "base": 200_000}
    developer: int = Field(
        default=600_000, ge=0, le=1_000_000, description="of an adapter's part, ppm; the rest goes to its datasets"
    )
    residual: str = "residual"

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        self.parsed(base_model="any")
        return self

    def parsed(self, base_model: str) -> SplitPolicy:
        """The policy as it applies to answers of one base model: the part named `base` goes to that model's account."""
        accounts = {f"base:{base_model}" if part == "base" else part: ppm for part, ppm in self.fixed.items()}
        return SplitPolicy(
            name=f"{self.name}:{base_model}" if "base" in self.fixed else self.name,
            version=self.version,
            fixed_ppm=accounts,
            residual=self.residual,
            developer_ppm=self.developer,
        )


class LedgerSection(_Section):
    """A ledger elsewhere that the log is shipped to."""

    name: Name
    url: HttpUrl
    key: VerifierKey = Field(description="the ledger's verifier key, which it prints at its start")

    @property
    def verifier(self) -> Verifier:
        """The key, read."""
        return Verifier.parse(self.key)


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
            _require_bases(changed)  # the engine that runs may not be the one that the newer settings name
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
