"""Tables and figure of `agreement_privacy.py`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from agreement_reading import defaults, reading
from seed_interval import half_width

Row = dict[str, Any]
Get = Callable[[Row], float | None]

LEAST_SEEDS = 3
LAYERS = ("conv1", "conv2", "fc1")
EPSILONS = (1.0, 2.0, 4.0, 8.0)
PARTITIONS = ("dirichlet:0.1", "pathological:2", "iid")


def interval(values: Iterable[float | None]) -> str:
    """Mean and half the width of its 95 % interval over seeds; (n) where there are too few for one, or a dash."""
    numbers = np.array([value for value in values if value is not None], np.float64)
    if not numbers.size:
        return "-"
    if numbers.size < LEAST_SEEDS:
        return f"{numbers.mean():.2f} ({numbers.size})"
    return f"{numbers.mean():.2f} ± {half_width(numbers):.2f}"


def select(rows: list[Row], **wanted: Any) -> list[Row]:
    """Rows with these settings."""
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def lines(head: Iterable[str], body: Iterable[Iterable[object]]) -> list[str]:
    """A Markdown table."""
    titles = list(head)
    made = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    return [*made, *("| " + " | ".join(map(str, row)) + " |" for row in body), ""]


def across(rows: list[Row], get: Get, **wanted: Any) -> list[str]:
    """One cell an epsilon."""
    return [interval(get(row) for row in select(rows, epsilon=epsilon, **wanted)) for epsilon in EPSILONS]


def _eps_head(*first: str) -> list[str]:
    return [*first, *(f"epsilon {epsilon:g}" for epsilon in EPSILONS)]


def _groupings(rows: list[Row]) -> list[tuple[str, int, int]]:
    found = {(row["partition"], row["silos"], row["cohorts"]) for row in rows if row["cohorts"] > 1}
    return sorted(found, key=lambda g: (PARTITIONS.index(g[0]), g[1:]))


def agreement_table(rows: list[Row]) -> list[str]:
    """Table 1."""
    explored = select(rows, part="explore")
    body = []
    for how, silos, cohorts in _groupings(explored):
        default = (silos, cohorts) == (10, 2)
        for rounds in sorted({row["rounds"] for row in explored}) if default else [20]:
            for index, layer in enumerate(LAYERS):
                cells = across(
                    explored,
                    lambda row, i=index: row["agreement"]["ema"][i],
                    partition=how, silos=silos, cohorts=cohorts, rounds=rounds,
                )  # fmt: skip
                body.append([how, silos, cohorts, rounds, layer, *cells])
    return lines(_eps_head("partition", "silos", "cohorts", "rounds", "layer"), body)


def estimator_table(rows: list[Row]) -> list[str]:
    """Estimators of agreement against one noise-free value, mean over layers."""
    explored = select(rows, part="explore", silos=10, cohorts=2, rounds=20)
    names = {"ema": "average of ratios (default)", "pooled": "pooled over rounds, then the ratio",
             "pooled, shrunk": "pooled and shrunk to its layer"}  # fmt: skip
    body = []
    for how in PARTITIONS:
        for name, words in names.items():
            get: Get = lambda row, n=name: float(np.mean(row["agreement to pooled"][n]))  # noqa: E731
            body.append([how, words, "rank correlation", *across(explored, get, partition=how)])
        for name, words in {**names, "layer": "pooled over the layer: one value for all units"}.items():
            get = lambda row, n=name: float(np.mean(row["error"][n]))  # noqa: E731
            body.append([how, words, "error", *across(explored, get, partition=how)])
        spread: Get = lambda row: float(np.mean(row["spread"]))  # noqa: E731
        body.append([how, "(spread of the true values)", "", *across(explored, spread, partition=how)])
    return lines(_eps_head("partition", "estimate", "figure"), body)


def snapshot_table(rows: list[Row]) -> list[str]:
    """One round at one model: what sampling does, what noise does, and what cohorts say about silos."""
    taken = select(rows, part="snapshot", silos=10, cohorts=2)
    pairs = {"noised / sampled": "noise alone", "sampled / full": "sampling alone", "full / silos": "cohorts for silos"}
    body = []
    for how in ("dirichlet:0.1", "iid"):
        for number in sorted({row["round"] for row in taken}):
            for pair, words in pairs.items():
                get: Get = lambda row, p=pair: float(np.mean(row["agreement"][p]))  # noqa: E731
                body.append([how, number, words, *across(taken, get, partition=how, round=number)])
    return lines(_eps_head("partition", "model after round", "what is compared"), body)


def pooled_table(rows: list[Row]) -> list[str]:
    """Agreement of the whole model: noised and noise-free."""
    explored = select(rows, part="explore")
    body = []
    for how, silos, cohorts in _groupings(explored):
        for kind, words in (("exact", "noise-free"), ("noised", "noised")):
            get: Get = lambda row, k=kind: row["overall"][k]["ema"]  # noqa: E731
            same = {"partition": how, "silos": silos, "cohorts": cohorts, "rounds": 20}
            body.append([how, silos, cohorts, words, *across(explored, get, **same)])
    return lines(_eps_head("partition", "silos", "cohorts", "whole model, 20 rounds"), body)


def _scores(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.get("score", {})))


def score_table(rows: list[Row]) -> list[str]:
    """Table 2: the score's rank correlation with its noise-free value."""
    explored = select(rows, part="explore", partition="dirichlet:0.1")
    body = []
    for silos, cohorts in ((10, 1), (10, 2), (20, 1), (20, 2)):
        for rounds in (5, 10, 20, 40) if silos == 10 else (20,):
            same = {"silos": silos, "cohorts": cohorts, "rounds": rounds}
            for name in _scores(select(explored, **same)):
                get: Get = lambda row, n=name: float(np.mean(row["score"][n])) if n in row["score"] else None  # noqa: E731
                body.append([silos, cohorts, rounds, name, *across(explored, get, **same)])
    return lines(_eps_head("silos", "cohorts", "rounds", "score"), body)


