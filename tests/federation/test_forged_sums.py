"""A coordinator that works with no silo cannot have models made of sums that silos did not make, nor of no sum at all.

It has its own signing key, all messages, and all opened sums so far; the silo is unmodified and has an institution's
policy. Each request must be refused before records are touched, and leave neither a ledger line nor another model.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoflip_secure.federation import coordinator as coordinator_module
from autoflip_secure.federation import session as session_module
from autoflip_secure.federation.client_app import close_silos
from autoflip_secure.federation.coordinator import Coordinator
from autoflip_secure.federation.initial_model import initial_model
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.plan import SessionPlan
from autoflip_secure.federation.sum_proof import KEY_STAGE, SumProof, untagged, untagged_sums, with_tag
from autoflip_secure.federation.terms import count_channel, metric_channel
from autoflip_secure.federation.wire import Reply
from autoflip_secure.parties.agreement import fresh_key, public_key
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.run_key_messages import BOX_BYTES, RunKeyReply, RunKeyRequest, RunKeyStatement
from autoflip_secure.parties.signing import sign_message
from autoflip_secure.privacy.plan import PrivacyPlan
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.sum_tag import TAG_WORDS, TaggedWords
from autoflip_secure.sums.words import PackedWords, all_words
from tests.federation.proved_runs import PROVED, AskedSilo, ProvedRun

ROUND = 2
"""The silo has taken the sums of the rounds before."""

PLAIN = {"prune": "autoflip", "explore_rounds": 1, "silos": 8, "cohorts": 2, "agreement_every": 1}
NOISED = {"dp_epsilon": 8.0, "dp_trust": "distributed", "adaptive_clip": 0.5, "silos": 5}

Forgery = Callable[["Attack"], bytes]


class Attack(AskedSilo):
    """The silo before `ROUND`, and what an honest coordinator would ask of it next."""

    def __init__(self, run: ProvedRun, home: Path, models: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(run, home)
        self.models = [ModelPayload.from_bytes(model) for model in models]
        self.model = self.models[ROUND]
        self.proofs = [SumProof.from_bytes(run.proof(number)) for number in range(run.config.rounds)]
        self.proof = self.proofs[ROUND]
        self.manifest = self.proof.manifest
        self.touched: list[Manifest] = []
        opened = session_module.Session._open_contributor
        monkeypatch.setattr(
            session_module.Session, "_open_contributor", lambda session: self.touched.append(0) or opened(session)
        )

    def asks(self, model: ModelPayload | None = None, **changes: object) -> Reply:
        """Ask for a contribution to this model, by a manifest that names it, with these changes."""
        model = self.model if model is None else model
        named = {"model_hash": hashlib.sha256(model.to_bytes()).digest(), "mask_hash": model.mask_hash()}
        return self.contribute(replace(self.manifest, **{**named, **changes}), model)

    def refuses(self, reply: Reply, why: str) -> None:
        assert reply == Reply("refused", error="PolicyRefusal"), self.log
        assert f"refused by rule proof: {why}" in self.log.splitlines()[-1]
        self.is_as_before()

    def is_as_before(self) -> None:
        assert self.position == ROUND
        assert self.session.followed.model.to_bytes() == self.model.to_bytes()
        assert (self.lines, self.touched) == (ROUND, []), "something was charged or read"


def honest_run(folder: Path, config, task, records) -> tuple[ProvedRun, list[bytes]]:
    """A whole run, silo 1 kept as it was before `ROUND`, and the models that rounds began with."""
    run = ProvedRun(folder / "run", config, task, records)
    run.be_institutions()
    models = [initial_model(config, task).to_bytes()]

    def keep(coordinator: Coordinator) -> None:
        models.append(coordinator.state.model.to_bytes())
        if coordinator.state.round == ROUND:
            close_silos()
            shutil.copytree(run.home(1), run.folder.path / "kept")

    state = run.go_on(keep)
    assert (state.round, state.attempts_aborted) == (run.config.rounds, 0), [run.log(silo) for silo in run.silos()]
    return run, models


@pytest.fixture(scope="module")
def run(make_config, tmp_path_factory, task, records) -> tuple[ProvedRun, list[bytes]]:
    return honest_run(tmp_path_factory.mktemp("forged"), make_config(**{**PROVED, **PLAIN}), task, records)


@pytest.fixture(scope="module")
def noised_run(make_config, tmp_path_factory, task, records) -> tuple[ProvedRun, list[bytes]]:
    config = make_config(**{**PROVED, **NOISED, "rounds": 3})
    privacy = PrivacyPlan(
        config.trust, 8.0, config.dp_delta, config.colluders, config.clip, config.sampling_rate, 40, 2.0, 0, 0.0, 0.0,
        accountant="rdp",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        # Solving for the noise of an adaptive clip takes seconds.
        patch.setattr(coordinator_module, "session_plan", lambda *_, **__: SessionPlan(config, privacy))
        return honest_run(tmp_path_factory.mktemp("noised"), config, task, records)


def copied(run: tuple[ProvedRun, list[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attack:
    kept = run[0].folder.path / "kept"
    return Attack(run[0], shutil.copytree(kept, tmp_path / run[0].config.trust), run[1], monkeypatch)


@pytest.fixture
def attack(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attack]:
    made = copied(run, tmp_path, monkeypatch)
    yield made
    made.silo.close()


@pytest.fixture
def noised(noised_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attack]:
    made = copied(noised_run, tmp_path, monkeypatch)
    yield made
    made.silo.close()


# Models


@pytest.mark.parametrize("which", ["attack", "noised"])
def test_the_honest_round_is_answered(which: str, request: pytest.FixtureRequest) -> None:
    """Else all refusals below would prove nothing."""
    silo: Attack = request.getfixturevalue(which)
    assert silo.position == ROUND
    assert silo.asks().status == "ok", silo.log
    assert (silo.lines, len(silo.touched)) == (ROUND + 1, 1)
    assert silo.follow(silo.run.proof(ROUND)).status == "ok", silo.log
    assert silo.session.followed.model.to_bytes() == silo.models[ROUND + 1].to_bytes()


def test_a_model_is_not_taken_from_the_coordinator(attack: Attack) -> None:
    model = attack.model
    one = np.flatnonzero(model.mask)[0]
    nearly, crafted = model.weights.copy(), np.where(model.mask, model.weights + np.float32(0.01), 0)
    nearly[one] += 2e-5
    zeros = np.zeros_like(model.weights)
    why = f"the model of round {ROUND} does not follow from the sums"
    for weights in (nearly, crafted, zeros, attack.models[0].weights[: model.weights.size]):
        attack.refuses(attack.asks(replace(model, weights=weights.astype(np.float32))), why)


def test_a_mask_is_not_taken_from_the_coordinator(attack: Attack) -> None:
    model = attack.model
    fewer, one = model.mask.copy(), np.zeros_like(model.mask)
    fewer[0], one[0] = False, True
    for mask in (fewer, one):
        crafted = replace(model, mask=mask, weights=np.where(mask, model.weights, np.float32(0)))
        channels = (replace(attack.manifest.channels[0], length=int(mask.sum())), *attack.manifest.channels[1:])
        attack.refuses(attack.asks(crafted, channels=channels), f"the model of round {ROUND} does not follow")
    dense = attack.models[0]
    assert dense.mask.size > model.mask.size, "units were removed since"
    channels = (replace(attack.manifest.channels[0], length=dense.mask.size), *attack.manifest.channels[1:])
    attack.refuses(attack.asks(dense, channels=channels), f"the model of round {ROUND} does not follow")


def test_how_many_records_there_are_is_not_taken_from_the_coordinator(attack: Attack) -> None:
    for records in (attack.model.records + 1, 0):
        attack.refuses(attack.asks(replace(attack.model, records=records)), f"the model of round {ROUND} does not")


@pytest.mark.parametrize("field", ["limit", "bits", "fewer", "none", "order"])
def test_channels_are_those_of_the_run(field: str, attack: Attack) -> None:
    """A range of another width than the sums gave: a silo's own value may be cut off, or be all that is not rounded."""
    first, second, tag = attack.manifest.channels
    channels = {
        "limit": (replace(first, limit=2 * first.limit), second, tag),
        "bits": (replace(first, bits=first.bits - 1), second, tag),
        "fewer": (first, tag),
        "none": (second, tag),
        "order": (second, first, tag),
    }
    attack.refuses(attack.asks(channels=channels[field]), f"the channels of round {ROUND} are not those that follow")


