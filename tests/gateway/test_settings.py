from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from gateway.settings import Settings, SettingsError, load
from ledger_client import WitnessSigner

TEMPLATE = Path("gateway/tributary.toml")
ALIAS = """
[[models]]
name = 'a'
[[models]]
name = 'e'
kind = 'embedding'
base = 'all-minilm-l6-v2'
[[aliases]]
name = 'b'
targets = [%s]
"""
WITNESS = """
[[witnesses]]
name = 'w1'
url = 'http://127.0.0.1:7070/w1'
key = 'remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2'
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "tributary.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", [TEMPLATE, Path("examples/tributary.toml")])
def test_the_committed_configurations_load(path: Path) -> None:
    settings = load(path)
    assert settings.models
    assert {model.policy for model in settings.models} <= {policy.name for policy in settings.policies}


def test_the_template_states_the_defaults() -> None:
    own = {"models": True, "database": True, "log": True, "retrieval": True, "adapters": {"directory"}}
    assert load(TEMPLATE).model_dump(exclude=own) == Settings().model_dump(exclude=own)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nprot = 1\n", "server.prot: this key does not exist"),
        ("[sever]\nport = 1\n", "sever: this key does not exist"),
        ("[server]\nport = 'x'\n", "server.port"),
        ("[server]\nport = 70000\n", "server.port"),
        ("[server\n", "tributary.toml"),
        ("[[models]]\nname = 'a'\npolicy = 'none'\n", "names policy 'none', which no [[policies]] defines"),
        ("[[models]]\nname = 'a'\n[[models]]\nname = 'a'\n", "has 'a' twice"),
        ("[[models]]\nname = 'A'\n", "models.0.name"),
        ("[[models]]\nname = 'a'\nprice = { prompt = '1e3' }\n", "models.0.price.prompt"),
        ("[[models]]\nname = 'a'\nprice = { prompt = '0.0001' }\n", "models.0.price.prompt"),
        ("[[models]]\nname = 'a'\nprice = { prompt = 0.1 }\n", "models.0.price.prompt"),
        ("[[policies]]\nname = 'default'\nfixed = { platform = 600000, base = 500000 }\n", "policies.0"),
        ("[[models]]\nname = 'a'\nadapter = 'qa@0'\n", "models.0.adapter"),
        ("[[models]]\nname = 'a'\nadapter = 'qa@'\n", "models.0.adapter"),
        ("[adapters]\nsources = ['web']\n", "adapters.sources.0"),
        ("[adapters]\nmax_rank = 0\n", "adapters.max_rank"),
        ("[attribution]\nestimator = 'guess'\n", "attribution.estimator"),
        ("[[models]]\nname = 'x Bad! name'\n", "models.0.name"),
        ("[[models]]\nname = 'a\\n'\n".replace("'", '"'), "models.0.name"),
        ("[[models]]\nname = 'a'\ncorpora = ['A b']\n", "models.0.corpora.0"),
        ("[[policies]]\nname = 'x y'\n", "policies.0.name"),
        ("[server]\nid = 'ok NOT ok'\n", "server.id"),
        ("[engine]\nname = 'a b'\n", "engine.name"),
        ("[log]\norigin = 'a b'\n", "log.origin"),
        ("[log]\nquorum = 1\n", "log.quorum asks for witnesses"),
        (f"[log]\nquorum = 0\n{WITNESS}", "log.quorum"),
        (f"[log]\nquorum = 2\n{WITNESS}", "a quorum of 1 witnesses cannot be 2"),
        (WITNESS + WITNESS, "[[witnesses]] has 'w1' twice"),
        (WITNESS + WITNESS.replace("'w1'", "'w2'"), "two of the witnesses have one key"),
        (WITNESS.replace("http:", "ftp:"), "witnesses.0.url"),
        (WITNESS.replace("http://", "http://user:secret@"), "witnesses.0.url"),
        (WITNESS.replace("da77ade7", "da77ade8"), "witnesses.0.key: the verifier key's id"),
        (WITNESS.replace("+BOvN", "+AOvN"), "witnesses.0.key: a witness's key is of the Ed25519 type 0x04"),
        (WITNESS.replace("'w1'", "'W 1'"), "witnesses.0.name"),
        ("[log]\norigin = ''\n", "log.origin"),
        ("[database]\nurl = 'nonsense'\n", "database.url: it must be a database's URL"),
        ("[database]\nurl = 'nonsense://host/name'\n", "database.url: it must be a database's URL"),
        ("[database]\nurl = 'sqlite://'\n", "database.url: it must name a file"),
        ("[database]\nurl = 'sqlite:///:memory:'\n", "database.url: it must name a file"),
        ("[database]\nurl = 'sqlite:///file:t?mode=memory&uri=true'\n", "database.url: it must name a file"),
        (
            "[[models]]\nname = 'a'\nbase = 'other'\n",
            "model 'a' has base 'other'; a model of kind chat runs on [engine]",
        ),
        ("[engine]\nname = 'other'\n[[models]]\nname = 'a'\n", "runs on [engine] name, 'other'"),
        (ALIAS % "", "aliases.0.targets"),
        (ALIAS % "{ model = 'none' }", "alias 'b' leads to 'none', which no [[models]] defines"),
        (ALIAS % "{ model = 'b' }", "alias 'b' leads to 'b', and an alias leads to models"),
        (ALIAS % "{ model = 'auto' }", "alias 'b' leads to 'auto', and an alias leads to models"),
        (ALIAS % "{ model = 'a' }, { model = 'e' }", "alias 'b' leads to models of different kinds"),
        (ALIAS % "{ model = 'a' }, { model = 'a' }", "aliases.0: targets has 'a' twice"),
        (ALIAS % "{ model = 'a', weight = 0 }", "aliases.0: a weight must be above 0"),
        (ALIAS % "{ model = 'a', weight = -1 }", "aliases.0.targets.0.weight"),
        (ALIAS % "{ model = 'a', weight = 0.5 }", "aliases.0.targets.0.weight"),
        ((ALIAS % "{ model = 'a' }").replace("'b'", "'a'"), "'a' is in [[aliases]] and in [[models]]"),
        ((ALIAS % "{ model = 'a' }").replace("'b'", "'auto'"), "'auto' means that the gateway chooses"),
        ("[[models]]\nname = 'auto'\n", "'auto' means that the gateway chooses"),
        ("[routing]\ndrain = ['http://a:1']\n", "routing.drain has http://a:1, which is not among engine.servers"),
        (
            "[engine]\nkind = 'vllm'\nservers = ['http://a:1']\n[routing]\ndrain = ['http://a:1']\n",
            "some server must take work",
        ),
        ("[[models]]\nname = 'a'\nauto = true\n", "models.0: auto needs a description or examples"),
        ("[[models]]\nname = 'a'\nauto = true\ndescription = 'x'\n", "routing.auto_fallback names no model"),
        (
            "[[models]]\nname = 'e'\nauto = true\nkind = 'embedding'\n",
            "models.0: auto chooses among models",
        ),
        (ALIAS % "{ model = 'a' }" + "[routing]\nauto_fallback = 'b'\n", "routing.auto_fallback is 'b', which no"),
        (ALIAS % "{ model = 'a' }" + "[routing]\nauto_fallback = 'e'\n", "routing.auto_fallback is 'e', which no"),
        ("[routing]\nauto_threshold = 1.1\n", "routing.auto_threshold"),
        ("[[models]]\nname = 'e'\nkind = 'embedding'\n", "model 'e' has base 'smollm2-135m-instruct'; a model of kind"),
    ],
)
def test_a_bad_value_stops_with_the_name_of_its_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        load(write(tmp_path, text))
    assert message in str(error.value)


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="tributary init"):
        load(tmp_path / "none.toml")


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "[server]\nport = 1111\nhost = '0.0.0.0'\n")
    monkeypatch.setenv("TRIBUTARY__SERVER__PORT", "2222")
    server = load(path).server
    assert (server.port, server.host) == (2222, "0.0.0.0")  # noqa: S104 - nothing listens


def test_an_environment_variable_for_no_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "")
    monkeypatch.setenv("TRIBUTARY__SERVER__PROT", "1")
    with pytest.raises(SettingsError, match=r"server\.prot"):
        load(path)
    monkeypatch.delenv("TRIBUTARY__SERVER__PROT")
    monkeypatch.setenv("TRIBUTARY__SEVER__PORT", "1")
    with pytest.raises(SettingsError, match="TRIBUTARY__SEVER__PORT"):
        load(path)


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    settings = load(write(tmp_path, ""))
    assert settings.database.url == f"sqlite:///{tmp_path / 'tributary.db'}"
    assert settings.log.signing_key_file == tmp_path / "log.key"
    assert settings.retrieval.index_file == tmp_path / "passages.faiss"
    assert settings.engine.model is None
    settings = load(write(tmp_path, "[engine]\nmodel = 'weights'\n[database]\nurl = 'sqlite+pysqlite:///books/t.db'\n"))
    assert settings.engine.model == str(tmp_path / "weights")
    assert settings.database.url == f"sqlite+pysqlite:///{tmp_path / 'books/t.db'}"


def test_a_folder_with_odd_characters_keeps_its_database(tmp_path: Path) -> None:
    folder = tmp_path / "a b?c%20d"
    folder.mkdir()
    assert sa.make_url(load(write(folder, "")).database.url).database == str(folder / "tributary.db")


@pytest.mark.parametrize("url", ["sqlite:////var/t.db", "postgresql+psycopg://me:secret@host/name"])
def test_other_database_addresses_are_left_alone(tmp_path: Path, url: str) -> None:
    assert load(write(tmp_path, f"[database]\nurl = '{url}'\n")).database.url == url


def test_the_base_part_of_a_policy_goes_to_the_models_base() -> None:
    policy = Settings().policies[0].parsed("some-base")
    assert policy.fixed_ppm == {"platform": 100_000, "base:some-base": 200_000}
    assert policy.pool_ppm == 700_000


def test_witnesses_make_a_quorum_of_more_than_half_unless_it_is_set(tmp_path: Path) -> None:
    keys = [WitnessSigner.generate(f"witness.example/w{number}").verifier_key for number in range(3)]
    sections = "".join(
        f"[[witnesses]]\nname = 'w{number}'\nurl = 'https://w{number}.example'\nkey = '{key}'\n"
        for number, key in enumerate(keys)
    )
    quorum = load(write(tmp_path, sections)).quorum
    assert quorum
    assert ([witness.verifier_key for witness in quorum.witnesses], quorum.count) == (keys, 2)
    quorum = load(write(tmp_path, f"[log]\nquorum = 3\n{sections}")).quorum
    assert quorum
    assert quorum.count == 3
    assert load(write(tmp_path, "")).quorum is None
