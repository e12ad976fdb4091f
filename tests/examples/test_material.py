import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors.numpy import load_file

EXAMPLES = Path(__file__).parents[2] / "examples"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


material = _load("material")
MANIFEST = material.read_manifest()
DOCUMENTS = {corpus["name"]: material.documents_of(corpus) for corpus in MANIFEST["corpora"]}
QUESTIONS = [*material.read_questions("demo"), *material.read_questions("held_out")]
DATASETS = sorted((EXAMPLES / "training").rglob("*.jsonl"))
ADAPTERS = sorted(path.parent for path in EXAMPLES.glob("adapters/*/adapter_config.json"))


def test_every_file_belongs_to_exactly_one_owner():
    claims = [path for documents in DOCUMENTS.values() for path in documents]
    files = [str(path.relative_to(EXAMPLES)) for path in (EXAMPLES / "corpora").rglob("*") if path.is_file()]
    assert sorted(claims) == sorted(files)


def test_the_material_is_as_large_as_it_says():
    assert len(DOCUMENTS) == 3
    assert sum(map(len, DOCUMENTS.values())) == 60
    assert len(material.read_questions("demo")) >= 12
    assert len(material.read_questions("held_out")) >= 40


def test_contributors_are_unique_and_cover_every_owner_developer_and_author():
    ids = [contributor["id"] for contributor in MANIFEST["contributors"]]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch("[a-z0-9][a-z0-9-]{0,62}", contributor) for contributor in ids)
    owners = {holding["owner"] for corpus in MANIFEST["corpora"] for holding in corpus["holdings"]}
    developers = {adapter["developer"] for adapter in MANIFEST["adapters"]}
    authors = {dataset["contributor"] for adapter in MANIFEST["adapters"] for dataset in adapter["datasets"]}
    assert owners | developers | authors == set(ids)


def test_near_copies_and_contradictions_name_documents():
    named = {pair[key] for pair in MANIFEST["near_copies"] for key in ("original", "copy")}
    named |= {document for contradiction in MANIFEST["contradictions"] for document in contradiction["documents"]}
    assert named <= {path for documents in DOCUMENTS.values() for path in documents}


def test_question_ids_and_questions_are_unique():
    assert len({question.id for question in QUESTIONS}) == len(QUESTIONS)
    assert len({question.question for question in QUESTIONS}) == len(QUESTIONS)


@pytest.mark.parametrize("corpus", DOCUMENTS)
def test_an_answer_stands_in_its_document_and_in_no_other_of_the_corpus(corpus: str):
    texts = {document: material.read_source(document).text for document in DOCUMENTS[corpus]}
    copies = {pair["original"]: pair["copy"] for pair in MANIFEST["near_copies"]}
    for question in QUESTIONS:
        if question.corpus == corpus:
            assert question.near_copies == ((copies[question.document],) if question.document in copies else ())
            holders = {document for document, text in texts.items() if material.holds(text, question.answer)}
            assert holders == {question.document, *question.near_copies}, question.id


def test_nothing_measured_was_trained_on():
    trained = material.normalise("\n".join(path.read_text() for path in DATASETS))
    for question in QUESTIONS:
        assert material.normalise(question.question) not in trained
    sources = [material.read_source(document) for documents in DOCUMENTS.values() for document in documents]
    assert not [source.title for source in sources if material.normalise(source.text) in trained]


def test_every_dataset_has_an_author_and_as_much_weight_as_examples():
    listed = {
        EXAMPLES / dataset["file"]: dataset["weight"]
        for adapter in MANIFEST["adapters"]
        for dataset in adapter["datasets"]
    }
    counted = {path: sum(len(record.examples) for record in material.read_dataset(path)) for path in DATASETS}
    assert listed == counted
    assert min(counted.values()) >= 80


def test_a_grounded_example_is_answered_by_its_document():
    for path in (EXAMPLES / "training" / "grounded").iterdir():
        for record in material.read_dataset(path):
            said = set(material.normalise(f"{record.source.title} {record.source.text}").split())
            for example in record.examples:
                answer = set(material.normalise(example.answer).split())
                asked = set(material.normalise(example.question).split())
                assert (answer - asked) & said, example


def test_telegrams_say_stop_instead_of_full_stops():
    for record in material.read_dataset(EXAMPLES / "training" / "style" / "wire-office.jsonl"):
        for example in record.examples:
            assert "." not in example.answer
            assert example.answer.endswith(" STOP")


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("The 4,300 crowns.", "4300 crowns"),
        ("Saint Brannoc's churchyard", "saint brannocs churchyard"),
        ("forty-one boats", "Forty one boats"),
        ("6.82 metres!", "6.82  metres"),
    ],
)
def test_normalising_ignores_what_does_not_change_an_answer(left: str, right: str):
    assert material.normalise(left) == material.normalise(right)


def test_an_answer_holds_whole_words_only():
    assert material.holds("It has 13 arches.", "13")
    assert not material.holds("It has 130 arches.", "13")
    assert not material.holds("It weighs 3.7 kilograms.", "7 kilograms")


def test_the_manifest_lists_the_adapters_that_are_there():
    assert [EXAMPLES / adapter["path"] for adapter in sorted(MANIFEST["adapters"], key=lambda a: a["path"])] == ADAPTERS


@pytest.mark.parametrize("folder", ADAPTERS, ids=lambda folder: folder.name)
def test_an_adapter_is_small_of_rank_8_and_knows_no_machine(folder: Path):
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    weights = folder / "adapter_model.safetensors"
    assert weights.stat().st_size < 2_000_000
    for name, tensor in load_file(weights).items():
        assert 8 in tensor.shape, name
        assert np.isfinite(tensor).all(), name
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] == 8
    assert config["base_model_name_or_path"] == "smollm2-135m-instruct"
    assert "/" not in (folder / "adapter_config.json").read_text()
