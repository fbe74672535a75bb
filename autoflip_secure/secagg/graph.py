"""Who holds whose shares: every advertiser up to 100 silos, above that k holders that each silo draws by itself.

A silo masks with its holders and with those whose holder it is. The bound below says how likely it is that a
coordinator, which sees all draws and then chooses who is dropped, can cut some honest silos off from the rest.
Derivation, conditions and a table of parameters: protocols/secagg/graph.md.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import ConfigError, ProtocolError
from autoflip_secure.parties.rules import share_threshold

__all__ = [
    "EPOCH_BITS",
    "MAX_COMPLETE",
    "SAFE_BITS",
    "ShareGraph",
    "complete_graph",
    "draw_holders",
    "failure_bits",
    "is_safe",
    "share_graph",
    "too_few_holders",
]

MAX_COMPLETE = 100
EPOCH_BITS = 10
"""Every epoch draws a graph, so 2^10 of them a session are allowed for."""
SAFE_BITS = 40 + EPOCH_BITS
"""Security of one epoch's graph, for 40 bits over a session."""

LogProbabilities = NDArray[np.float64]


@dataclass(frozen=True)
class ShareGraph:
    """How many silos hold shares of a secret, and how many of them recover it.

    Attributes
    ----------
    holders : int
        Silos, k, that a silo deals shares to, itself not among them; 0 for all advertisers, itself included.
    threshold : int
        Shares, t, that recover a secret; also the holders of each survivor that must survive in its cohort.

    Raises
    ------
    ConfigError
        A negative number of holders, or a threshold that is below 1 or above the holders.
    """

    holders: int
    threshold: int

    def __post_init__(self) -> None:
        if type(self.holders) is not int or type(self.threshold) is not int:
            raise ConfigError(f"holders {self.holders!r} and threshold {self.threshold!r} are not whole numbers")
        if self.holders < 0:
            raise ConfigError(f"{self.holders} holders of a share; give 1 or more, or 0 for all advertisers")
        if self.threshold < 1 or 0 < self.holders < self.threshold:
            raise ConfigError(f"a threshold of {self.threshold} among {self.holders or 'all'} holders recovers nothing")


def complete_graph(silos: int) -> ShareGraph:
    """Everybody holds shares of everybody: t = floor(2n/3) + 1 with n = `silos`, the size of the roster."""
    return ShareGraph(0, share_threshold(silos))


def draw_holders(silo: int, advertisers: Sequence[int], holders: int) -> tuple[int, ...]:
    """Holders of one silo's shares, drawn uniformly by the operating system's generator; ascending.

    The draw must not depend on anything another party can influence or repeat, hence no seed.

    Parameters
    ----------
    silo : int
        The dealer, one of `advertisers`, never drawn.
    advertisers : sequence of int
        Distinct ids, fixed before any silo draws.
    holders : int
        How many to draw; 0 gives all advertisers, the dealer included.

    Raises
    ------
    ProtocolError
        The dealer did not advertise, an id appears twice, or fewer others advertised than holders are needed.
    """
    others = set(advertisers) - {silo}
    if len(others) != len(advertisers) - 1:
        raise ProtocolError(f"silo {silo} is not once among the advertisers, or another id is there twice")
    if not 0 <= holders <= len(others):
        raise ProtocolError(f"cannot draw {holders} holders from {len(others)} other advertisers")
    if holders == 0:
        return tuple(sorted(advertisers))
    return tuple(sorted(random.SystemRandom().sample(sorted(others), holders)))


def too_few_holders(
    graph: ShareGraph, holders: Mapping[int, Sequence[int]], survivors: Sequence[Sequence[int]]
) -> int | None:
    """A survivor of whose holders fewer than the threshold are in the same sum, or None: then no silo is cut off.

    Parameters
    ----------
    holders : mapping of int to sequence of int
        The draws of all silos that completed the set-up.
    survivors : sequence over sums of sequence of int
    """
    if graph.holders == 0:
        return None
    for silos in survivors:
        present = frozenset(silos)
        for silo in silos:
            if len(present.intersection(holders[silo])) < graph.threshold:
                return silo
    return None


def failure_bits(silos: int, colluders: int, graph: ShareGraph) -> float:
    """-log2 of a bound on the probability, for one epoch, that the honest survivors of some sum can be separated.

    The worst over c' = 0..c corrupt advertisers of

        sum over s = 1 .. max(1, floor(h/2)) of C(h, s) P[Hyp(n - 1, c' + s - 1, k) >= t]^s,    h = n - c'.

    The term s = 1 also covers t corrupt holders of one silo. A complete graph never separates; there it is all or
    nothing, whether t exceeds c.

    Parameters
    ----------
    silos : int
        Advertisers of the epoch, n (not the roster).
    colluders : int
        Silos, c, chosen before the draws, that may work with the coordinator.

    Returns
    -------
    float, from 0 (the bound says nothing) to inf

    Raises
    ------
    ConfigError
        Not 0 <= c < n, or more holders than other advertisers.
    """
    _check_counts(silos, colluders)
    if graph.holders == 0:
        return math.inf if graph.threshold > colluders else 0.0
    if graph.holders >= silos:
        raise ConfigError(f"{graph.holders} holders cannot be drawn from {silos - 1} other silos")
    tail = _log_tails(silos - 1, graph.holders, graph.threshold)
    worst = max(_log_bound(silos, corrupt, tail) for corrupt in range(colluders + 1))
    return max(0.0, -worst / math.log(2))


def is_safe(silos: int, colluders: int, graph: ShareGraph, sigma: int = 40) -> bool:
    """Whether the honest survivors stay connected but for a probability of 2^-sigma an epoch; see `failure_bits`.

    A graph with more holders than other advertisers is not safe, since nobody could draw it.
    """
    return graph.holders < silos and failure_bits(silos, colluders, graph) >= sigma


