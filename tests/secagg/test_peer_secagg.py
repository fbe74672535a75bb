"""The scripts behind threat_models/peer-secagg.md and the peers of the benchmark still do what is written of them."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from flwr.supercore.task_identity import TaskIdentity

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "threat_models" / "peer-secagg.md"
SCRIPTS = ROOT / "threat_models" / "peer_secagg"
PEERS = ROOT / "benchmarks" / "peers"


@pytest.fixture
def script(monkeypatch):
    """Imports a script by name; Flower's process-wide identity is put back afterwards."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.syspath_prepend(str(PEERS))
    for name, value in {"_run_id": 1, "_node_id": 0, "_task_id": 1}.items():
        monkeypatch.setattr(TaskIdentity, name, value)
    return importlib.import_module


@pytest.mark.parametrize(("n", "threshold", "one_request"), [(4, 3, True), (4, 4, True), (4, 2, False)])
def test_flower_client_gives_both_shares(script, n, threshold, one_request):
    done = script("both_shares").attack(n, threshold, 2, one_request=one_request)
    assert done.seed_shares >= threshold
    assert done.key_shares >= threshold
    assert done.exact
    assert done.distance < done.step < 1e-4
    assert done.sum_exact, "the round ends as usual"


def test_flower_update_is_not_open_without_the_key_shares(script):
    """The comparison can fail: with the victim's own mask alone its vector stays hidden."""
    flower = script("flower_clients")
    clients = {node: flower.FlowerClient(node) for node in (1, 2, 3)}
    view = flower.collect_masked(clients, 2)
    shares = flower.unmask(clients, lambda node: ((1, 2, 3), ()))
    own = flower.mask_of(flower.recovered(shares["seed", 2]), view.masked[2])
    exact, distance = flower.compare(flower.minus(view.masked[2], own), clients[2])
    assert not exact
    assert distance > 1


def test_folded_seeds_give_flowers_masks(script):
    search, flower = script("seed_search"), script("flower_clients")
    seeds = np.array([0, 1, 2**31, 2**32 - 1, 123456789], np.uint32)
    first = [flower.mask_of(int(seed).to_bytes(4, "little"), [np.zeros(1)])[0][0] for seed in seeds]
    assert search.first_value(seeds).tolist() == first
    index = np.arange(0, 2**28, 99991, dtype=np.uint32)
    pairs = search.pair_seed(index)
    assert not (pairs & np.uint32(0x80808080)).any()
    assert [search.index_of_pair_seed(int(seed)) for seed in pairs] == index.tolist()


def test_bits_of_flowers_masks(script):
    weak = script("weak_seed")
    one, other = weak.equal_masks()
    assert one != other
    private, pair = weak.bits_ever_set(100)
    assert private == 0xFFFFFFFF
    assert pair == 0x7F7F7F7F


@pytest.mark.parametrize("kind", ["pair", "private"])
def test_flower_mask_is_found_by_trying(script, kind):
    found = getattr(script("weak_seed"), f"{kind}_seed_search")(19)
    assert found.tried == 2**19
    assert found.exact
    assert found.distance < found.step < 1e-4


def test_search_in_the_wrong_place_finds_nothing(script, monkeypatch):
    weak = script("weak_seed")
    right = weak.window
    monkeypatch.setattr(weak, "window", lambda index, bits, whole: right(index ^ 1 << 27, bits, whole))
    assert not weak.pair_seed_search(18).exact


@pytest.mark.parametrize(
    ("name", "rule", "seeds"),
    [
        ("both in one message", "survivors", 0),
        ("other lists at unmask", "confirm-once", 2),
        ("a second question", "unmask-once", 5),
        ("two lists from the start", "confirmations", 0),
    ],
)
def test_silos_refuse_the_same(script, name, rule, seeds):
    attack = script("refused_here").attempt(name, 5)
    assert attack.shares == {"seed": seeds, "key": 0}
    refused = {silo for (stage, silo), text in attack.refusals.items() if f"refused by rule {rule}" in text}
    everybody = {1, 2, 3, 4, 5}
    assert refused == ({3, 4, 5} if name == "other lists at unmask" else everybody)


def test_every_bit_of_a_secret_and_of_the_manifest_counts(script):
    assert script("refused_here").distinct_keys() == (258, 257)


@pytest.mark.parametrize("name", ["both_shares", "weak_seed", "refused_here"])
def test_page_quotes_the_committed_output(name):
    output = (SCRIPTS / f"{name}.txt").read_text()
    assert output.strip() in PAGE.read_text()
    if name != "refused_here":
        assert output.startswith(f"flwr {version('flwr')}"), "made with another Flower: run the script again"


@pytest.mark.parametrize(("before", "after"), [((), ()), ((4,), (1,)), ((2,), ())])
def test_flower_driver_sums(script, before, after):
    updates = script("peer_round").random_updates(7, 500)
    driver = script("flower_secagg_plus")
    done = driver.run_round(updates, dropped_before=before, dropped_after=after)
    assert done.summed == tuple(client for client in range(1, 8) if client not in before)
    assert done.error(updates) < done.step
    assert done.contribution_bytes > 8 * 500
    assert done.upload_bytes > done.contribution_bytes
    assert set(done.client_seconds) == set(done.server_seconds)


def test_flower_driver_says_when_the_round_stops(script):
    updates = script("peer_round").random_updates(4, 10)
    with pytest.raises(RuntimeError, match="stopped"):
        script("flower_secagg_plus").run_round(updates, dropped_before=(1, 2))


@pytest.mark.parametrize("name", ["tenseal_ckks", "plain_fedavg"])
def test_other_drivers_sum(script, name):
    updates = script("peer_round").random_updates(3, 5000)
    done = script(name).run_round(updates, dropped=(2,))
    assert done.summed == (1, 3)
    assert done.total.shape == (5000,)
    assert done.error(updates) < done.step
    assert done.upload_bytes >= 4 * 5000
