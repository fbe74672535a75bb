"""The report's words: what was promised, what was not, and what went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoflip_secure.report.units import count_of, epsilon, number

__all__ = ["STAGE_MEANING", "alarms", "limits", "noise_sentence", "privacy_sentence", "promise_broken", "protection"]

OVERSPENT = 1.001
"""Factor over the target above which spending is called overspent; below it is the accountant's own tolerance."""

STAGE_MEANING: Mapping[str, str] = {
    "join": "did not answer the invitation to the run",
    "key": "the silos' common key: asked for no numbers until it has it",
    "follow": "opened sums: asked for no numbers until it has gone on by them",
    "advertise": "keys: not part of the sums until the next key set-up",
    "share": "key shares: not part of the sums until the next key set-up",
    "masked": "model vector: not in this round's sum; nothing else is lost",
    "confirm": "list of survivors: what it sent before stays in the sum; fewer silos confirm it",
    "unmask": "opening of the sum: what it sent before stays in the sum, all its noise too; the others' shares open it",
    "keys": "key: not part of the sums until the next key set-up",
    "encrypt": "ciphertexts: not in this round's sum; nothing else is lost",
    "open": "opening of the sum, which takes every silo in it: the attempt gave no sum and the model was unchanged",
    "clear": "unprotected vector: not in this round's sum",
    "reveal": "removal of needless noise: what it sent before stays in the sum, all its noise too",
}
"""What a silo missed, and what that means, by the stage at which it was first absent."""

Summary = Mapping[str, Any]


def promise_broken(summary: Summary) -> str | None:
    """Why the privacy promise of the run does not hold; None where it does."""
    if summary.get("dp_trust", "none") == "none":
        return None
    if summary.get("insecure_reproducible_noise"):
        return "the privacy noise was drawn from the run's seed, and whoever knows the seed can take it out again"
    if summary.get("aggregation") == "none" and summary.get("dp_trust") == "distributed":
        return (
            "the silos' noise was to add up inside a secure sum, but the coordinator saw each silo's vector with that "
            "silo's small part of the noise alone"
        )
    spent, target = number(summary.get("epsilon_spent")), number(summary.get("epsilon_target"))
    if spent is not None and target is not None and spent > target * OVERSPENT:
        return f"epsilon {epsilon(spent)} was spent, more than the {epsilon(target)} that was promised"
    return None


def alarms(summary: Summary) -> list[tuple[str, str]]:
    """Title and text of what must be read before anything else."""
    found = []
    if summary.get("aggregation") == "none":
        found.append(
            (
                "the coordinator saw every silo",
                "Sums were not protected (--aggregation none): the coordinator received each silo's vector in clear "
                "and can learn from it what that hospital treats. Such a run is a baseline on data that may be shown "
                "to the coordinator, not a private training run.",
            )
        )
    if summary.get("insecure_reproducible_noise"):
        found.append(
            (
                "the privacy noise is reproducible",
                "Noise was drawn from the run's seed (--insecure-reproducible-noise), which exists for tests only. Do "
                "not publish this model or anything else of this run if its records are private.",
            )
        )
    if summary.get("bad_silos"):
        found.append(
            (
                "some silos spoilt the sums on purpose",
                f"The run played an attack against itself (--bad-silos {summary['bad_silos']}); events.jsonl names the "
                "silos. Its scores say how far the attack got, and its model is of no other use.",
            )
        )
    rotates = summary.get("cohort_rotation")
    if rotates and summary.get("dp_trust", "none") == "none":
        found.append(("the sums of this run together may show single silos", f"Without DP {rotates}."))
    reason = promise_broken(summary)
    if reason is not None:
        found.append(("the differential-privacy promise does not hold", f"Reason: {reason}."))
    return found


def protection(summary: Summary) -> str:
    """Who could see what while sums were taken."""
    aggregation, colluders = summary.get("aggregation"), summary.get("colluders")
    if aggregation == "none":
        return "Sums were not protected: the coordinator saw the vector of every silo."
    helpers = f", alone or together with up to {count_of(colluders, 'silo')}," if isinstance(colluders, int) else ""
    said = (
        f"Sums were protected by {aggregation}: of what the silos sent, the coordinator{helpers} could read sums over "
        "cohorts of silos only, never one silo's vector."
    )
    if aggregation != "ckks":
        return said
    return (
        f"{said} Each sum was encrypted under keys of all its silos and opened by all of them together; where one had "
        "encrypted and then was missing, there was no sum, and all were asked again under new keys."
    )


