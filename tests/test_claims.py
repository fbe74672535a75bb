"""The map of claims: every sentence that promises something is in it, and what is said to try it is there.

A failure names document, line and sentence. `python tests/claims_map.py` prints what is missing as lines for
threat_models/claims.toml, and writes threat_models/claims.md.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests import claims_map as MAP

ROOT: Path = MAP.ROOT
CLAIMS = {claim.name: claim for claim in MAP.claims()}
PAGES = sorted(path.name for path in (ROOT / "threat_models").glob("*.md"))
NO_ATTACK = {"README.md", "claims.md", "not-defended.md"}


@pytest.mark.parametrize("document", MAP.documents())
def test_every_sentence_that_promises_is_in_the_map(document: str) -> None:
    left = [f"{document}:{each.line} ({each.section}): {each.text}" for each in MAP.unmapped(document)]
    assert not left, "say in threat_models/claims.toml what tries these, or why they promise nothing:\n" + "\n".join(
        left
    )


@pytest.mark.parametrize("entry", [*MAP.claims(), *MAP.exemptions()], ids=lambda each: each.name)
def test_quotes_stand_in_their_documents(entry: Any) -> None:
    for document, quotes in entry.quotes.items():
        text = MAP.text_of(document)
        assert quotes
        for quote in quotes:
            assert quote in text, f"{document} no longer says: {quote}"


@pytest.mark.parametrize("id", CLAIMS)
def test_what_tries_a_claim_is_there(id: str) -> None:
    claim = CLAIMS[id]
    assert claim.tried
    problems = [problem for tried in claim.tried if (problem := MAP.missing(tried))]
    assert not problems, f"{claim.says} {problems}"


def test_ids_are_used_once_and_nothing_is_quoted_by_claim_and_exemption() -> None:
    assert len(CLAIMS) == len(MAP.claims())
    quoted = {(d, quote) for claim in MAP.claims() for d, quotes in claim.quotes.items() for quote in quotes}
    exempt = {(d, quote) for each in MAP.exemptions() for d, quotes in each.quotes.items() for quote in quotes}
    assert not quoted & exempt


@pytest.mark.parametrize("id", CLAIMS)
def test_files_that_a_row_names_are_among_what_tries_it(id: str) -> None:
    """A table of README or threat_models/ that names a test, and the map, say the same."""
    claim = CLAIMS[id]
    rows = [quote for quotes in claim.quotes.values() for quote in quotes if quote.startswith("|")]
    tests = {tried.partition("::")[0] for tried in claim.tried if "::" in tried}
    for file in re.findall(r"`(tests/[\w/]+\.py)`", " ".join(rows)):
        # A list of mutants and a checker of vectors are run by the tests that name them.
        named = (test for test in tests if Path(file).stem in (ROOT / test).read_text())
        assert file in tests or any(named), f"{id}: {file}"


def test_the_page_is_the_map_in_words() -> None:
    written = (ROOT / "threat_models/claims.md").read_text()
    assert written == MAP.page(), "run: python tests/claims_map.py"


@pytest.mark.parametrize("name", PAGES)
def test_links_of_the_pages_lead_somewhere(name: str) -> None:
    text = (ROOT / "threat_models" / name).read_text()
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert link.startswith("http") or (ROOT / "threat_models" / link).exists(), f"{name} links {link}"


def test_the_index_lists_every_page() -> None:
    index = (ROOT / "threat_models/README.md").read_text()
    rows = [line for line in index.splitlines() if line.startswith("| [")]
    listed = [found[1] for line in rows if (found := re.match(r"\| \[[^]]+\]\(([\w-]+\.md)\)", line))]
    assert len(listed) == len(rows)
    assert sorted(listed) == sorted(set(PAGES) - NO_ATTACK)


def test_what_is_not_defended_is_linked_from_the_first_screen() -> None:
    first = (ROOT / "README.md").read_text().splitlines()[:25]
    assert any("(threat_models/not-defended.md)" in line for line in first)


# The checks can fail


def test_a_new_promise_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    promise = "Nobody ever learns how many silos there are."
    (tmp_path / "README.md").write_text(text.replace("## What you will see\n", f"## What you will see\n\n{promise}\n"))
    monkeypatch.setattr(MAP, "ROOT", tmp_path)
    MAP.passages.cache_clear()
    try:
        found = MAP.unmapped("README.md")
    finally:
        MAP.passages.cache_clear()
    assert [passage.text for passage in found] == [promise]
    assert found[0].line == text.splitlines().index("## What you will see") + 3


def test_a_row_more_in_a_list_of_promises_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever its words."""
    text = (ROOT / "README.md").read_text()
    row = "| Models are good | us | hope |"
    (tmp_path / "README.md").write_text(text.replace("\n## What is not promised", f"{row}\n\n## What is not promised"))
    monkeypatch.setattr(MAP, "ROOT", tmp_path)
    MAP.passages.cache_clear()
    try:
        assert row in [passage.text for passage in MAP.unmapped("README.md")]
    finally:
        MAP.passages.cache_clear()


