"""What the documents claim, sentence by sentence, held against threat_models/claims.toml.

    python tests/claims_map.py     writes threat_models/claims.md, and prints what is not in the map as lines for it

A claim of the map says what is claimed, quotes where, and names what tries it. An exemption quotes sentences that sound
like claims and are none, with the reason. A sentence with a word that promises (`CLAIM_WORDS`) has to be in a quote of
either, unless its section says what an adversary has, or that nothing is promised (`NO_PROMISE`); so has each row and
item of the sections that list promises, rules and attacks (`LISTS`).
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["Claim", "Exemption", "Passage", "claims", "documents", "exemptions", "page", "passages", "text_of"]

ROOT = Path(__file__).resolve().parents[1]
MAP = ROOT / "threat_models" / "claims.toml"
PAGE = ROOT / "threat_models" / "claims.md"
ATTACKS = ROOT / "autoflip_secure" / "attacks"

CLAIM_WORDS = re.compile(
    r"\b(never|not|cannot|only|alone|nobody|nothing|nowhere|none|nor|neither|no one|no (?!longer\b)\w+|without"
    r"|every|everything|everybody|each|all|always|any|anybody|anyone|whatever|whoever|once|unless|until|must|insists?"
    r"|refus\w+|stops?|prevent\w*|protects?|guarantee\w*|ensur\w*|impossible|forever|for good"
    r"|hid(?:e|es|den|ing)|invisible|(?:is|are|be|remains?|keeps?|kept) (?:secret|safe|private|unknown)"
    r"|encrypted|encrypts|unreadable|learns|gone|stays?|kept|unchanged|deletes?|deleted|overwrit\w*"
    r"|checks?|checked|agrees?|same bits|left out|exact|exactly|at most|at least|uniform|independent\w*|bit for bit)\b",
    re.IGNORECASE,
)
# Every row and item of these sections is a claim, whatever its words.
LISTS = {
    "README.md": ("What is promised",),
    "docs/deploy.md": ("The rules of a silo",),
    "protocols/audit/README.md": ("What that shows",),
    "protocols/ckks/README.md": ("What is learnt, and by whom", "Rules of a silo", "Attacks that are tried"),
    "protocols/models/README.md": ("Rules of a silo",),
    "protocols/secagg/README.md": ("Rules of a silo", "Checks of the coordinator", "Noise that is removed"),
    "protocols/secagg/graph.md": ("What must hold",),
    "threat_models/README.md": ("Threat models", "What they see", "Attacks on the protocols"),
    "threat_models/peer-secagg.md": ("The same here",),
}
# Lists of what is not promised: read by people, and the opposite of claims.
NOT_READ = ("threat_models/claims.md", "threat_models/not-defended.md")
CODE = re.compile(r"`[^`]*`")
# Sections of pages that say what an adversary has and does, or that nothing is promised.
NO_PROMISE = re.compile(
    r"(what is )?not (defended|promised)|who$|who attacks|what (it|they) (sees?|knows?|could|can)|command|results?$",
    re.IGNORECASE,
)
WRITTEN = re.compile(r"<!-- results: .*?<!-- /results -->", re.DOTALL)
LEAD = re.compile(r"\*\*([^*\[]+)\*\*")
MARKER = re.compile(r"^\s*(- |\d+\. )")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z*`\[(\"'0-9])")


@dataclass(frozen=True)
class Passage:
    """One sentence, row of a table or item of a list.

    Attributes
    ----------
    document : str
        Path below the repository.
    line : int
        Where its paragraph begins.
    section : str
        The heading above it, or the bold words that its paragraph or one above begins with.
    listed : bool
        A row or an item, or part of one.
    text : str
        With single spaces.
    """

    document: str
    line: int
    section: str
    listed: bool
    text: str

    @property
    def claims(self) -> bool:
        """Whether it has to be in the map."""
        if self.section in LISTS.get(self.document, ()):
            return self.listed or promises(self.text)
        return promises(self.text) and not NO_PROMISE.match(self.section)


@dataclass(frozen=True)
class Claim:
    """What is claimed, where, and what tries it.

    Attributes
    ----------
    name : str
        `id` in claims.toml.
    says : str
        In plain words.
    how : str
        attack, mutants, property test, ...
    tried : tuple of str
        `file::test`, with `[id]` where one set of parameters is meant, or a command: `make ...`, `python -m ...`.
    quotes : mapping of str to tuple of str
        Document to its sentences.
    """

    name: str
    says: str
    how: str
    tried: tuple[str, ...]
    quotes: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Exemption:
    """Sentences that are no claims about privacy or integrity; `name` is the reason why."""

    name: str
    quotes: Mapping[str, tuple[str, ...]]


def promises(text: str) -> bool:
    """Whether there is a word that promises, code aside."""
    return bool(CLAIM_WORDS.search(CODE.sub(" ", text)))


def plain(text: str) -> str:
    """With single spaces, so that lines may be wrapped anew."""
    return " ".join(text.split())


def documents() -> tuple[str, ...]:
    """What is read: README, the guide, the specifications and the pages of threat models."""
    found = [ROOT / "README.md", ROOT / "docs/deploy.md"]
    found += sorted((ROOT / "protocols").glob("*/*.md")) + sorted((ROOT / "threat_models").glob("*.md"))
    names = (path.relative_to(ROOT).as_posix() for path in found)
    return tuple(name for name in names if name not in NOT_READ)


def _blocks(text: str) -> Iterator[tuple[int, str, bool, str]]:
    """(line, section, listed, text) of each paragraph, item and row, without code, comments and heads of tables."""
    # Tables that a benchmark writes hold figures.
    lines = WRITTEN.sub(lambda table: "\n" * table[0].count("\n"), text).splitlines()
    block: list[str] = []
    start, section, listed, fenced = 0, "", False, False
    for number, line in enumerate([*lines, ""], 1):
        fence = line.lstrip().startswith("```")
        row, item = line.startswith("|"), bool(MARKER.match(line))
        code = fenced or (line.startswith("    ") and not listed)
        if fence or code or row or item or not line.strip() or line.startswith(("#", "<!--")):
            if block:
                text = plain(" ".join(block))
                lead = None if listed else LEAD.match(text)
                section = lead[1].rstrip(".:") if lead else section
                yield start, section, listed, text
            block, listed = [], False
        if fence:
            fenced = not fenced
        elif code or not line.strip() or line.startswith("<!--"):
            continue
        elif line.startswith("#"):
            section = line.strip("# ")
        elif row:
            below = lines[number] if number < len(lines) else ""
            if not re.match(r"\|[-| :]+\|$", line) and not re.match(r"\|[-| :]+\|$", below):
                yield number, section, True, plain(line)
        else:
            if not block:
                start, listed = number, item
            block.append(MARKER.sub("", line) if item else line)


@cache
def passages(document: str) -> tuple[Passage, ...]:
    """All of a document; sentences of a row stay together."""
    found = []
    for line, section, listed, text in _blocks((ROOT / document).read_text()):
        for sentence in [text] if text.startswith("|") else SENTENCE_END.split(text):
            found.append(Passage(document, line, section, listed, sentence))
    return tuple(found)


@cache
def text_of(document: str) -> str:
    """All passages one after another, as quotes are searched."""
    return " ".join(passage.text for passage in passages(document))


def _quotes(entry: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {document: tuple(map(plain, each)) for document, each in entry["quotes"].items()}


@cache
def _map() -> dict[str, Any]:
    return tomllib.loads(MAP.read_text())


@cache
def claims() -> tuple[Claim, ...]:
    """As they stand in the map."""
    return tuple(
        Claim(each["id"], each["says"], each["how"], tuple(each["tried"]), _quotes(each)) for each in _map()["claim"]
    )


@cache
def exemptions() -> tuple[Exemption, ...]:
    """As they stand in the map."""
    return tuple(Exemption(each["reason"], _quotes(each)) for each in _map()["exempt"])


def unmapped(document: str) -> list[Passage]:
    """Sentences that have to be in the map and are not."""
    of_claims = [quote for claim in claims() for quote in claim.quotes.get(document, ())]
    of_others = [quote for exemption in exemptions() for quote in exemption.quotes.get(document, ())]

    def covered(passage: Passage) -> bool:
        if passage.listed and passage.section in LISTS.get(document, ()):
            return any(passage.text in quote for quote in of_claims + of_others)
        # What a quote leaves out of a sentence may not promise anything.
        rest = passage.text
        for quote in of_claims + of_others:
            if rest in quote:
                return True
            rest = rest.replace(quote, " ")
        return not promises(rest)

    return [passage for passage in passages(document) if passage.claims and not covered(passage)]


@cache
def tests_of(file: str) -> frozenset[str]:
    """Names of the tests in a file, without importing it: no helpers, fixtures or functions inside of others."""
    if not Path(file).name.startswith("test_"):
        return frozenset()
    functions = [node for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)]
    return frozenset(node.name for node in functions if node.name.startswith("test_"))


@cache
def _nodes_of(file: str) -> frozenset[str]:
    """Tests of a file with all their parameters, as pytest names them; it imports the file, which takes seconds."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-o", "addopts=--import-mode=importlib", file]
    # What a pytest that runs this was told is not meant for that one.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run([*command, "-p", "no:cacheprovider"], cwd=ROOT, env=env, capture_output=True, text=True)
    return frozenset(line for line in done.stdout.splitlines() if "::" in line)


