"""Make vectors.json, the test vectors of SecAgg-S, by running the real code on fixed secrets.

    python protocols/secagg/make_vectors.py            write the file
    python protocols/secagg/make_vectors.py --check    exit 1 unless the file is what the code makes

Six silos set up an epoch of two slots; then slot 1 sums the vectors of silos 1 to 4: silo 6 dropped before `masked`,
and silo 5 is left out with its block. Three might have been missing, so a part of the noise in the sum is removed.
Everything random comes from `os.urandom`, which is replaced here, in this process, by values anybody can compute. That
makes every secret public: good for vectors and for nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from autoflip_secure.federation.terms import noise_levels
from autoflip_secure.parties.agreement import Agreement
from autoflip_secure.parties.rules import share_threshold
from autoflip_secure.parties.signing import digest_of, open_signed
from autoflip_secure.privacy.discrete_noise import DiscreteGaussian
from autoflip_secure.privacy.removable_noise import NoiseLevels
from autoflip_secure.secagg import Identity, Roster, RosterEntry, SecAggSilo, SiloRules, shamir
from autoflip_secure.secagg.coordinator_round import MaskedStage, UnmaskStage
from autoflip_secure.secagg.coordinator_setup import KeyedEpoch, OpenEpoch
from autoflip_secure.secagg.dealing import open_box
from autoflip_secure.secagg.desk import SecAggDesk
from autoflip_secure.secagg.keys import box_key, pair_mask_key, self_mask_key
from autoflip_secure.secagg.prg import apply_masks
from autoflip_secure.secagg.recovery import Recovery
from autoflip_secure.secagg.round_messages import Confirmation, Receipt, UnmaskReply
from autoflip_secure.secagg.setup_messages import ShareReply
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.encoding import unpack, word_count
from autoflip_secure.sums.manifest import Manifest, PrivacyTerms
from autoflip_secure.sums.noise_chain import later_link
from autoflip_secure.sums.randomness import SecretRandomness
from autoflip_secure.sums.secure_sum import CohortSum, Contribute, Exchange
from autoflip_secure.sums.words import ContributionWords, all_words

FILE = Path(__file__).with_name("vectors.json")
SILOS = (1, 2, 3, 4, 5, 6)
BLOCKS = ((1, 2), (3, 4), (5, 6))
DROPPED = 6
SUMMED = (1, 2, 3, 4)
MISSING = len(SILOS) - len(SUMMED)
MINIMUM = 3
SLOTS = 2
SESSION = bytes(range(16))
EPOCH = 7
UPDATE = ChannelSpec("update", 7, 16, 1.0)
# The ends of the range, small numbers of both signs, and a first plane that borrows from the second.
INTEGERS = {
    1: (32767, -32767, 0, 1, -1, 12345, -5),
    2: (32767, -32767, 1, -2, 3, -23456, 6),
    3: (32767, -32767, -3, 4, -5, 31000, -32000),
    4: (32767, -32767, 4, -5, 6, -7, 8),
    5: (-32767, 32767, 77, -88, 99, 100, -111),
}
TERMS = PrivacyTerms("distributed", "train", 1.0, 1, 1.5, 0.001, 0, 1e-5)
# The dealing and the box that are shown in detail, and the silo whose delivery is.
DEALER, RECIPIENT = 2, 3


def draw(party: int, number: int) -> bytes:
    """What `os.urandom` gives a party for its draw of that number; the coordinator is party 0."""
    return hashlib.sha256(f"SecAgg-S vectors, party {party}, draw {number}".encode()).digest()


@dataclass
class Draws:
    """Stands in for the operating system's generator; keeps what each party drew, and its Shamir coefficients."""

    party: int = 0
    drawn: dict[int, list[bytes]] = field(default_factory=lambda: {party: [] for party in (0, *SILOS)})
    coefficients: dict[int, list[int]] = field(default_factory=dict)

    def urandom(self, size: int) -> bytes:
        drawn = self.drawn[self.party]
        drawn.append(draw(self.party, len(drawn))[:size])
        assert len(drawn[-1]) == size
        return drawn[-1]

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Fixed draws instead of secret ones, until the end of the block."""
        urandom, random_elements = os.urandom, shamir._random_elements

        def recorded(count: int) -> list[int]:
            self.coefficients[self.party] = random_elements(count)
            return self.coefficients[self.party]

        os.urandom, shamir._random_elements = self.urandom, recorded
        try:
            yield
        finally:
            os.urandom, shamir._random_elements = urandom, random_elements


class Federation:
    """Coordinator and silos in one process, and every message between them."""

    def __init__(self, draws: Draws) -> None:
        self._draws = draws
        self.identities = {party: self._identity(party) for party in (0, *SILOS)}
        entries = tuple(RosterEntry(silo, f"hospital {silo}", self.identities[silo].public) for silo in SILOS)
        self.roster = Roster(self.identities[0].public, entries)
        self._silos = {silo: self._start(silo) for silo in SILOS}
        self.desk = SecAggDesk(self.identities[0], self.roster, SESSION, lambda name, details: None)
        self.requests: dict[str, dict[int, bytes]] = {}
        self.replies: dict[str, dict[int, bytes]] = {}

    def _start(self, silo: int) -> SecAggSilo:
        connection = sqlite3.connect(":memory:", isolation_level=None)
        return SecAggSilo(connection, self.identities[silo], silo, self.roster, SiloRules(0), SESSION)

    def _identity(self, party: int) -> Identity:
        self._draws.party = party
        return Identity.generate()

    def exchange(self, *absent: int) -> Exchange:
        """Delivers to all silos but the absent ones."""

        def run(stage: str, requests: Mapping[int, bytes]) -> Iterable[tuple[int, bytes]]:
            self.requests[stage] = {silo: request for silo, request in requests.items() if silo not in absent}
            self.replies[stage] = {}
            for silo, request in self.requests[stage].items():
                self._draws.party = silo
                self.replies[stage][silo] = self._silos[silo].answer(stage, request, contribute(silo))
                yield silo, self.replies[stage][silo]

        return run


def contribution(levels: NoiseLevels, silo: int, root: bytes, key: bytes) -> ContributionWords:
    """The fixed integers of a silo with its noise, as words."""
    noise = levels.draw(UPDATE.length, UPDATE.name, SecretRandomness(key), root)
    return ContributionWords({"update": np.array(INTEGERS[silo], np.int64) + noise}, (UPDATE,), len(SILOS), root)


def contribute(silo: int) -> Contribute:
    """What the code calls for the words; the silo draws the root of its chain, then the key of its first part."""
    return lambda manifest: contribution(levels_of(manifest), silo, os.urandom(32), os.urandom(32))


def levels_of(manifest: Manifest) -> NoiseLevels:
    """The parts of a silo's noise."""
    levels = noise_levels(manifest, UPDATE, 0)
    assert levels is not None
    return levels


