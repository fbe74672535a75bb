"""Mask expansion, secret sharing, key schedule, identities, roster and rules."""

from __future__ import annotations

import copy
import hmac
import json
import pickle
import stat
import struct
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from autoflip_secure.errors import ConfigError, InputError, NotAvailable, ProtocolError
from autoflip_secure.parties import agreement
from autoflip_secure.parties.agreement import Agreement
from autoflip_secure.parties.rules import released_moments
from autoflip_secure.parties.signing import digest_of
from autoflip_secure.secagg import (
    Identity,
    Roster,
    RosterEntry,
    SiloRules,
    keys,
    most_colluders,
    prg,
    shamir,
    share_threshold,
    verify,
)
from autoflip_secure.secagg.dealing import (
    KEY,
    NONCE_BYTES,
    REVEALED_BYTES,
    SEED,
    DealingContext,
    deal,
    leaf_at,
    open_box,
    share_at,
)
from autoflip_secure.secagg.setup_messages import Advertisement
from autoflip_secure.sums.channels import ChannelSpec

VECTORS = Path(__file__).parents[2] / "protocols" / "secagg" / "vectors.json"


def keystream(key, size):
    encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(encryptor.update(bytes(8 * size)), "<u8")


@pytest.mark.parametrize("size", [0, 1, 2, 3, 8191, 8192, 8193, 20_000])
def test_masks_are_the_aes_ctr_keystream_across_chunks(size):
    one, other = bytes(range(32)), bytes(32)
    words = np.arange(size, dtype=np.uint64)
    expected = words + keystream(one, size) - keystream(other, size)
    prg.apply_masks(words, [one, other], [1, -1])
    np.testing.assert_array_equal(words, expected)


@given(
    st.lists(st.tuples(st.binary(min_size=32, max_size=32), st.sampled_from([1, -1])), max_size=6), st.integers(0, 50)
)
def test_opposite_masks_cancel(masks, size):
    words = np.random.default_rng(0).integers(0, 2**64, size, np.uint64)
    before = words.copy()
    drawn = [key for key, _ in masks]
    prg.apply_masks(words, drawn, [sign for _, sign in masks])
    prg.apply_masks(words, drawn, [-sign for _, sign in masks])
    np.testing.assert_array_equal(words, before)


def test_every_mask_needs_a_sign():
    with pytest.raises(ValueError, match="zip"):
        prg.apply_masks(np.zeros(3, np.uint64), [bytes(32)], [])


secret_bytes = st.one_of(st.binary(min_size=32, max_size=32), st.sampled_from([bytes(32), b"\xff" * 32]))


@settings(max_examples=60)
@given(st.data(), st.lists(secret_bytes, min_size=1, max_size=4))
def test_any_threshold_many_shares_recover(data, secrets):
    points = data.draw(st.lists(st.integers(1, 65_535), min_size=1, max_size=12, unique=True))
    threshold = data.draw(st.integers(1, len(points)))
    shared = shamir.split(secrets, threshold, points)
    chosen = data.draw(st.permutations(range(len(points))))[:threshold]
    for secret, shares in zip(secrets, shared, strict=True):
        assert all(len(share) == shamir.SHARE_BYTES for share in shares)
        assert shamir.combine(tuple(points[i] for i in chosen), [shares[i] for i in chosen]) == secret


def test_fewer_shares_than_the_threshold_fit_every_secret():
    """With t - 1 shares of a known secret there is a polynomial for any other secret, too."""
    secret, points = bytes(range(32)), (1, 2, 3, 4, 5)
    (shares,) = shamir.split([secret], 4, points)
    known = [int.from_bytes(share, "big") for share in shares[:3]]
    coefficients = shamir.lagrange_at_zero((1, 2, 3, 5))
    for other in (0, 1, 2**256 - 1):
        partial = sum(c * y for c, y in zip(coefficients, known, strict=False))
        missing = (other - partial) * pow(coefficients[3], -1, shamir.PRIME) % shamir.PRIME
        assert shamir.combine((1, 2, 3, 5), [*shares[:3], missing.to_bytes(33, "big")]) == other.to_bytes(32, "big")
    for few in combinations(range(5), 3):
        assert shamir.combine(tuple(points[i] for i in few), [shares[i] for i in few]) != secret