def test_a_clip_is_not_taken_from_the_coordinator(noised: Attack) -> None:
    terms = noised.manifest.privacy
    for clip in (2 * terms.clip, terms.clip / 2, noised.proofs[0].manifest.privacy.clip):
        noised.refuses(noised.asks(privacy=replace(terms, clip=clip)), f"the clip of round {ROUND} does not follow")


def test_records_are_used_as_the_joined_run_says(attack: Attack, noised: Attack) -> None:
    for silo in (attack, noised):
        terms = silo.manifest.privacy
        for other in (
            replace(terms, steps=terms.steps + 1),
            replace(terms, sampling_rate=terms.sampling_rate / 2),
            *([replace(terms, noise_multiplier=2 * terms.noise_multiplier)] if terms.noise_multiplier else []),
        ):
            reply = silo.asks(privacy=other)
            assert reply == Reply("refused", error="PolicyRefusal"), silo.log
            silo.is_as_before()
    assert "a round of the joined run takes other steps, sampling rate or noise" in attack.log
    assert "a round of the joined run takes other steps, sampling rate or noise" in noised.log


@pytest.mark.parametrize("round", [0, ROUND - 1, ROUND + 1])
def test_no_round_is_asked_for_out_of_turn(round: int, attack: Attack) -> None:
    """Neither with the model that it began with nor, which another rule refuses in round 0, with the one of now."""
    for model in (attack.models[round], *([attack.model] if round else [])):
        named = {"model_hash": hashlib.sha256(model.to_bytes()).digest(), "mask_hash": model.mask_hash()}
        manifest = replace(attack.proofs[round].manifest, **named)
        attack.refuses(
            attack.contribute(manifest, model), f"round {round} was asked for, this silo was shown the sums of {ROUND}"
        )


