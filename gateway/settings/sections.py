"""The sections of the configuration, each with what must hold inside it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from gateway.adapter_sources import SourceKind
from gateway.grounding import DEFAULT_INSTRUCTION
from gateway.settings.fields import (
    AdapterReference,
    DatabaseUrl,
    Decimals,
    EvmAddress,
    GatewayId,
    HttpUrl,
    Name,
    Origin,
    Sha256,
    UsdAmount,
    VerifierKey,
    WitnessKey,
)
from ledger_client import Verifier, WitnessVerifier
from metering import Price, SplitPolicy

BASE_MODEL = "smollm2-135m-instruct"


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
    worker: bool = Field(default=True, description="whether this gateway works on what waits; another one must then")


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
    """How `auto` chooses a model, and which servers get no work."""

    auto_fallback: Name | None = Field(default=None, description="takes what no model is like; absent, no `auto`")
    auto_threshold: float = Field(default=0.2, ge=-1, le=1, description="the least mean cosine that counts as like")
    drain: tuple[HttpUrl, ...] = Field(
        default=(), max_length=256, description="those of [engine] servers that get no new work"
    )


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
