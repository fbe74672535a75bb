"""policy.toml as a new silo finds it: every setting at its default, under the line that explains it."""

from __future__ import annotations

import inspect
import re
import textwrap

import tomli_w

from autoflip_secure.federation.policy import SiloPolicy

__all__ = ["policy_text"]

HEADER = """What this silo accepts. It is enforced here, whatever the coordinator asks: what is not allowed is refused.
Edit it, then check it with: autoflip-secure silo policy check"""
ENTRY = re.compile(r"(?P<names>[a-z_]+(?:, [a-z_]+)*)(?: \([^)]*\))? : (?P<text>.*)")
WIDTH = 110


def policy_text(policy: SiloPolicy | None = None) -> str:
    """A policy as TOML with an explanation above each setting; those without a value are named in a comment."""
    policy = policy or SiloPolicy()
    values = policy.model_dump(mode="json", exclude_none=True)
    said = _explanations()
    lines = [f"# {line}" for line in HEADER.splitlines()]
    for name, field in SiloPolicy.model_fields.items():
        lines.append("")
        text = field.description or said.get(name, "")
        lines += [f"# {line}" for line in textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)]
        lines.append(tomli_w.dumps({name: values[name]}).rstrip() if name in values else f"# {name} is not set")
    return "\n".join(lines) + "\n"


def _explanations() -> dict[str, str]:
    """By field: its lines in the class's docstring."""
    found: dict[str, str] = {}
    names: list[str] = []
    indent = 0
    for line in (inspect.getdoc(SiloPolicy) or "").splitlines():
        entry = ENTRY.match(line.strip())
        depth = len(line) - len(line.lstrip())
        if entry and all(name in SiloPolicy.model_fields for name in entry["names"].split(", ")):
            names, indent = entry["names"].split(", "), depth
            found.update(dict.fromkeys(names, entry["text"]))
        elif names and line.strip() and depth > indent:
            for name in names:
                found[name] += " " + line.strip()
        else:
            names = []
    return found