def manifest_of(epoch: KeyedEpoch) -> Manifest:
    """The manifest of the attempt, in the epoch's second slot."""
    epoch.take_slot()
    hashes = {f"{what}_hash": hashlib.sha256(what.encode()).digest() for what in ("model", "mask", "config", "heads")}
    return Manifest(
        session=SESSION, epoch=epoch.number, slot=epoch.take_slot(), epoch_hash=epoch.epoch_hash, round=300, attempt=1,
        phase="train", cohorts=(SILOS,), minimum=(MINIMUM,), threshold=share_threshold(len(SILOS)), channels=(UPDATE,),
        privacy=TERMS, blocks=BLOCKS, **hashes,
    )  # fmt: skip


def make() -> dict[str, Any]:
    """All vectors, with bytes as hex."""
    draws = Draws()
    with draws.installed():
        fed = Federation(draws)
        epoch = OpenEpoch(fed.desk, EPOCH, SLOTS).advertise(fed.exchange()).share(fed.exchange())
        delivery = epoch.delivery(RECIPIENT)
        manifest = manifest_of(epoch)
        confirmed = MaskedStage(epoch, manifest).collect(fed.exchange(DROPPED)).collect(fed.exchange(DROPPED))
        # Taken before they are opened in place.
        masked_sum = confirmed.sums[0].copy()
        (opened,) = confirmed.collect(fed.exchange(DROPPED))
    secrets = {party: named_secrets(drawn) for party, drawn in draws.drawn.items()}
    values = {
        "settings": {
            "session": SESSION, "epoch": EPOCH, "slots": SLOTS, "silos": SILOS, "threshold": epoch.graph.threshold,
            "slot": manifest.slot, "blocks": BLOCKS, "dropped": DROPPED, "length": UPDATE.length, "bits": UPDATE.bits,
        },
        "secrets": secrets,
        "public": {party: identity.public for party, identity in fed.identities.items()},
        "roster": {"bytes": fed.roster.to_bytes(), "hash": fed.roster.hash()},
        "advertise": {
            "request": one(fed.requests["advertise"]), "replies": fed.replies["advertise"],
            "keys_hash": epoch.context.keys_hash,
        },
        "share": {
            "request": one(fed.requests["share"]), "replies": fed.replies["share"], "epoch_hash": epoch.epoch_hash,
            "dealing": dealt(fed, epoch, draws.coefficients[DEALER], secrets[RECIPIENT]["box_key"]),
            "delivery": {"silo": RECIPIENT, "bytes": delivery},
        },
        "masked": {
            "manifest": manifest.to_bytes(), "digest": manifest.digest(), "requests": fed.requests["masked"],
            "replies": fed.replies["masked"], "masks": masks(epoch, manifest, secrets),
            "levels": level_numbers(levels_of(manifest)),
            "silos": {silo: masked(manifest, fed.replies["masked"][silo], silo, secrets[silo]) for silo in INTEGERS},
        },
        "confirm": {
            "request": one(fed.requests["confirm"]), "replies": fed.replies["confirm"],
            "statement": Confirmation(confirmed.digest, confirmed.survivors).to_bytes(),
        },
        "unmask": {
            "request": one(fed.requests["unmask"]), "replies": fed.replies["unmask"],
            **recovered(fed, epoch, confirmed),
            "masked_sum": word_bytes(masked_sum), "sum": word_bytes(opened.words),
            "integers": unpack(opened.words, UPDATE, len(SILOS)).tolist(), "links": opened.links,
            "without_excess": without_excess(manifest, opened),
        },
    }  # fmt: skip
    found: dict[str, Any] = plain(values)
    return found


