"""Epochs, slots, and what the coordinator reports and refuses."""

from __future__ import annotations

import subprocess
import sys

import pytest

from autoflip_secure.errors import Abort, ConfigError, InputError
from autoflip_secure.secagg import Identity, SecAggCoordinator, SecAggSilo, SiloRules
from autoflip_secure.secagg.silo import STAGES


def test_one_key_setup_serves_its_slots_then_another_is_made(federation):
    fed = federation(3, slots=3)
    stages = []

    def exchange(stage, requests):
        stages.append((stage, len(fed.epochs)))
        return fed.exchange()(stage, requests)

    for _ in range(4):
        fed.assert_exact(fed.coordinator.sum(fed.manifest(), exchange), (1, 2, 3))
    round_ = ["masked", "confirm", "unmask"]
    assert [stage for stage, _ in stages] == ["advertise", "share", *round_ * 3, "advertise", "share", *round_]
    assert fed.epochs == [1, 2]
    assert stages[0] == ("advertise", 1), "the number is handed over before the first message"
    assert tuple(fed.silos[1].stages) == STAGES == ("advertise", "share", *round_)


def test_contribute_gets_the_bound_manifest(federation):
    fed = federation(3)
    seen = []

    def contribute(silo):
        honest = type(fed).contribute(fed, silo)

        def words(manifest):
            seen.append(manifest)
            return honest(manifest)

        return words

    fed.contribute = contribute
    fed.coordinator.sum(fed.manifest(attempt=2), fed.exchange())
    fed.coordinator.sum(fed.manifest(attempt=3), fed.exchange())
    assert [(m.epoch, m.slot, m.attempt) for m in seen] == [(1, 0, 2)] * 3 + [(1, 1, 3)] * 3
    assert len({m.epoch_hash for m in seen}) == 1
    assert seen[0].epoch_hash != bytes(32)


@pytest.mark.parametrize("stage", ["advertise", "share"])
def test_too_few_silos_at_key_setup(federation, stage):
    fed = federation(4)
    with pytest.raises(Abort, match="2 of 4 silos") as caught:
        fed.coordinator.sum(fed.manifest(), fed.exchange(absent=lambda now, silo: now == stage and silo > 2))
    assert caught.value.stage == stage
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), (1, 2, 3, 4))
    assert fed.epochs == [1, 2]


def test_new_keys_after_an_abort_with_a_silo_outside_the_epoch(federation):
    fed = federation(4)
    fed.coordinator.sum(fed.manifest(), fed.exchange(absent=lambda stage, silo: silo == 4))
    with pytest.raises(Abort):
        fed.coordinator.sum(fed.manifest(), fed.exchange(absent=lambda stage, silo: silo in (3, 4)))
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange(absent=lambda s, i: i == 3)), (1, 2, 4))
    assert fed.epochs == [1, 2]


def test_new_keys_after_two_aborts(federation):
    """Silos that lost their state refuse every slot of the epoch; two failures are enough."""
    fed = federation(3)
    fed.coordinator.sum(fed.manifest(), fed.exchange())
    fed.start(2, bytes(16)).forget_other_runs()
    for _ in range(2):
        with pytest.raises(Abort):
            fed.coordinator.sum(fed.manifest(), fed.exchange())
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), (1, 2, 3))
    assert fed.epochs == [1, 2]


def test_silo_that_missed_the_key_setup_gets_in_after_some_rounds(federation):
    fed = federation(4, slots=64)
    present = []
    for round_ in range(10):
        exchange = fed.exchange(absent=lambda stage, silo, r=round_: silo == 4 and r == 0)
        present.append(fed.coordinator.sum(fed.manifest(), exchange)[0].silos)
    assert present == [(1, 2, 3)] * 8 + [(1, 2, 3, 4)] * 2
    assert fed.epochs == [1, 2]


def test_rekey_on_request(federation):
    fed = federation(4, slots=64)
    fed.coordinator.sum(fed.manifest(), fed.exchange(absent=lambda stage, silo: silo == 4))
    fed.coordinator.rekey()
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), (1, 2, 3, 4))