def kept_table(rows: list[Row]) -> list[str]:
    """Table 3: the units chosen, and how many."""
    explored = select(rows, part="explore", partition="dirichlet:0.1", silos=10, rounds=20)
    body = []
    for flops in ("50%", "25%"):
        for cohorts in (1, 2):
            mine = select(explored, cohorts=cohorts)
            for name in [*_scores(mine), "random"]:
                get: Get = lambda row, n=name, f=flops: row[f"kept {f}"].get(n)  # noqa: E731
                count = [n for row in mine if (n := row[f"units {flops}"].get(name)) is not None]
                units = f"{min(count)} to {max(count)}" if count else ""
                body.append([flops, cohorts, name, units, *across(mine, get)])
            free = [row[f"units {flops}"]["noise-free"] for row in mine]
            body.append([flops, cohorts, "(noise-free)", f"{min(free)} to {max(free)}", *[""] * 4] if free else [])
    return lines(_eps_head("FLOPs", "cohorts", "score", "units kept of 80"), (row for row in body if row))


def cost_table(results: Row) -> list[str]:
    """Table 4: noise and budget."""
    body = [
        [c["silos"], c["cohorts"], c["when"], c["rounds"], c["variance"], c["mean_variance"],
         *c["effective_epsilon"].values()]
        for c in results.get("costs", [])
    ]  # fmt: skip
    head = ("silos", "cohorts", "measured in", "rounds of 200", "variance then", "mean over the run")
    return lines([*head, *(f"of epsilon {e:g} is left" for e in EPSILONS)], body)


def training_table(rows: list[Row]) -> list[str]:
    """Table 4, second half: final accuracy."""
    trained, body = select(rows, part="training"), []
    for epsilon in sorted({row["epsilon"] for row in trained}):
        for arm in dict.fromkeys(row["arm"] for row in trained):
            mine = select(trained, epsilon=epsilon, arm=arm)
            figures = [interval(100 * row[key] for row in mine) for key in ("accuracy", "flops")]
            body.append(
                [f"{epsilon:g}", arm, len(mine), *figures, interval(row["parameters"] / 260.10 for row in mine)]
            )
    return lines(("epsilon", "arm", "seeds", "accuracy %", "FLOPs kept %", "parameters kept %"), body)


