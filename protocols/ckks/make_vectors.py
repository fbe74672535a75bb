"""Check vectors.json, the test vectors of CKKS sums, by running the real code on the secrets recorded in it.

    python protocols/ckks/make_vectors.py            exit 1 unless the file is what the code makes of its secrets
    python protocols/ckks/make_vectors.py --new      write the file anew, with new secrets from SEAL

Three silos set up an epoch of four slots; then slot 1 sums their vectors, in one block, and all three open the sum.
What comes from `os.urandom` is replaced here, in this process, by values anybody can compute. Lattice keys and the
noise of encryptions come from SEAL's own generator, which cannot be replaced: they are recorded once, as coefficients,
and given to the code again from then on. That makes every secret public: good for vectors and for nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from autoflip_secure.ckks.coordinator import CkksCoordinator
from autoflip_secure.ckks.messages import Ciphertext, EncryptRequest, Opening, OpenReply, Part
from autoflip_secure.ckks.packing import from_bytes, polynomials_of, rows_of, to_bytes
from autoflip_secure.ckks.parameters import DEGREE, MODULUS_BITS, CkksParameters, parameters_for, value_widths
from autoflip_secure.ckks.reference import UniformPolynomials, masked_key, pair_key, reference_key
from autoflip_secure.ckks.ring import Ring, SecretKey, ring
from autoflip_secure.ckks.silo import CkksSilo
from autoflip_secure.ckks.summation import read_sum
from autoflip_secure.parties.agreement import Agreement, public_key
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.roster import Roster, RosterEntry
from autoflip_secure.parties.rules import SiloRules, share_threshold
from autoflip_secure.parties.signing import open_signed
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.encoding import unpack_integers
from autoflip_secure.sums.manifest import Manifest, PrivacyTerms
from autoflip_secure.sums.secure_sum import CohortSum, Contribute, Exchange
from autoflip_secure.sums.words import ContributionWords, all_words

FILE = Path(__file__).with_name("vectors.json")
SILOS = (1, 2, 3)
SLOTS = 4
SESSION = bytes(range(16))
EPOCH = 7
# The second channel's fields are so wide that they are cut in two values.
CHANNELS = (ChannelSpec("update", 10, 16, 1.0), ChannelSpec("count", 7, 32, 2000.0))
# The ends of the range, small numbers of both signs, and first planes that borrow from the later ones. Where a field is
# cut: its lower part at both ends in all silos, one below and one above them, and with the other sign than the whole.
INTEGERS = {
    1: {
        "update": [32767, -32767, 0, 1, -1, 12345, -5, 300, -32000, 7],
        "count": [2147483647, -2147483647, 32768, 32767, -32769, 65535, 0],
    },
    2: {
        "update": [32767, -32767, 1, -2, 3, -23456, 6, -301, 31000, -8],
        "count": [2147483647, -2147483647, 98304, -32769, 32768, -65535, -1],
    },
    3: {
        "update": [32767, -32767, -3, 4, -5, 31000, -32000, 2, -2, 32767],
        "count": [2147483647, -2147483647, -32768, 98303, -100000000, 99999999, 1],
    },
}
TERMS = PrivacyTerms("none", "train", 1.0, 1, 0.0, 0.0, 0, 0.0)
NOISES = {"encrypt": "encryption_noise", "open": "opening_noise"}
# Slot j holds the polynomial's value at zeta^(3^j), zeta being exp(i pi / N).
EXPONENTS = np.array([pow(3, slot, 2 * DEGREE) for slot in range(DEGREE // 2)])
SHOWN = 4

Words = NDArray[np.uint64]
Coefficients = NDArray[np.int64]
# By silo and name what SEAL drew.
Recorded = dict[int, dict[str, Coefficients]]


def draw(party: int, number: int) -> bytes:
    """What `os.urandom` gives a party for its draw of that number; the coordinator is party 0."""
    return hashlib.sha256(f"CKKS vectors, party {party}, draw {number}".encode()).digest()


class Draws:
    """Stands in for the operating system's generator and for SEAL's.

    Parameters
    ----------
    recorded : mapping
        What SEAL drew for each silo; what is not in it SEAL draws, and it is put there.
    """

    def __init__(self, recorded: Recorded) -> None:
        self.party, self.stage, self.recorded = 0, "", recorded
        self.drawn: dict[int, list[bytes]] = {party: [] for party in (0, *SILOS)}

    def urandom(self, size: int) -> bytes:
        drawn = self.drawn[self.party]
        drawn.append(draw(self.party, len(drawn))[:size])
        assert len(drawn[-1]) == size
        return drawn[-1]

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Fixed draws instead of secret ones, until the end of the block."""
        # Loaded before, since loading TenSEAL draws from the operating system too.
        for bits in MODULUS_BITS:
            ring(bits)
        originals = os.urandom, Ring.fresh_key, Ring.encrypted
        _, fresh_key, seal_encrypted = originals

        def key(lattice: Ring) -> SecretKey:
            ternary = self.again("key", lattice, lambda: fresh_key(lattice).words[None])
            return lattice.key_from(ternary[0])

        def encrypted(
            lattice: Ring, secret: SecretKey, values: NDArray[np.float64], scale: float
        ) -> tuple[Words, Words]:
            message = encoded(lattice, values, scale)

            def drawn() -> Words:
                cipher, own = seal_encrypted(lattice, secret, values, scale)
                hidden = lattice.add(cipher, lattice.multiply(own, secret.words))
                return lattice.subtract(message, hidden)

            noise = self.again(NOISES[self.stage], lattice, drawn)
            # SEAL's own a cancels whatever it is.
            own = UniformPolynomials(lattice, bytes(32)).next(len(values))
            masked = lattice.add(lattice.multiply(own, secret.words), noise)
            return lattice.subtract(message, masked), own

        os.urandom, Ring.fresh_key, Ring.encrypted = self.urandom, key, encrypted  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            os.urandom, Ring.fresh_key, Ring.encrypted = originals  # type: ignore[method-assign]

    def again(self, name: str, lattice: Ring, draw_words: Callable[[], Words]) -> Words:
        """Polynomials that were drawn before, or are drawn and recorded now."""
        of_silo = self.recorded.setdefault(self.party, {})
        if name not in of_silo:
            of_silo[name] = coefficients(lattice, draw_words())
        return words_from(lattice, of_silo[name])


