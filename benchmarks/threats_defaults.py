"""What attacks that succeed under DP in a simulation come to across institutions, where more is switched on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autoflip_secure.attacks.outcome import Outcome

__all__ = ["BY_DEFAULT", "Tried", "Unpromised", "attacks_with_a_way"]


@dataclass(frozen=True)
class Tried:
    """A defence that is on across institutions, and the row in which it is tried.

    Attributes
    ----------
    defence : str
        With the option of `policy.toml` that asks for it.
    attack : str
        Name of the row.
    setting : str
        Column of the row, or a setting of its page.
    """

    defence: str
    attack: str
    setting: str = "sum + DP 8"

    def outcomes(self, found: Sequence[Outcome]) -> list[Outcome]:
        """That row by all its measures; empty where it was not made."""
        return [o for o in found if (o.attack, o.setting) == (self.attack, self.setting)]


@dataclass(frozen=True)
class Unpromised:
    """Nothing is promised: the sentence of not-defended.md that says so begins with these words."""

    entry: str


_MODELS = "models follow from the sums (`proved_models = true`)"
_LYING = Unpromised("Silos that lie.")


def _in_blocks(attack: str) -> Tried:
    return Tried("sums are of whole blocks (`min_block = 3`)", f"{attack}, blocks of 3")


BY_DEFAULT: dict[str, Tried | Unpromised] = {
    "label sets from absences": _in_blocks("label sets from absences"),
    "label sets from drops": _in_blocks("label sets from absences"),
    "label sets from retries": _in_blocks("label sets from retries"),
    "mean updates from absences": _in_blocks("mean updates from absences"),
    "one silo's update from one retry": _in_blocks("one silo's update from one retry"),
    "crafted model: one silo by its class": Tried(_MODELS, "a model that does not follow from the sums"),
    "chosen mask: one silo": Tried(_MODELS, "a mask that does not follow from the sums"),
    "record count from reply times": Tried(
        "replies are held back (`reply_every = 2`; here 0.25)",
        "record count from reply times",
        "sum + DP 8, reply_every",
    ),
    "huge count": _LYING,
    "backdoor": _LYING,
    "scaling by 10": _LYING,
    "scaling by -10": _LYING,
}
"""By attack, of those that may succeed although DP is on: a simulation has `--block 1`, models that are not proved and
replies that are not held back."""


def attacks_with_a_way(found: Sequence[Outcome]) -> list[str]:
    """Attacks that succeed under DP through the secure sum in a setting of the table, in the order of their rows."""
    there = ("sum + DP 8", "sum + DP 1")
    return list(dict.fromkeys(o.attack for o in found if o.setting in there and o.verdict == "succeeds"))