def local_table(rows: list[Row]) -> list[str]:
    """Table 5."""
    mine = select(rows, part="local")
    kinds: dict[str, tuple[int, Get]] = {
        "exploration: guidance scores, rank correlation": (0, lambda r: float(np.mean(r["score"]["guidance"]))),
        "exploration: units kept at 50 %, overlap": (0, lambda r: r["kept 50%"]["guidance"]),
        "agreement, rank correlation": (16, lambda r: float(np.mean(r["agreement"]["ema"]))),
        "agreement, known noise taken out, rank correlation": (
            16,
            lambda r: float(np.mean(r["agreement"]["noise taken out"])),
        ),
        "agreement of the whole model, noise-free": (16, lambda r: r["overall"]["exact"]["ema"]),
        "agreement of the whole model, noised": (16, lambda r: r["overall"]["noised"]["ema"]),
        "agreement of the whole model, known noise taken out": (
            16,
            lambda r: r["overall"]["noised"]["noise taken out"],
        ),
        "guidance x agreement, rank correlation": (16, lambda r: float(np.mean(r["score"]["guidance"]))),
        "guidance x agreement: units kept at 50 %, overlap": (16, lambda r: r["kept 50%"]["guidance"]),
        "size x shrunk energy, rank correlation": (16, lambda r: float(np.mean(r["score"]["shrunk energy"]))),
        "size x shrunk energy: units kept at 50 %, overlap": (16, lambda r: r["kept 50%"]["shrunk energy"]),
        "random units kept at 50 %, overlap": (16, lambda r: r["kept 50%"]["random"]),
    }  # fmt: skip
    body = [
        [how, number, words, *across(mine, get, partition=how, round=number)]
        for how in ("dirichlet:0.1", "iid")
        for words, (number, get) in kinds.items()
    ]
    return lines(_eps_head("partition", "round", "figure"), body)


def report(results: Row, *, full: bool) -> str:
    """The whole page; the reading and the defaults only where everything was measured."""
    rows = results["rows"]
    text = ["# Agreement under privacy", "", METHOD, _seeds(results), ""]
    if full:
        text += [
            "## What it says",
            "",
            reading(rows, results["costs"]),
            "## Chosen defaults",
            "",
            defaults(rows, results["costs"]),
        ]
    text += ["## 1. Agreement by unit, distributed trust", "", FIRST, *agreement_table(rows)]
    text += ["### Other estimators", "", ESTIMATORS, *estimator_table(rows)]
    text += ["### One round at a fixed model", "", SNAPSHOTS, *snapshot_table(rows)]
    text += ["### Pooled over the whole model", "", POOLED, *pooled_table(rows)]
    text += ["## 2. The score that prunes", "", SCORES, *score_table(rows)]
    text += ["## 3. Units chosen", "", KEPT, *kept_table(rows)]
    text += ["## 4. What cohorts cost", "", COSTS, *cost_table(results), TRAINING, *training_table(rows)]
    text += ["## 5. Trust local", "", LOCAL, *local_table(rows)]
    seconds = sum(job["seconds"] for job in results["jobs"])
    made = f"Made by `python benchmarks/agreement_privacy.py` in {seconds / 60:.0f} minutes of processor time on "
    return "\n".join([*text, made + json.dumps(results["machine"]) + "."]) + "\n"