def encoded(lattice: Ring, rows: NDArray[np.float64], scale: float) -> Words:
    """Plaintext polynomials of rows of values, as SEAL encodes them."""
    plain, words = lattice._seal.Plaintext(), np.empty(rows.shape, np.uint64)
    for row, out in zip(rows, words, strict=True):
        lattice._encoder.encode(row.view(np.complex128).tolist(), scale, plain)
        out[:] = lattice._words(plain, DEGREE)
    return words


def words_from(lattice: Ring, polynomials: Coefficients) -> Words:
    """NTT words of polynomials with small coefficients: SEAL's encoding of the values that they have in its slots."""
    values = np.fft.ifft(polynomials, 2 * DEGREE)[:, EXPONENTS] * 2 * DEGREE
    return encoded(lattice, np.ascontiguousarray(values).view(np.float64), 1.0)


def coefficients(lattice: Ring, words: Words) -> Coefficients:
    """Coefficients of polynomials for which they are small, the reverse of `words_from`."""
    values = lattice.decoded(words, 1.0).view(np.complex128)
    spectrum = np.zeros((len(words), 2 * DEGREE), np.complex128)
    spectrum[:, EXPONENTS], spectrum[:, -EXPONENTS] = values, values.conj()
    whole = np.rint(np.fft.fft(spectrum)[:, :DEGREE].real / DEGREE).astype(np.int64)
    assert (words_from(lattice, whole) == words).all()
    return whole