def test_sharing_is_fresh_each_time():
    one, other = (shamir.split([bytes(32)], 2, (1, 2))[0] for _ in range(2))
    assert not set(one) & set(other)
    assert shamir.split([b"\7" * 32], 1, (1, 2))[0] == [b"\0" + b"\7" * 32] * 2


def test_prime_is_prime():
    """Pocklington's certificate is long; Fermat to many bases is enough to catch a mistyped constant."""
    assert all(pow(base, shamir.PRIME - 1, shamir.PRIME) == 1 for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37))
    assert shamir.PRIME > 2**256


@pytest.mark.parametrize(("threshold", "points"), [(3, (1, 2)), (0, (1, 2)), (2, (1, 1)), (2, (0, 1)), (1, (-1, 2))])
def test_sharing_that_cannot_work(threshold, points):
    with pytest.raises(ProtocolError):
        shamir.split([bytes(32)], threshold, points)
    with pytest.raises(ProtocolError, match="32 bytes"):
        shamir.split([bytes(31)], 1, (1,))


def test_commitments_do_not_show_whether_a_guessed_share_is_right():
    """Of the same secret dealt twice, each share known beforehand, all commitments differ, and nonces are used once."""
    context = DealingContext(bytes(16), bytes(32), 1, bytes(32))
    boxes = {silo: agreement.fresh_key() for silo in (1, 2, 3)}
    advertised = {
        silo: Advertisement(bytes(16), bytes(32), 1, silo, 4, agreement.public_key(box), bytes(32), bytes(32))
        for silo, box in boxes.items()
    }
    secrets = [keys.SlotSecret(b"\7" * 32, b"\7" * 32)] * 4
    nonces, commitments = [], []
    for _ in range(2):
        dealing, reply = deal(context, 1, boxes[1], advertised, secrets, 1)
        assert dealing.recipients == (1, 2, 3)
        for recipient, box, row in zip(dealing.recipients, reply.boxes, reply.rows, strict=True):
            opened = open_box(context, Agreement(boxes[recipient]), advertised[1], recipient, box, digest_of(row))
            shares = [share_at(opened, slot) for slot in range(4)]
            assert {share[NONCE_BYTES:REVEALED_BYTES] for share in shares} == {b"\0" + b"\7" * 32}
            nonces += [share[start : start + NONCE_BYTES] for share in shares for start in (0, REVEALED_BYTES)]
            commitments += [leaf_at(row, slot, kind) for slot in range(4) for kind in (SEED, KEY)]
    assert len(nonces) == len(commitments) == 2 * 3 * 4 * 2
    assert len(set(nonces)) == len(nonces)
    assert len(set(commitments)) == len(commitments)


def test_wrong_share_gives_another_secret_or_none():
    (shares,) = shamir.split([bytes(32)], 2, (1, 2))
    wrong = ((int.from_bytes(shares[0], "big") + 1) % shamir.PRIME).to_bytes(33, "big")
    assert shamir.combine((1, 2), [wrong, shares[1]]) != bytes(32)
    assert shamir.combine((1,), [(shamir.PRIME - 1).to_bytes(33, "big")]) is None


def test_pair_keys_agree_and_depend_on_everything():
    mine, yours = agreement.fresh_key(), agreement.fresh_key()
    shared = Agreement(mine).with_peer(agreement.public_key(yours))
    assert shared == Agreement(yours).with_peer(agreement.public_key(mine))
    base = (shared, bytes(32), 3, 8, 5, 0)
    assert keys.pair_mask_key(*base) == keys.pair_mask_key(shared, bytes(32), 8, 3, 5, 0)
    changed = [(bytes(32), *base[1:]), (shared, b"\1" * 32, 3, 8, 5, 0), (shared, bytes(32), 3, 9, 5, 0)]
    changed += [(shared, bytes(32), 3, 8, 6, 0), (shared, bytes(32), 3, 8, 5, 1)]
    assert len({keys.pair_mask_key(*arguments) for arguments in [base, *changed]}) == 6
    own = {keys.self_mask_key(shared, bytes(32), 3, 8), keys.self_mask_key(shared, bytes(32), 8, 3)}
    boxes = {keys.box_key(shared, bytes(32), 3, 8), keys.box_key(shared, bytes(32), 8, 3)}
    assert len(own | boxes | {keys.pair_mask_key(*base)}) == 5
    assert (agreement.pair_sign(3, 8), agreement.pair_sign(8, 3)) == (1, -1)


