"""What the coordinator's view of a run says of each candidate: how well every model in it knows the record's label, and
under DP how far the noised sums point its way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from autoflip_secure.attacks.membership_federations import Game
from autoflip_secure.attacks.membership_sums import alignments
from autoflip_secure.attacks.recorded_view import RecordedView
from autoflip_secure.data.records import Records
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.models.layout import load_flat_parameters
from autoflip_secure.models.spec import ModelSpec, build

__all__ = ["Signals", "label_logits", "read_signals"]


@dataclass(frozen=True)
class Signals:
    """Label logits of all runs of a game.

    Attributes
    ----------
    final, public : float64 arrays, shapes (runs, candidates) and (runs, public records)
        What the final model says.
    rounds : float64 array, shape (rounds, runs, candidates)
        What the model says that came out of each round; where the coordinator sees single updates, the model that the
        candidate's own silo trained in it.
    sums : float64 array, shape (runs, candidates), or None
        How far the opened sums point towards the candidate's own gradients; None where they have no noise.
    """

    final: NDArray[np.float64]
    public: NDArray[np.float64]
    rounds: NDArray[np.float64]
    sums: NDArray[np.float64] | None


def read_signals(game: Game, runs: Sequence[Path]) -> Signals:
    """Read the recorded views of a game's runs, in order.

    Raises
    ------
    ValueError
        A run has another number of rounds than the first.
    """
    final, public, rounds, sums = [], [], [], []
    for run in runs:
        view = RecordedView(run)
        model = ModelPayload.from_bytes(view.final_model)
        final.append(label_logits(model.spec, model.network, game.records))
        public.append(label_logits(model.spec, model.network, game.public))
        # The start is known beforehand and says nothing; what a round leads to is the model of the next.
        sent = {asked.round: asked.model for asked in view.asked if asked.manifest.phase in ("explore", "train")}
        seen = [label_logits(sent[n].spec, sent[n].network, game.records) for n in sorted(sent)[1:]] + [final[-1]]
        rounds.append(_own_models(game, view) if view.single_vectors else np.array(seen))
        noised = [each for each in view.sums if each.asked.manifest.privacy.trust == "distributed"]
        sums += [alignments(game, (each for each in noised if "update" in each.channels))] if noised else []
    return Signals(np.array(final), np.array(public), np.stack(rounds, axis=1), np.array(sums) if sums else None)


def _own_models(game: Game, view: RecordedView) -> NDArray[np.float64]:
    """What each candidate's own silo's model says of it, round by round: the model sent plus the silo's update."""
    sent = [vector for vector in view.single_vectors if "update" in vector.channels]
    rounds = sorted({vector.asked.round for vector in sent})
    found = np.full((len(rounds), len(game.records)), np.nan)
    for vector in sent:
        model, here = vector.asked.model, game.silo == vector.silo - 1
        weights = model.weights.copy()
        weights[model.mask] += vector.channels["update"].astype(np.float32)
        found[rounds.index(vector.asked.round), here] = label_logits(model.spec, weights, game.records.take(here))
    return found


@torch.no_grad()
def label_logits(spec: ModelSpec, weights: NDArray[np.float32], records: Records) -> NDArray[np.float64]:
    """log p - log(1 - p) of each record's label, p its softmax confidence: Carlini et al.'s stable form, in float64.

    Parameters
    ----------
    weights : float32 array, shape (parameters,)

    Returns
    -------
    float64 array, shape (records,)
    """
    network = build(spec)
    load_flat_parameters(network, torch.from_numpy(weights))
    outputs = network(torch.from_numpy(records.x)).double()
    label = torch.from_numpy(records.y)[:, None]
    others = outputs.scatter(1, label, -torch.inf).logsumexp(dim=1)
    found: NDArray[np.float64] = (outputs.gather(1, label)[:, 0] - others).numpy()
    return found