class Federation:
    """Coordinator and silos in one process, and every message between them."""

    def __init__(self, draws: Draws) -> None:
        self._draws = draws
        self.identities = {party: self._identity(party) for party in (0, *SILOS)}
        entries = tuple(RosterEntry(silo, f"hospital {silo}", self.identities[silo].public) for silo in SILOS)
        self.roster = Roster(self.identities[0].public, entries)
        self._silos = {silo: self._start(silo) for silo in SILOS}
        self.requests: dict[str, dict[int, bytes]] = {}
        self.replies: dict[str, dict[int, bytes]] = {}

    def _start(self, silo: int) -> CkksSilo:
        connection = sqlite3.connect(":memory:", isolation_level=None)
        return CkksSilo(connection, self.identities[silo], silo, self.roster, SiloRules(0), SESSION)

    def _identity(self, party: int) -> Identity:
        self._draws.party = party
        return Identity.generate()

    def run(self, manifest: Manifest) -> CohortSum:
        """A key set-up, and a sum in its second slot."""
        coordinator = CkksCoordinator(
            self.identities[0], self.roster, SESSION, slots=SLOTS, first_epoch=EPOCH,
            on_epoch=lambda number: None, events=lambda name, details: None,
        )  # fmt: skip
        exchange = self._exchange()
        coordinator._epoch = epoch = coordinator._open(exchange)
        epoch.take_slot()
        (opened,) = coordinator.sum(manifest, exchange)
        return opened

    def _exchange(self) -> Exchange:
        def run(stage: str, requests: Mapping[int, bytes]) -> Iterable[tuple[int, bytes]]:
            self.requests[stage], self.replies[stage] = dict(requests), {}
            for silo, request in requests.items():
                self._draws.party, self._draws.stage = silo, stage
                self.replies[stage][silo] = self._silos[silo].answer(stage, request, contribute(silo))
                yield silo, self.replies[stage][silo]

        return run


def contribute(silo: int) -> Contribute:
    """What the code calls for the words."""
    return lambda manifest: contribution(silo)


def contribution(silo: int) -> ContributionWords:
    """The fixed integers of a silo, as words."""
    channels = {name: np.array(integers, np.int64) for name, integers in INTEGERS[silo].items()}
    return ContributionWords(channels, CHANNELS, len(SILOS))


def asked() -> Manifest:
    """What the coordinator is asked to sum; it fills in the keys' hash and the slot."""
    hashes = {f"{what}_hash": hashlib.sha256(what.encode()).digest() for what in ("model", "mask", "config", "heads")}
    return Manifest(
        session=SESSION, epoch=0, slot=0, epoch_hash=bytes(32), round=300, attempt=1, phase="train",
        cohorts=(SILOS,), minimum=(len(SILOS),), threshold=share_threshold(len(SILOS)), channels=CHANNELS,
        privacy=TERMS, blocks=(SILOS,), **hashes,
    )  # fmt: skip


def make(recorded: Recorded) -> dict[str, Any]:
    """All vectors, with bytes as hex. What SEAL has to draw is added to `recorded`."""
    draws = Draws(recorded)
    with draws.installed():
        fed = Federation(draws)
        opened = fed.run(asked())
    values = {
        "settings": {
            "session": SESSION, "epoch": EPOCH, "slots": SLOTS, "slot": bound_manifest(fed).slot, "silos": SILOS,
            "threshold": share_threshold(len(SILOS)),
            "channels": [[spec.name, spec.length, spec.bits, spec.limit] for spec in CHANNELS],
        },
        "parameters": chosen(),
        "secrets": {party: secrets_of(draws, party) for party in draws.drawn},
        "public": {party: identity.public for party, identity in fed.identities.items()},
        "roster": {"bytes": fed.roster.to_bytes(), "hash": fed.roster.hash()},
        "keys": {
            "request": one(fed.requests["keys"]), "replies": fed.replies["keys"],
            "keys_hash": bound_manifest(fed).epoch_hash,
        },
        "encrypt": encrypt_values(fed),
        "open": open_values(fed, draws),
        "sum": sum_values(fed, opened),
    }  # fmt: skip
    found: dict[str, Any] = plain(values)
    return found


def parameters() -> CkksParameters:
    """Sizes of the sum's lattice and noise."""
    return parameters_for(CHANNELS, len(SILOS))


def polynomials() -> int:
    """Ciphertexts of a contribution."""
    return polynomials_of(CHANNELS, len(SILOS))


def lattice_of() -> Ring:
    """The ring of the sum."""
    return ring(parameters().modulus_bits)