def share_graph(silos: int, colluders: int, dropout: float, *, sigma: int = 40, eta: int = 30) -> ShareGraph:
    """The fewest holders, below n - 1, that are safe and that survive dropouts.

    At the fewest holders only one threshold meets both bounds (see `_fewest_holders`), so there is none to choose.

    Parameters
    ----------
    silos : int
        Advertisers, n.
    colluders : int
        Corrupt silos, c, at most.
    dropout : float
        Largest fraction of the advertisers that is not there up to the end of a sum, within [0, 1). Who drops must
        not depend on the graph.
    sigma : int
        Security: `failure_bits` is at least this.
    eta : int
        Availability: n P[Hyp(n - 1, floor(dropout n), k) >= k - t + 1] <= 2^-eta, a bound on the probability that
        some silo has fewer than t holders left.

    Raises
    ------
    ConfigError
        Numbers out of range, or no such graph.
    """
    _check_counts(silos, colluders)
    if not 0 <= dropout < 1:
        raise ConfigError(f"dropout is {dropout}; it is a fraction of the silos, give 0 or more and less than 1")
    # A fraction like 0.29 of 100 is a hair below the whole number that is meant.
    dropped = math.floor(dropout * silos + 1e-9)
    graph = _fewest_holders(silos, colluders, dropped, sigma, eta)
    if graph is None:
        raise ConfigError(
            f"no share graph for {silos} silos has {colluders} colluders and {dropped} dropouts at {sigma} and {eta} "
            "bits; allow fewer colluders or dropouts, or enrol more silos"
        )
    return graph


def _fewest_holders(silos: int, colluders: int, dropped: int, sigma: int, eta: int) -> ShareGraph | None:
    """Leap over numbers of holders that cannot do.

    Let low(k) be the least threshold that is safe and high(k) the largest that survives. One more holder leaves low
    where it is or raises it by one, and the same for high (couple the draws of k and k + 1 holders). So low - high
    falls by at most one a step: from a deficit of d the next d - 1 numbers cannot do, and the first that does has
    low = high.
    """
    holders = 1
    while holders < silos - 1:
        high = _largest_surviving(silos, dropped, holders, eta)
        deficit = _least_safe(silos, colluders, holders, sigma) - high
        if deficit <= 0 and is_safe(silos, colluders, ShareGraph(holders, high), sigma):
            return ShareGraph(holders, high)
        holders += max(1, deficit)
    return None


def _least_safe(silos: int, colluders: int, holders: int, sigma: int) -> int:
    """Least t with the bound for exactly c corrupt silos met, up to k + 1; by bisection, the bound falls with t."""
    low, high = 1, holders + 1
    while low < high:
        middle = (low + high) // 2
        bound = _log_bound(silos, colluders, _log_tails(silos - 1, holders, middle))
        low, high = (low, middle) if bound <= -sigma * math.log(2) else (middle + 1, high)
    return low


def _largest_surviving(silos: int, dropped: int, holders: int, eta: int) -> int:
    """Largest t, from 0, that leaves every silo t holders but for 2^-eta."""
    lost = np.arange(holders + 1)
    exactly = (
        _log_choose(dropped, lost)
        + _log_choose(silos - 1 - dropped, holders - lost)
        - _log_choose(silos - 1, np.array([holders]))
    )
    at_least = np.logaddexp.accumulate(exactly[::-1])[::-1]
    too_likely = np.log(silos) + at_least > -eta * math.log(2)
    # `at_least` falls with the number lost, so those too likely come first.
    return holders - int(np.count_nonzero(too_likely)) + 1


def _log_bound(silos: int, corrupt: int, tail: LogProbabilities) -> float:
    honest = silos - corrupt
    sizes = np.arange(1, max(1, honest // 2) + 1)
    return float(np.logaddexp.reduce(_log_choose(honest, sizes) + sizes * tail[corrupt + sizes - 1]))


def _log_tails(others: int, holders: int, threshold: int) -> LogProbabilities:
    """log P[Hyp(N, m, k) >= t] for m = 0..N.

    Number the N silos so that the m special ones come first: t or more are drawn iff the t-th smallest number drawn is
    at most m. It is j with probability C(j - 1, t - 1) C(N - j, k - t) / C(N, k), so one running sum of positive terms
    gives all m, without cancellation.
    """
    tails = np.full(others + 1, -math.inf)
    place = np.arange(threshold, others + 1)
    exactly = (
        _log_choose(place - 1, np.array([threshold - 1]))
        + _log_choose(others - place, np.array([holders - threshold]))
        - _log_choose(others, np.array([holders]))
    )
    tails[threshold:] = np.minimum(np.logaddexp.accumulate(exactly), 0.0)
    return tails


def _log_choose(total: int | NDArray[np.int64], part: NDArray[np.int64]) -> LogProbabilities:
    """log C(total, part), elementwise; -inf where part is negative or above the total."""
    rest = total - part
    largest = int(np.max(total))
    # Sizes of the form 2^i, so that a search shares one table.
    table = _log_factorials(1 << largest.bit_length())
    possible = (part >= 0) & (rest >= 0)
    logs = table[total] - table[np.clip(part, 0, largest)] - table[np.clip(rest, 0, largest)]
    return np.where(possible, logs, -math.inf)


@lru_cache(maxsize=32)
def _log_factorials(size: int) -> LogProbabilities:
    return np.array([math.lgamma(number + 1) for number in range(size)])


def _check_counts(silos: int, colluders: int) -> None:
    if silos < 2 or not 0 <= colluders < silos:
        raise ConfigError(f"{colluders} colluders among {silos} silos; give 0 or more, and fewer than the silos")