def test_cohort_without_enough_keys_gets_new_keys_at_once(federation):
    fed = federation(5, slots=64)
    fed.coordinator.sum(fed.manifest((1, 2, 3, 4)), fed.exchange(absent=lambda stage, silo: silo == 5))
    fed.assert_exact(fed.coordinator.sum(fed.manifest((3, 4, 5)), fed.exchange()), (3, 4, 5))
    fed.coordinator.rekey()
    with pytest.raises(Abort, match="too few silos with keys") as caught:
        fed.coordinator.sum(fed.manifest((3, 4, 5)), fed.exchange(absent=lambda stage, silo: silo == 5))
    assert caught.value.stage == "share"


def test_delivery_is_sent_until_the_silo_has_it(federation):
    fed = federation(4)
    sizes = {}

    def exchange(stage, requests):
        for silo, request in requests.items():
            sizes.setdefault(silo, []).append((stage, len(request) > 2000))
        return fed.exchange(absent=lambda now, silo: silo == 4 and now in ("masked", "confirm"))(stage, requests)

    for _ in range(2):
        fed.assert_exact(fed.coordinator.sum(fed.manifest(), exchange), (1, 2, 3))
    rounds = [item for item in sizes[1] if item[0] in ("masked", "confirm")]
    assert rounds == [("masked", True), ("confirm", False), ("masked", False), ("confirm", False)]
    assert all(long for stage, long in sizes[4] if stage in ("masked", "confirm"))


def test_events_name_who_dropped_where(federation):
    fed = federation(4)
    fed.coordinator.sum(fed.manifest(), fed.exchange(absent=lambda stage, silo: (stage, silo) == ("masked", 2)))
    assert fed.named("silo_dropped") == [{"silo": 2, "stage": "masked"}]
    assert fed.named("epoch_opened") == [{"epoch": 1, "silos": [1, 2, 3, 4], "slots": 4}]


@pytest.mark.parametrize(
    ("cohorts", "changes", "words"),
    [
        ((), {"threshold": 2}, "threshold of 2, the roster has 3"),
        ((), {"session": bytes(16)}, "another session"),
        (((1, 2, 9),), {}, "not in the roster"),
        ((), {"minimum": 2}, "minimum of 2"),
    ],
)
def test_manifest_that_cannot_work_is_refused_before_anything_is_sent(federation, cohorts, changes, words):
    fed = federation(4)

    def exchange(stage, requests):
        raise AssertionError("nothing may be sent")

    with pytest.raises(ConfigError, match=words):
        fed.coordinator.sum(fed.manifest(*cohorts, **changes), exchange)


def test_parties_that_do_not_fit_the_roster(federation):
    fed = federation(4)
    options = {"first_epoch": 0, "on_epoch": lambda number: None, "events": lambda name, details: None}
    with pytest.raises(InputError, match="not the coordinator's"):
        SecAggCoordinator(Identity.generate(), fed.roster, bytes(16), **options)
    with pytest.raises(InputError, match="16 bytes"):
        SecAggCoordinator(fed.coordinator_identity, fed.roster, bytes(3), **options)
    with pytest.raises(ConfigError, match="slots"):
        SecAggCoordinator(fed.coordinator_identity, fed.roster, bytes(16), slots=0, **options)
    with pytest.raises(InputError, match="not the one the roster has"):
        SecAggSilo(fed.connections[1], fed.identities[2], 1, fed.roster, SiloRules(0), fed.session)
    with pytest.raises(InputError, match="not in the roster"):
        SecAggSilo(fed.connections[1], fed.identities[1], 7, fed.roster, SiloRules(0), fed.session)
    with pytest.raises(ConfigError, match="colluders"):
        SecAggSilo(fed.connections[1], fed.identities[1], 1, fed.roster, SiloRules(2), fed.session)


def test_importing_the_package_loads_nothing_heavy():
    heavy = "import autoflip_secure.secagg, sys; print({'torch', 'flwr', 'opacus', 'tenseal'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