def chosen() -> dict[str, Any]:
    """What the code chose, and the root of unity behind SEAL's NTT: the first word of X."""
    sizes, lattice = parameters(), lattice_of()
    x = np.zeros((1, DEGREE), np.int64)
    x[0, 1] = 1
    return {
        "degree": DEGREE, "modulus_bits": sizes.modulus_bits, "modulus": lattice.modulus,
        "root": int(words_from(lattice, x)[0, 0]), "width": sizes.width, "scale": sizes.scale,
        "smudging": sizes.smudging, "coefficient_bytes": sizes.coefficient_bytes,
        "polynomials": polynomials(),
    }  # fmt: skip


def secrets_of(draws: Draws, party: int) -> dict[str, Any]:
    """A party's draws, in the order in which the code makes them, and what SEAL drew for it."""
    identity, *others = draws.drawn[party]
    if not party:
        assert not others
        return {"identity": identity}
    *agreements, smudging_key = others
    assert len(agreements) == SLOTS
    seal = {name: integer_bytes(values) for name, values in draws.recorded[party].items()}
    return {"identity": identity, "agreements": agreements, "smudging_key": smudging_key, **seal}


def bound_manifest(fed: Federation) -> Manifest:
    """The manifest with keys and slot, as it was sent."""
    request = open_signed(EncryptRequest, fed.roster.coordinator, one(fed.requests["encrypt"]))
    return Manifest.from_bytes(request.manifest)


def encrypt_values(fed: Federation) -> dict[str, Any]:
    """The common reference, and from each silo's integers to the statement it signed with its ciphertexts."""
    manifest, lattice = bound_manifest(fed), lattice_of()
    key = reference_key(manifest.digest(), 0, lattice.bits)
    silos = {}
    for silo in SILOS:
        words = all_words(contribution(silo))
        rows = rows_of(words, CHANNELS, len(SILOS))
        message = encoded(lattice, rows, parameters().scale)
        cipher, reply = split(fed.replies["encrypt"][silo])
        silos[silo] = {
            "integers": INTEGERS[silo], "words": words.astype("<u8").tobytes(), "values": values_in(rows),
            "plaintext": shown(message), "ciphertext": shown(cipher), "reply": reply,
            "statement": Ciphertext(manifest.digest(), wire_hash(cipher)).to_bytes(),
        }  # fmt: skip
    return {
        "request": one(fed.requests["encrypt"]), "manifest": manifest.to_bytes(), "digest": manifest.digest(),
        "reference": {"key": key, **shown(UniformPolynomials(lattice, key).next(polynomials()))},
        "silos": silos,
    }  # fmt: skip


def open_values(fed: Federation, draws: Draws) -> dict[str, Any]:
    """Pair keys, and from each silo's masked key to the statement it signed with its part."""
    manifest, lattice = bound_manifest(fed), lattice_of()
    digest, opening = manifest.digest(), Opening(manifest.digest(), 0, SILOS)
    reference = UniformPolynomials(lattice, reference_key(digest, 0, lattice.bits)).next(polynomials())
    private = {silo: draws.drawn[silo][1 + manifest.slot] for silo in SILOS}
    public = {silo: public_key(key) for silo, key in private.items()}
    pair_keys, silos = {}, {}
    for silo in SILOS:
        agreement, others = Agreement(private[silo]), {peer: key for peer, key in public.items() if peer != silo}
        for peer in (peer for peer in others if peer > silo):
            key = pair_key(agreement, public[peer], opening.hash(), silo, peer, lattice.bits)
            pair_keys[f"{silo} {peer}"] = key
        secret = words_from(lattice, draws.recorded[silo]["key"])[0]
        share = masked_key(lattice, secret, agreement, others, opening.hash(), silo)
        part, reply = split(fed.replies["open"][silo])
        noise = coefficients(lattice, lattice.subtract(part, lattice.multiply(reference, share)))
        link = OpenReply.from_bytes(reply).link
        silos[silo] = {
            "masked_key": shown(share), "noise": integer_bytes(noise), "part": shown(part), "reply": reply,
            "statement": Part(opening.hash(), wire_hash(part), link).to_bytes(),
        }  # fmt: skip
    return {
        "request": one(fed.requests["open"]), "opening": opening.to_bytes(), "opening_hash": opening.hash(),
        "pair_keys": pair_keys, "silos": silos,
    }  # fmt: skip