@pytest.mark.parametrize("point", sorted(agreement.LOW_ORDER))
@pytest.mark.parametrize("top_bit", [0, 1 << 255])
def test_low_order_points_are_known(point, top_bit):
    public = (point | top_bit).to_bytes(32, "little")
    assert agreement.is_low_order(public)
    with pytest.raises(ProtocolError, match="low order"):
        Agreement(agreement.fresh_key()).with_peer(public)


def test_ordinary_keys_are_not_of_low_order():
    assert not any(agreement.is_low_order(agreement.public_key(agreement.fresh_key())) for _ in range(20))


def test_published_vectors():
    """Freezes the key schedule: a change here is a change of protocol."""
    vectors = json.loads(VECTORS.read_text())
    settings, masked, unmask = (vectors[part] for part in ("settings", "masked", "unmask"))
    session, epoch, slot = bytes.fromhex(settings["session"]), settings["epoch"], settings["slot"]
    digest, own = bytes.fromhex(masked["digest"]), vectors["secrets"]["2"]
    recovered = unmask["mask_keys"]["5"]
    seed, mask_key, dropped_key = map(bytes.fromhex, (own["seeds"][slot], own["mask_keys"][slot], recovered))
    shared = Agreement(mask_key).with_peer(agreement.public_key(dropped_key))
    pair = keys.pair_mask_key(shared, digest, 5, 2, slot, 0)
    assert pair.hex() == masked["masks"]["pair 2 5"]["key"]
    assert keys.self_mask_key(seed, digest, 2, slot).hex() == masked["masks"]["self 2"]["key"]
    sealed = vectors["share"]["dealing"]
    box_keys = [bytes.fromhex(vectors["secrets"][silo]["box_key"]) for silo in "23"]
    agreed = Agreement(box_keys[1]).with_peer(agreement.public_key(box_keys[0]))
    assert keys.box_key(agreed, bytes.fromhex(vectors["advertise"]["keys_hash"]), 2, 3).hex() == sealed["key"]
    commitment = keys.seed_commitment(seed, session, epoch, 2, slot)
    assert commitment.hex() in vectors["advertise"]["replies"]["2"]
    words = np.frombuffer(bytes.fromhex(masked["silos"]["2"]["words"]), "<u8").copy()
    names = ("self 2", "pair 1 2", "pair 2 3", "pair 2 4", "pair 2 5", "pair 2 6")
    signs = [1, *(agreement.pair_sign(2, peer) for peer in (1, 3, 4, 5, 6))]
    prg.apply_masks(words, [bytes.fromhex(masked["masks"][name]["key"]) for name in names], signs)
    assert words.tobytes().hex() == masked["silos"]["2"]["masked_words"]
    revealed = {int(silo): bytes.fromhex(share)[16:] for silo, share in unmask["seed_shares"]["2"].items()}
    assert shamir.combine(tuple(revealed), list(revealed.values())) == seed


def test_keys_are_hkdf_of_rfc_5869():
    """Against an independent computation of extract and one block of expand."""
    secret, digest = bytes(range(32)), b"\5" * 32
    extracted = hmac.digest(digest, secret, "sha256")
    info = b"autoflip-secure/secagg-s/2|pair mask|" + struct.pack(">IIII", 2, 5, 11, 1)
    assert keys.pair_mask_key(secret, digest, 5, 2, 11, 1) == hmac.digest(extracted, info + b"\1", "sha256")
    info = b"autoflip-secure/secagg-s/2|self mask|" + struct.pack(">II", 2, 11)
    assert keys.self_mask_key(secret, digest, 2, 11) == hmac.digest(extracted, info + b"\1", "sha256")


def test_identity_on_disk(tmp_path):
    path = tmp_path / "identity.pem"
    created = Identity.create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded = Identity.load(path)
    assert loaded.public == created.public
    assert verify(created.public, b"d", b"m", loaded.sign(b"d", b"m"))
    with pytest.raises(InputError, match="is kept"):
        Identity.create(path)
    path.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        Identity.load(path)
    path.chmod(0o600)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="not an Ed25519 identity"):
        Identity.load(path)
    with pytest.raises(InputError, match="cannot read"):
        Identity.load(tmp_path / "absent")


def test_identity_stays_secret():
    identity = Identity.generate()
    private = identity._key.private_bytes_raw()
    assert private.hex() not in repr(identity)
    assert repr(private)[2:-1] not in repr(vars(identity))
    for leak in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError):
            leak(identity)