def privacy_sentence(summary: Summary) -> str:
    """The promise and what was spent of it, in one sentence."""
    trust, target = summary.get("dp_trust", "none"), summary.get("epsilon_target")
    if trust == "none" or target is None:
        return "no differential privacy: what the sums and the model show about single patients is not bounded"
    spent, delta = summary.get("epsilon_spent"), number(summary.get("delta"))
    delta_words = "" if delta is None else f" at delta {delta:g}"
    used = f"of {epsilon(target)}" if number(spent) is None else f"{epsilon(spent)} spent of {epsilon(target)}"
    colluders = count_of(int(summary.get("colluders") or 0), "colluding silo")
    who = {
        "local": "even if the coordinator and all other silos collude",
        "distributed": f"against the coordinator and up to {colluders}",
    }.get(str(trust), "")
    protected = "each patient, with all records," if _unit(summary) == "patient" else "each patient's record"
    sentence = f"epsilon {used}{delta_words} for {protected} at a silo, {who}".rstrip(", ")
    broken = promise_broken(summary)
    return sentence if broken is None else f"DOES NOT HOLD ({broken}); claimed was {sentence}"


def noise_sentence(summary: Summary) -> str | None:
    """How much more noise the sums carried than their promise needed; None where silos added none to be summed."""
    found = summary.get("noise_over_least")
    mean, largest = (number(found.get(name)) if isinstance(found, Mapping) else None for name in ("mean", "largest"))
    if mean is None or largest is None:
        return None
    return (
        "Once it was known which silos were in a sum, the noise it did not need was taken out again: the rest had "
        f"{mean:.3f} times the least variance that keeps the promise, {largest:.3f} times "
        "in the worst round."
    )


def _unit(summary: Summary) -> str:
    privacy = summary.get("privacy")
    return str(privacy.get("unit", "record")) if isinstance(privacy, Mapping) else "record"


def _of_one_silo(block: int, *, private: bool) -> str:
    """What differences of sums tell, where silos drop out or the coordinator says so."""
    if block > 1:
        return (
            f"That nothing is told of a few silos together: they are summed in blocks of {block} or more, and a block "
            "that is missing from one sum and not from another shows its own sum."
        )
    tells = "which classes it treats, though of no single patient more than epsilon allows" if private else "its update"
    return (
        f"That nothing is told of one silo alone: a sum with it and one without, as when it drops out, show {tells}. "
        "--block 3 sums silos in blocks that are there to the last or not at all."
    )


def limits(summary: Summary) -> list[str]:
    """What the run does not promise, plainly."""
    private = summary.get("dp_trust", "none") != "none"
    several = "" if _unit(summary) == "patient" else ", or several times at one"
    found = []
    if private:
        found += [
            f"That somebody is at no risk at all: epsilon bounds how much more anyone can learn because one "
            f"{_unit(summary)} took part. What is true of patients in general can still be learned, and applied to "
            "each of them.",
            f"The same protection for a patient whose records lie at several silos{several}.",
            "Anything about choices made by looking at the silos' records outside this run, such as options tuned on "
            "them, or other runs on the same records: their epsilons add up.",
        ]
    else:
        found.append(
            "Anything about single patients. A model can remember records it was trained on; --dp-epsilon bounds that."
        )
    if summary.get("dp_trust") == "distributed":
        found.append(
            "Protection against more colluding silos than stated: those could subtract their own part of the noise. "
            "--dp-trust local holds against any number of them, at a price in accuracy."
        )
    if summary.get("aggregation") != "none":
        found.append(_of_one_silo(int(summary.get("block") or 1), private=private))
    if summary.get("aggregation") == "ckks":
        found.append(
            "That sums can be opened: a silo that sends a wrong part of an opening, or none, stops every sum it is in, "
            "and nobody can tell whose a wrong part was."
        )
    found += [
        "Secrecy of what is public by design: which silos took part, when they dropped out, the number of rounds, the "
        "options of the run, and the masks and models, which every silo receives.",
        "That the silos told the truth: a silo that sends a made-up vector within the public range can harm the model.",
        "That the model is fit for medical use: the scores above are on the run's own test records.",
    ]
    return found