def sum_values(fed: Federation, opened: CohortSum) -> dict[str, Any]:
    """What the ciphertexts and parts add up to, and what is read from it."""
    lattice = lattice_of()
    total = np.zeros((polynomials(), DEGREE), np.uint64)
    for stage in ("encrypt", "open"):
        for reply in fed.replies[stage].values():
            total = lattice.add(total, split(reply)[0])
    integers = {name: row.tolist() for name, row in unpack_integers(opened.words, CHANNELS, len(SILOS)).items()}
    return {
        "opened": shown(total), "values": values_in(read_sum(lattice, parameters(), total)), "integers": integers,
        "words": opened.words.astype("<u8").tobytes(),
    }  # fmt: skip


def values_in(rows: NDArray[Any]) -> list[int]:
    """Values of all channels' fields, without the zeros that fill the last row."""
    count = sum(spec.length * len(value_widths(spec.bits, len(SILOS))) for spec in CHANNELS)
    values, end = np.split(rows.reshape(-1).astype(np.int64), [count])
    assert not end.any()
    found: list[int] = values.tolist()
    return found


def split(reply: bytes) -> tuple[Words, bytes]:
    """The polynomials in front of a reply, and the message behind them."""
    width, count = lattice_of().bits // 8, polynomials()
    end = width * count * DEGREE
    return from_bytes(reply[:end], width).reshape(count, DEGREE), reply[end:]


def shown(polynomials: Words) -> dict[str, Any]:
    """Polynomials as the vectors have them: the first words, and SHA-256 of all as they travel."""
    flat = polynomials.reshape(-1)
    sent = to_bytes(flat, lattice_of().bits // 8)
    return {"first": flat[:SHOWN].tolist(), "sha256": hashlib.sha256(sent).digest()}


def wire_hash(polynomials: Words) -> bytes:
    """BLAKE3 of polynomials as they travel."""
    return blake3(to_bytes(polynomials, lattice_of().bits // 8)).digest()


def integer_bytes(values: Coefficients) -> bytes:
    """Integers one after another: two bits each where all are -1, 0 or 1, else as few whole bytes each as hold them."""
    most = int(np.abs(values).max())
    if most <= 1:
        quads = (values + 1).reshape(-1, 4).astype(np.uint8)
        packed: bytes = (quads << np.array([0, 2, 4, 6], np.uint8)).sum(axis=1, dtype=np.uint8).tobytes()
        return packed
    size = most.bit_length() // 8 + 1
    return values.astype("<i8").reshape(-1, 1).view(np.uint8)[:, :size].tobytes()


def integers_from(data: bytes, count: int) -> Coefficients:
    """Polynomials that `integer_bytes` wrote, `count` integers in all."""
    if 4 * len(data) == count:
        quads = np.frombuffer(data, np.uint8)[:, None] >> np.array([0, 2, 4, 6], np.uint8)
        return ((quads & 3).astype(np.int64) - 1).reshape(-1, DEGREE)
    size = len(data) // count
    values = [int.from_bytes(data[start : start + size], "little", signed=True) for start in range(0, len(data), size)]
    return np.array(values, np.int64).reshape(-1, DEGREE)


def recorded_in(vectors: Mapping[str, Any]) -> Recorded:
    """What SEAL drew when vectors were recorded."""
    noises = dict.fromkeys(NOISES.values(), polynomials() * DEGREE)
    return {
        silo: {
            name: integers_from(bytes.fromhex(vectors["secrets"][str(silo)][name]), count)
            for name, count in {"key": DEGREE, **noises}.items()
        }
        for silo in SILOS
    }


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
    """Compare with the file, or write it anew."""
    parser = argparse.ArgumentParser(description="Check the test vectors of CKKS sums, or make new ones.")
    parser.add_argument("--new", action="store_true", help="write the file, with keys and noise that SEAL draws now")
    if parser.parse_args().new:
        FILE.write_text(json.dumps(make({}), indent=1) + "\n")
        return 0
    text = FILE.read_text()
    try:
        same = json.dumps(make(recorded_in(json.loads(text))), indent=1) + "\n" == text
    except (ValueError, KeyError):  # secrets that cannot be read
        same = False
    print(f"{FILE.name} is {'what the code makes' if same else 'NOT what the code makes'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