@pytest.mark.parametrize(
    "tried",
    [
        "tests/secagg/test_secagg_breaks.py::test_of_nothing",
        "tests/secagg/test_of_nothing.py",
        "tests/secagg/test_secagg_breaks.py",
        "tests/secagg/rule_mutants.py",
        "tests/secagg/rule_mutants.py::main",
        "tests/secagg/conftest.py::dishonest",
        "tests/secagg/test_secagg_blocks.py::opened_lists",
        "tests/secagg/test_secagg_blocks.py::told",
        "tests/federation/test_policy_rules.py::test_a_violation_is_refused_by_its_rule[nothing]",
        "tests/federation/test_policy_rules.py::test_every_rule_is_explained_and_violated[session]",
        "make bench-nothing",
        'make bench-threats ARGS="--only nothing"',
        "python -m autoflip_secure.attacks.nothing",
        "python threat_models/nothing.py",
    ],
)
def test_what_is_not_there_is_noticed(tried: str) -> None:
    assert MAP.missing(tried)


@pytest.mark.parametrize(
    "tried",
    [
        "tests/federation/test_policy_rules.py::test_a_violation_is_refused_by_its_rule[session]",
        "make bench-threats",
        "python -m autoflip_secure.privacy.audit",
    ],
)
def test_what_is_there_is_found(tried: str) -> None:
    assert not MAP.missing(tried)


@pytest.mark.parametrize(
    "text",
    [
        "The server does not see any update.",
        "Every message is encrypted.",
        "Hospitals' updates stay hidden from the server.",
        "What is deleted is gone from the database's log too, else the request fails.",
        "Two of the others or more stay hidden in it by one sum.",
        "A part is not kept.",
        "Therefore silos insist on c + 2 + moments silos.",
        "The secure sum hides which silo a change came from.",
        "Keys remain secret.",
    ],
)
def test_a_promise_is_told_by_its_words(text: str) -> None:
    assert MAP.promises(text)


@pytest.mark.parametrize("text", ["Models are pruned.", "The option `never` and `--all` are names."])
def test_other_sentences_promise_nothing(text: str) -> None:
    assert not MAP.promises(text)


def test_documents_are_cut_into_sentences_rows_and_items() -> None:
    cut = list(
        MAP._blocks(
            "# Head\n\nOne line\nof text.\n\n| a | b |\n|---|---|\n| c | d |\n\n1. An item\n   goes on.\n- Another.\n\n"
            "```\nno code\n```\n\n    no code\n\n<!-- results: x -->\n| no | figures |\n<!-- /results -->\n"
            "**What is not defended.** Much.\n- All of it.\n"
        )
    )
    assert [(section, listed, text) for _, section, listed, text in cut] == [
        ("Head", False, "One line of text."),
        ("Head", True, "| c | d |"),
        ("Head", True, "An item goes on."),
        ("Head", True, "Another."),
        ("What is not defended", False, "**What is not defended.** Much."),
        ("What is not defended", True, "All of it."),
    ]