def test_another_phase_of_the_round_is_refused(attack: Attack) -> None:
    explored = attack.proofs[0].manifest
    asked = attack.asks(phase="explore", channels=explored.channels)
    attack.refuses(asked, f"round {ROUND} of the joined run is one of phase train")


def test_a_sum_that_could_not_be_shown_to_anybody_is_not_made(attack: Attack) -> None:
    attack.refuses(attack.asks(channels=attack.manifest.channels[:-1]), f"round {ROUND} asks for no tag")


def test_a_tag_has_its_place(attack: Attack) -> None:
    first, second, tag = attack.manifest.channels
    for channels in ((tag, first, second), (first, second, replace(tag, length=TAG_WORDS - 1))):
        reply = attack.asks(channels=channels)
        assert reply.status == "refused", attack.log
        attack.is_as_before()


def test_a_model_that_follows_from_no_sum_is_not_scored_either(attack: Attack) -> None:
    crafted = replace(attack.model, weights=np.where(attack.model.mask, attack.model.weights + np.float32(0.01), 0))
    channels = (metric_channel(7, 1.0),)
    terms = replace(attack.manifest.privacy, dataset="holdout", steps=1)
    whole = {"cohorts": (tuple(range(1, 9)),), "minimum": (7,)}
    asked = attack.asks(crafted, phase="evaluate", channels=channels, privacy=terms, **whole)
    attack.refuses(asked, f"the model of round {ROUND} does not follow from the sums")


def test_without_the_run_s_key_nothing_is_contributed_or_taken(attack: Attack) -> None:
    with sqlite3.connect(attack.home / "state.sqlite") as database:
        database.execute("UPDATE run_key SET key = NULL")
    attack.refuses(attack.asks(), "a tag is asked for, and this silo does not have the run's key yet")
    attack.refuses(attack.follow(attack.run.proof(ROUND)), "this silo does not have the run's key yet")


# Sums


def with_words(attack: Attack, change: Callable[[np.ndarray], None], cohort: int = 0) -> bytes:
    """The honest sum with changed words of a cohort."""
    sums = list(attack.proof.sums)
    words = sums[cohort].words.copy()
    change(words)
    sums[cohort] = replace(sums[cohort], words=words)
    return replace(attack.proof, sums=tuple(sums)).to_bytes()


def flipped(place: int, bit: int) -> Callable[[np.ndarray], None]:
    def flip(words: np.ndarray) -> None:
        words[place] ^= np.uint64(1 << bit)

    return flip


def swapped_words(words: np.ndarray) -> None:
    words[[0, 1]] = words[[1, 0]]


def doubled(words: np.ndarray) -> None:
    words *= np.uint64(2)