def named_secrets(drawn: list[bytes]) -> dict[str, Any]:
    """A party's draws, in the order in which the code makes them."""
    if len(drawn) == 1:
        return {"identity": drawn[0]}
    identity, *rest = drawn
    slots, (box, shamir_key), dealt = rest[: 2 * SLOTS], rest[2 * SLOTS : 2 * SLOTS + 2], rest[2 * SLOTS + 2 :]
    noise = dict(zip(("noise_root", "noise_key"), dealt[2 * len(SILOS) :], strict=False))
    return {
        "identity": identity, "seeds": slots[0::2], "mask_keys": slots[1::2], "box_key": box, "shamir_key": shamir_key,
        "nonce_keys": dealt[: len(SILOS)], "gcm_nonces": dealt[len(SILOS) : 2 * len(SILOS)], **noise,
    }  # fmt: skip


def dealt(fed: Federation, epoch: KeyedEpoch, coefficients: list[int], box_private: bytes) -> dict[str, Any]:
    """One dealing, and one of its boxes with what it takes to open it."""
    reply = ShareReply.from_bytes(fed.replies["share"][DEALER])
    dealer, advertisement = epoch.dealers[DEALER], epoch.advertisers[DEALER].advertisement
    box, row = (items[dealer.dealing.recipients.index(RECIPIENT)] for items in (reply.boxes, reply.rows))
    agreement, context = Agreement(box_private), epoch.context
    key = box_key(agreement.with_peer(advertisement.box_key), context.keys_hash, DEALER, RECIPIENT)
    return {
        "dealer": DEALER, "recipient": RECIPIENT,
        "coefficients": [number.to_bytes(shamir.SHARE_BYTES, "big") for number in coefficients],
        "plaintext": open_box(context, agreement, advertisement, RECIPIENT, box, digest_of(row)),
        "key": key, "associated_data": context.associated_data(DEALER, RECIPIENT), "box": box, "row": row,
        "parcels": dealer.parcels, "signed": dealer.signed,
    }  # fmt: skip