METHOD = """mnist5k, cnn-tanh (16, 32 and 32 units), the default schedule at each epsilon (its noise multiplier is
solved by the project's plan, reserve included), default learning rates, all silos alive. Figures are means and 95 %
intervals over seeds (Student's t). All comparisons are of one quantity at one model: the model moves by noised sums,
and along its way the same sums are looked at with and without noise, by the project's own `PruningController`. Noise
is that of excess removed: each of s survivors of a cohort adds variance V / (s - c). Groupings other than 10 silos in
2 cohorts are measured along that run's models with noise of their own. Networks are not pruned on the way.
"""
FIRST = """Spearman's correlation over units between `agreement_average` of the noised sums and that of the same sums
without noise, after so many exploration rounds. Five to forty rounds for the default, 20 for the others; the rest is
in the JSON. A cohort that the rules of opening forbid (3 or 4 of 10 silos, with one colluder) has no row.
"""
ESTIMATORS = """10 silos, 2 cohorts, 20 rounds, mean over the three layers. All against one noise-free value,
agreement pooled over the rounds; errors are of values clipped to [0, 1], as they are used.
"""
SNAPSHOTS = """10 silos, 2 cohorts, mean over layers of Spearman's correlation: sampled sums with against without
noise; sampled against all records; two cohorts against the moments form between all ten silos (all records, no
noise).
"""
POOLED = """`agreement_average` of the run: averages of the rounds' whole-model ratios, without and with noise.
"""
SCORES = """Mean over layers of Spearman's correlation with the noise-free score at the same model, dirichlet:0.1 (the
product does not depend on who holds which record). Clipped energy: negative estimates count as 0. Shrunk energy:
`shrunk_energy`, the default. Size alone knows nothing of the silos: what the model's weights, which are public,
already say.
"""
KEPT = """Overlap (intersection over union) of the units kept with those of the noise-free score, dirichlet:0.1, 10
silos, 20 rounds. At 50 % of the FLOPs most units stay, since few of the first layers free half: compare with random.
"""
COSTS = """Noise variance of the sum over all silos against one cohort's, and the budget that would have bought that
much noise over the whole run with one cohort.
"""
TRAINING = """Final accuracy on the public test records: 10 silos, dirichlet:0.1, pruned once after round 20 to at
most 25 % of the FLOPs, all 200 rounds. Few seeds: differences below the intervals say nothing.
"""
LOCAL = """10 silos, default local schedule (100 rounds, exploration of 4 steps, decisions after rounds 0 and 16).
Noise-free: the same silos and samples without noise; for the exploration a silo's own four steps, so its models
differ from the second on.
"""


def _seeds(results: Row) -> str:
    """How many seeds of each part were measured, by epsilon."""
    counted = {
        part: ", ".join(f"{len(select(jobs, epsilon=e))} at {e:g}" for e in EPSILONS if select(jobs, epsilon=e))
        for part in dict.fromkeys(job["part"] for job in results["jobs"])
        for jobs in (select(results["jobs"], part=part),)
    }
    return "Seeds by epsilon: " + "; ".join(f"{part} {seeds}" for part, seeds in counted.items()) + "."


def draw(results: Row, path: Path) -> None:
    """Agreement by epsilon, and overlap of the units kept."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    explored = select(results["rows"], part="explore", silos=10)
    for how, line in (("dirichlet:0.1", "-"), ("iid", "--")):
        for rounds, colour in ((5, "C0"), (20, "C1"), (40, "C2")):
            mine = select(explored, partition=how, cohorts=2, rounds=rounds)
            _line(left, mine, lambda row: np.mean(row["agreement"]["ema"]), f"{how}, {rounds} rounds", line, colour)
    left.set(xscale="log", xlabel="epsilon", ylabel="rank correlation with noise-free", title="agreement, 2 cohorts")
    mine = select(explored, partition="dirichlet:0.1", rounds=20)
    for cohorts, line in ((1, "-"), (2, "--")):
        for name, colour in (("clipped energy", "C3"), ("shrunk energy", "C0"), ("random", "C7")):
            some = select(mine, cohorts=cohorts)
            _line(right, some, lambda row, n=name: row["kept 50%"][n], f"{name}, {cohorts} cohort(s)", line, colour)
    right.set(xscale="log", xlabel="epsilon", ylabel="overlap with noise-free", title="units kept at 50 % of the FLOPs")
    for axes in (left, right):
        axes.set_xticks(EPSILONS, [f"{epsilon:g}" for epsilon in EPSILONS])
        axes.minorticks_off()
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _line(axes: Any, rows: list[Row], get: Get, label: str, line: str, colour: str) -> None:
    points = [(e, [get(row) for row in select(rows, epsilon=e)]) for e in EPSILONS]
    points = [(e, values) for e, values in points if values]
    axes.plot([e for e, _ in points], [np.mean(v) for _, v in points], line, color=colour, marker="o", label=label)