def top_bits(words: np.ndarray) -> None:
    words[: 2 * (words.size // 4)] ^= np.uint64(1 << 63)


CHANGED: dict[str, Callable[[np.ndarray], None]] = {
    "the lowest bit of the first word": flipped(0, 0),
    "the highest bit of the first word": flipped(0, 63),
    "the highest bit of the last word": flipped(-TAG_WORDS - 1, 63),
    "the highest bits of an even number of words": top_bits,
    "a bit of the tag": flipped(-TAG_WORDS, 0),
    "the highest bit of the tag's last word": flipped(-1, 63),
    "two words for each other": swapped_words,
    "twice the sum with twice its tag": doubled,
    "nothing at all": lambda words: words.fill(0),
}
NOT_SENT = f"round {ROUND}: what was shown as sums of silos"


@pytest.mark.parametrize("cohort", [0, 1])
@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED.keys())
def test_words_that_silos_did_not_send_are_refused(change, cohort: int, attack: Attack) -> None:
    attack.refuses(attack.follow(with_words(attack, change, cohort)), NOT_SENT)


def fewer_survivors(attack: Attack) -> SumProof:
    first = attack.proof.sums[0]
    manifest = replace(attack.manifest, minimum=(3, 4))
    return SumProof(manifest, (replace(first, silos=first.silos[1:]), attack.proof.sums[1]))


def other_survivors(attack: Attack) -> SumProof:
    """Silo 1 changes places with one of the other cohort."""
    one, two = (list(cohort) for cohort in attack.manifest.cohorts)
    one[0], two[0] = two[0], one[0]
    cohorts = (tuple(sorted(one)), tuple(sorted(two)))
    sums = [replace(each, silos=silos) for each, silos in zip(attack.proof.sums, cohorts, strict=True)]
    return SumProof(replace(attack.manifest, cohorts=cohorts), tuple(sums))


def swapped_cohorts(attack: Attack) -> SumProof:
    """Each sum in the place of the other, with its own silos: which of two lists comes first is in the digest."""
    manifest = replace(attack.manifest, cohorts=attack.manifest.cohorts[::-1])
    return SumProof(manifest, tuple(replace(s, cohort=1 - s.cohort) for s in reversed(attack.proof.sums)))


def swapped_words_of_cohorts(attack: Attack) -> SumProof:
    first, second = attack.proof.sums
    return replace(attack.proof, sums=(replace(first, words=second.words), replace(second, words=first.words)))


def both_cohorts_the_first(attack: Attack) -> SumProof:
    first, second = attack.proof.sums
    return replace(attack.proof, sums=(first, replace(second, words=first.words)))


def one_cohort_alone(attack: Attack) -> SumProof:
    manifest = replace(attack.manifest, cohorts=attack.manifest.cohorts[:1], minimum=attack.manifest.minimum[:1])
    return SumProof(manifest, attack.proof.sums[:1])


def of_the_round_before(attack: Attack) -> SumProof:
    """Its words, as those of this round."""
    sums = [replace(new, words=old.words) for new, old in zip(attack.proof.sums, attack.proofs[1].sums, strict=True)]
    return SumProof(attack.manifest, tuple(sums))


def of_another(**changes: object) -> Callable[[Attack], SumProof]:
    return lambda attack: replace(attack.proof, manifest=replace(attack.manifest, **changes))


def made_up(attack: Attack) -> SumProof:
    """Words of the coordinator's choice with a tag under a key of its choice."""
    return replace(
        attack.proof, sums=tuple(_made_up(attack, each.cohort, os.urandom(32)) for each in attack.proof.sums)
    )


def _made_up(attack: Attack, cohort: int, key: bytes):
    each = attack.proof.sums[cohort]
    plain = np.zeros(each.words.size - TAG_WORDS, np.uint64)
    digest = attack.manifest.digest()
    words = [all_words(TaggedWords(PackedWords(plain), key, digest, cohort, silo)) for silo in each.silos]
    return replace(each, words=np.sum(words, axis=0, dtype=np.uint64))


FORGED: dict[str, Callable[[Attack], SumProof]] = {
    "a survivor fewer": fewer_survivors,
    "other survivors": other_survivors,
    "cohorts in another order": swapped_cohorts,
    "each cohort's words for the other's": swapped_words_of_cohorts,
    "one cohort's words for both": both_cohorts_the_first,
    "one cohort alone": one_cohort_alone,
    "the round before": of_the_round_before,
    "another attempt": of_another(attempt=1),
    "another slot": of_another(slot=60),
    "another epoch": of_another(epoch=9),
    "another model": of_another(model_hash=bytes(32)),
    "other audit heads": of_another(heads_hash=b"h" * 32),
    "made up": made_up,
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
def test_a_sum_is_not_taken_for_another(forge: Callable[[Attack], SumProof], attack: Attack) -> None:
    attack.refuses(attack.follow(forge(attack).to_bytes()), NOT_SENT)


def test_a_sum_is_of_the_silos_it_names(noised: Attack) -> None:
    """Its manifest allows for one that is missing; how many there are is what the mean and the noise go by."""
    (opened,) = noised.proof.sums
    assert len(opened.silos) > noised.manifest.minimum[0]
    for silos in (opened.silos[1:], opened.silos[:-1]):
        fewer = replace(opened, silos=silos, links={})  # with fewest survivors there are none to reveal
        noised.refuses(noised.follow(replace(noised.proof, sums=(fewer,)).to_bytes()), NOT_SENT)


def test_a_made_up_sum_would_be_taken_from_who_has_the_key(attack: Attack) -> None:
    """Else the forgery above would fail for another reason; and so far reaches a silo that works with a coordinator."""
    key = attack.session._run_keys.tag_key
    sums = tuple(_made_up(attack, each.cohort, key) for each in attack.proof.sums)
    reply = attack.follow(replace(attack.proof, sums=sums).to_bytes())
    assert "what was shown as sums" not in attack.log
    assert reply.status == "ok" or "outside what its silos can add up to" in attack.log


OTHER: dict[str, tuple[Callable[[Attack], SumProof], str]] = {
    "session": (of_another(session=b"another session!"), "sums of another run were shown"),
    "configuration": (of_another(config_hash=b"c" * 32), NOT_SENT),
    "older round": (lambda attack: attack.proofs[0], "sums of explore round 0 were shown, those of train round 2 come"),
    "later round": (lambda attack: attack.proofs[3], "sums of train round 3 were shown, those of train round 2 come"),
    "round": (of_another(round=3), "sums of train round 3 were shown, those of train round 2 come next"),
    "scores": (of_another(phase="evaluate"), "sums of evaluate round 2 were shown, those of train round 2 come next"),
    "census": (of_another(phase="census"), "sums of census round 2 were shown, those of train round 2 come next"),
    "no tag": (
        lambda attack: SumProof(untagged(attack.manifest), tuple(untagged_sums(attack.manifest, attack.proof.sums))),
        "the sums of round 2 carry no tag",
    ),
}


@pytest.mark.parametrize(("forge", "why"), OTHER.values(), ids=OTHER.keys())
def test_sums_that_do_not_come_next_are_refused(forge: Callable[[Attack], SumProof], why: str, attack: Attack) -> None:
    attack.refuses(attack.follow(forge(attack).to_bytes()), why)


def test_what_is_no_proof_changes_nothing(attack: Attack) -> None:
    honest = attack.run.proof(ROUND)
    for message in (b"\\0", b"\\xc1", honest[:-1], honest + b"\\0", honest[1:]):
        assert attack.follow(message) == Reply("refused", error="ProtocolError")
        attack.is_as_before()


def test_refusals_do_not_stand_in_the_way_of_the_honest_sum(attack: Attack) -> None:
    for change in CHANGED.values():
        assert attack.follow(with_words(attack, change)).status == "refused"
    assert attack.follow(attack.run.proof(ROUND)).status == "ok"
    assert attack.session.followed.model.to_bytes() == attack.models[ROUND + 1].to_bytes()


def test_links_of_noise_are_those_that_silos_revealed(noised: Attack) -> None:
    """Else noise would be added in the place of what is taken away. A link that is held back leaves noise, as drawn."""
    (opened,) = noised.proof.sums
    assert sorted(opened.links) == [1, 2, 3, 4, 5], "all silos are there, each has noise to remove"
    changed = bytearray(opened.links[3])
    changed[0] ^= 1
    for links in (
        dict.fromkeys(opened.links, bytes(32)),
        {**opened.links, 3: bytes(changed)},
        {**opened.links, 3: opened.links[4]},
        {3: opened.links[4]},
    ):
        forged = replace(noised.proof, sums=(replace(opened, links=links),))
        noised.refuses(noised.follow(forged.to_bytes()), NOT_SENT)
    fewer = replace(noised.proof, sums=(replace(opened, links={1: opened.links[1]}),))
    assert noised.follow(fewer.to_bytes()).status == "ok", noised.log


def test_a_silo_that_reveals_a_false_link_costs_its_noise_and_nothing_else(noised: Attack) -> None:
    """Without the key the coordinator leaves the link out, and can name the silo; all others go on."""
    (opened,) = noised.proof.sums
    lied = replace(noised.proof, sums=(replace(opened, links={**opened.links, 3: bytes(32)}),))
    mended, liars = lied.with_true_links()
    assert liars == [3]
    assert mended.sums[0].links == {silo: link for silo, link in opened.links.items() if silo != 3}
    assert noised.follow(mended.to_bytes()).status == "ok", noised.log
    assert noised.proof.with_true_links()[1] == []


# The start


@pytest.fixture
def fresh(attack: Attack) -> Attack:
    """A silo that has not been shown any sum."""
    shutil.rmtree(attack.home / "followed")
    assert attack.position == 0
    return attack


def test_the_weights_that_a_run_starts_from_are_not_the_coordinator_s_to_choose(fresh: Attack) -> None:
    """Its own last bits of what configuration and seed give are."""
    honest = fresh.proofs[0]
    start = np.frombuffer(honest.start, "<f4")
    nan, apart, nearly = start.copy(), start.copy(), start.copy()
    nan[3], apart[3], nearly[3] = np.nan, start[3] + 3e-5, np.nextafter(start[3], np.float32(1))
    for weights in (nan, apart, start + np.float32(0.01), np.zeros_like(start)):
        forged = replace(honest, start=weights.astype("<f4").tobytes())
        assert fresh.follow(forged.to_bytes()) == Reply("refused", error="PolicyRefusal")
        assert "the run starts from other weights than configuration and seed give" in fresh.log.splitlines()[-1]
        assert fresh.position == 0
    for length in (1, start.size + 1):
        assert fresh.follow(replace(honest, start=bytes(4 * length)).to_bytes()).error == "ProtocolError"
        assert fresh.position == 0
    assert fresh.follow(replace(honest, start=nearly.tobytes()).to_bytes()).status == "ok", fresh.log
    assert fresh.position == 1


def test_later_sums_start_nothing_anew(attack: Attack) -> None:
    start = np.frombuffer(attack.proofs[0].start, "<f4")
    moved = replace(attack.proof, start=(start + np.float32(0.01)).astype("<f4").tobytes())
    assert attack.follow(moved.to_bytes()).status == "ok", attack.log
    assert attack.session.followed.model.to_bytes() == attack.models[ROUND + 1].to_bytes()


def test_where_the_number_of_records_is_public_there_is_no_census(fresh: Attack) -> None:
    manifest = with_tag(replace(fresh.proofs[0].manifest, phase="census", channels=(count_channel(0.0),)))
    model = fresh.models[0]
    whole = {"cohorts": (tuple(range(1, 9)),), "minimum": (7,)}
    terms = replace(manifest.privacy, steps=1)
    assert fresh.contribute(replace(manifest, privacy=terms, **whole), model).status == "refused"
    assert "refused by rule proof: the joined run has no census" in fresh.log.splitlines()[-1]
    assert (fresh.lines, fresh.touched) == (ROUND, [])


# The key


def test_a_key_of_the_coordinator_s_own_making_is_not_taken(attack: Attack) -> None:
    key = attack.session._run_keys.key
    roster, session = attack.run.folder.roster(), attack.run.folder.session()
    for identity, silo in (
        (attack.run.folder.coordinator_identity(), 2),
        (Identity.generate(), 2),
        (Identity.generate(), 99),
    ):
        statement = RunKeyStatement(session, roster.hash(), silo, public_key(fresh_key()))
        taken = RunKeyRequest(session, roster.hash(), "take", (sign_message(identity, statement),), bytes(BOX_BYTES))
        assert attack.follow(taken.to_bytes(), KEY_STAGE).status == "refused"
        assert attack.session._run_keys.key == key
    attack.is_as_before()


def test_nothing_that_a_silo_answers_holds_the_key(attack: Attack) -> None:
    key = attack.session._run_keys.key
    request = RunKeyRequest(attack.run.folder.session(), attack.run.folder.roster().hash(), "state")
    reply = attack.follow(request.to_bytes(), KEY_STAGE)
    assert reply.status == "ok"
    assert RunKeyReply.from_bytes(reply.reply).key_name
    assert key not in reply.reply
    assert key.hex() not in attack.log