def attack_names() -> frozenset[str]:
    """Names of all attacks, from the ATTACK constants of autoflip_secure/attacks, without importing them."""
    found = set()
    for file in ATTACKS.glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            call = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Attack":
                given = [word.value for word in call.keywords if word.arg == "name"] or call.args[:1]
                found |= {str(name.value) for name in given if isinstance(name, ast.Constant)}
    return frozenset(found)


def missing(tried: str) -> str:
    """Why a test or command of the map is not there; empty where it is."""
    if tried.startswith("make "):
        target = tried.split()[1]
        if not re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE):
            return f"the Makefile has no target {target}"
        for name in re.findall(r"--only ([\w-]+)", tried):
            if name not in attack_names():
                return f"no module of autoflip_secure/attacks has an attack {name}"
        return ""
    if tried.startswith("python "):
        words = tried.split()
        path = ROOT / (words[2].replace(".", "/") + ".py" if words[1] == "-m" else words[1])
        return "" if path.exists() else f"there is no {path.relative_to(ROOT)}"
    file, _, name = tried.partition("::")
    if not (ROOT / file).is_file():
        return f"there is no file {file}"
    test, _, parameters = name.partition("[")
    if test not in tests_of(file):
        return f"{file} has no test {test}"
    if parameters and tried not in _nodes_of(file):
        return f"{file} has no {name}"
    return ""