def test_signature_is_of_one_key_domain_and_message():
    identity = Identity.generate()
    signature = identity.sign(b"domain", b"message")
    assert verify(identity.public, b"domain", b"message", signature)
    assert not verify(identity.public, b"domai", b"nmessage", signature)
    assert not verify(identity.public, b"domain", b"massage", signature)
    assert not verify(Identity.generate().public, b"domain", b"message", signature)
    assert not verify(b"\xff" * 32, b"domain", b"message", signature)
    assert not verify(identity.public, b"domain", b"message", b"")


def entries(count):
    return tuple(RosterEntry(i, f"hospital {i}", i.to_bytes(2, "big") * 16) for i in range(1, count + 1))


def test_roster_round_trip():
    roster = Roster(bytes(32), (*entries(3), RosterEntry(40_000, "Klinikum Süd", b"\xee" * 32)))
    again = Roster.from_bytes(roster.to_bytes())
    assert again == roster
    assert (again.hash(), len(again.hash())) == (roster.hash(), 32)
    assert (40_000 in again, 4 in again, again.silos) == (True, False, (1, 2, 3, 40_000))
    with pytest.raises(ProtocolError):
        again.public(4)
    for damaged in (b"", roster.to_bytes()[:-1], roster.to_bytes() + b"\0", b"\x93\x01\x02\x03"):
        with pytest.raises(InputError):
            Roster.from_bytes(damaged)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: e[:2], "fewer than 3"),
        (lambda e: (e[1], e[0], e[2]), "ascending"),
        (lambda e: (*e[:2], RosterEntry(3, "hospital 2", b"\7" * 32)), "one name"),
        (lambda e: (*e[:2], RosterEntry(3, "sybil", e[1].public)), "one identity"),
        (lambda e: (*e[:2], RosterEntry(3, "the coordinator", bytes(32))), "one identity"),
    ],
)
def test_roster_that_cannot_be(change, words):
    with pytest.raises(InputError, match=words):
        Roster(bytes(32), change(entries(3)))


def test_roster_limits():
    assert len(Roster(bytes(32), entries(2000)).entries) == 2000
    with pytest.raises(NotAvailable, match="at most 2000"):
        Roster(bytes(32), entries(2001))
    for values in (
        (0, "x", bytes(32)),
        (1, "", bytes(32)),
        (1, "x", bytes(31)),
        (1, "a\nb", bytes(32)),
        (True, "x", bytes(32)),
    ):
        with pytest.raises(InputError):
            RosterEntry(*values)


@pytest.mark.parametrize(("n", "t", "c"), [(3, 3, 2), (5, 4, 2), (10, 7, 3), (30, 21, 11), (100, 67, 33)])
def test_threshold_table(n, t, c):
    assert (share_threshold(n), most_colluders(n)) == (t, c)


@given(st.integers(3, 100))
def test_two_survivor_lists_cannot_both_be_confirmed(n):
    t, c = share_threshold(n), most_colluders(n)
    assert 2 * t > n + c
    assert not 2 * t > n + c + 1
    assert t <= n


@given(
    st.integers(3, 100), st.integers(0, 33), st.integers(3, 50), st.floats(0, 1), st.integers(1, 100), st.integers(1, 2)
)
def test_least_sum_covers_every_rule(cohort, colluders, minimum, fraction, stated, moments):
    least = SiloRules(colluders, minimum, fraction).least(cohort, stated, moments)
    assert least >= max(3, minimum, stated, fraction * cohort)
    assert least - colluders >= 2 + moments


def test_rules_that_cannot_be():
    for arguments in ((-1,), (0, 2), (0, 3, 1.5), (0, 3, -0.1), (0, 3, float("nan"))):
        with pytest.raises(ConfigError):
            SiloRules(*arguments)
    roster = Roster(bytes(32), entries(10))
    SiloRules(3).check_roster(roster)
    for rules in (SiloRules(4), SiloRules(0, 11)):
        with pytest.raises(ConfigError):
            rules.check_roster(roster)


@pytest.mark.parametrize(
    ("names", "moments"),
    [
        (("update",), 1),
        (("update", "count"), 1),
        (("update", "gradient"), 1),
        (("update", "unit_energy"), 2),
        (("deviation", "update"), 2),
        (("metric",), 1),
    ],
)
def test_released_moments(names, moments):
    assert released_moments([ChannelSpec(name, 1, 8, 1.0) for name in names]) == moments