def masks(epoch: KeyedEpoch, manifest: Manifest, secrets: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Key and keystream of every mask in the survivors' vectors."""
    digest, slot = manifest.digest(), manifest.slot
    found = {}
    for silo in INTEGERS:
        found[f"self {silo}"] = self_mask_key(secrets[silo]["seeds"][slot], digest, silo, slot)
        agreement = Agreement(secrets[silo]["mask_keys"][slot])
        for peer in SILOS[SILOS.index(silo) + 1 :]:
            shared = agreement.with_peer(epoch.advertisers[peer].mask_key(slot))
            found[f"pair {silo} {peer}"] = pair_mask_key(shared, digest, silo, peer, slot, 0)
    return {name: {"key": key, "keystream": keystream(key)} for name, key in found.items()}


def keystream(key: bytes) -> bytes:
    """A whole mask as little-endian words."""
    words = np.zeros(word_count((UPDATE,), len(SILOS)), np.uint64)
    apply_masks(words, [key], [1])
    return word_bytes(words)


def level_numbers(levels: NoiseLevels) -> dict[str, Any]:
    """Variances in millionths."""
    millionths = [[round(1e6 * variance) for variance in variances] for variances in (levels.owed, levels.kept)]
    return {"owed": millionths[0], "most": levels.most, "kept": millionths[1]}


def masked(manifest: Manifest, reply: bytes, silo: int, secrets: Mapping[str, bytes]) -> dict[str, Any]:
    """From a silo's integers to the statement it signed with its masked words."""
    levels, root, key = levels_of(manifest), secrets["noise_root"], secrets["noise_key"]
    words = all_words(contribution(levels, silo, root, key))
    first = DiscreteGaussian(levels.stds[0]).sample(UPDATE.length, SecretRandomness(key))
    # With d missing what goes is parts d + 1 to 3, as each count is a level here.
    tails = [levels.excess(UPDATE.length, UPDATE.name, later_link(root, d), d) for d in range(len(levels.most))]
    sent = reply[: words.nbytes]
    receipt = Receipt(manifest.digest(), blake3(sent).digest())
    return {
        "integers": INTEGERS[silo], "links": [later_link(root, d) for d in range(len(levels.most) - 1)],
        "parts": [part.tolist() for part in (first, *(more - less for more, less in pairwise(tails)))],
        "words": word_bytes(words), "masked_words": sent, "receipt": receipt.to_bytes(),
    }  # fmt: skip


def without_excess(manifest: Manifest, opened: CohortSum) -> list[int]:
    """The sum's integers without the noise that four survivors do not need."""
    integers, levels = unpack(opened.words, UPDATE, len(SILOS)), levels_of(manifest)
    for link in opened.links.values():
        integers -= levels.excess(UPDATE.length, UPDATE.name, link, MISSING)
    return integers.tolist()


def recovered(fed: Federation, epoch: KeyedEpoch, confirmed: UnmaskStage) -> dict[str, Any]:
    """The secrets that the revealed shares give."""
    seeds: dict[int, dict[int, bytes]] = {silo: {} for silo in SUMMED}
    mask_keys: dict[int, dict[int, bytes]] = {silo: {} for silo in SILOS if silo not in SUMMED}
    for silo, reply in fed.replies["unmask"].items():
        message = open_signed(UnmaskReply, fed.roster.public(silo), reply)
        for owners, shares in ((seeds, message.seed_shares), (mask_keys, message.key_shares)):
            for owner, share in zip(owners, shares, strict=True):
                owners[owner][silo] = share
    recovery = Recovery(epoch, confirmed.manifest.slot, seeds, mask_keys)
    return {
        "seed_shares": seeds, "mask_key_shares": mask_keys,
        "seeds": {silo: recovery.seed(silo) for silo in seeds},
        "mask_keys": {silo: recovery.mask_key(silo) for silo in mask_keys},
    }  # fmt: skip


def word_bytes(words: NDArray[np.uint64]) -> bytes:
    """Words as they travel, little-endian."""
    return words.astype("<u8").tobytes()


def one(messages: Mapping[int, bytes]) -> bytes:
    """The message that all silos were sent alike."""
    (message,) = set(messages.values())
    return message


def plain(value: Any) -> Any:
    """The same in what JSON has: bytes as hex, keys as text."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.hex() if isinstance(value, bytes) else value


def main() -> int:
    """Write the file, or compare with it."""
    parser = argparse.ArgumentParser(description="Make or check the test vectors of SecAgg-S.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 unless the file is up to date")
    check = parser.parse_args().check
    text = json.dumps(make(), indent=1) + "\n"
    if not check:
        FILE.write_text(text)
        return 0
    same = FILE.read_text() == text
    print(f"{FILE.name} is {'what the code makes' if same else 'NOT what the code makes'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