def page() -> str:
    """The map as a page, for people: each claim below the first document that makes it."""
    lines = [
        "# What is claimed, and what tries it",
        "",
        "Each claim about privacy or integrity in the documents of this repository, and the tests and attacks that",
        "would fail if it were false. Written by `python tests/claims_map.py` from [claims.toml](claims.toml), which",
        "quotes every sentence; `tests/test_claims.py` fails where a sentence that promises is in no quote, a quote is",
        "no longer in its document, or a test is gone. What is not claimed: [not-defended.md](not-defended.md).",
    ]
    for document in documents():
        first = [claim for claim in claims() if min(claim.quotes, key=documents().index) == document]
        if first:
            lines += ["", f"## {document}", "", "| claim | also in | how | tried by |", "|---|---|---|---|"]
        for claim in first:
            others = "<br>".join(f"[{name}](../{name})" for name in claim.quotes if name != document) or "-"
            tried = "<br>".join(f"`{each}`" for each in claim.tried)
            lines.append(f"| {claim.says} | {others} | {claim.how} | {tried} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page; print what is missing as it would stand in the map."""
    PAGE.write_text(page())
    left = {document: unmapped(document) for document in documents()}
    for document, each in left.items():
        for passage in each:
            print(f"# {document}:{passage.line}, {passage.section}")
            print(f"    {json.dumps(passage.text, ensure_ascii=False)},")
    return int(any(left.values()))


if __name__ == "__main__":
    sys.exit(main())
