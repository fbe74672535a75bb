"""Checks the test vectors of CKKS sums against the specification, without the package and without SEAL.

    python tests/ckks/ckks_vector_checker.py [FILE]

A second implementation of protocols/ckks/messages.md, in whole numbers of Python but for encoding and noise: from the
secrets, settings and integers of the file it computes all other values, and verifies what was signed.
"""

from __future__ import annotations

import cmath
import hmac
import json
import math
import struct
import sys
from collections.abc import Sequence
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgpack
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

VECTORS = Path(__file__).parents[2] / "protocols" / "ckks" / "vectors.json"
P = b"autoflip-secure/secagg-s/2"
L = b"autoflip-secure/ckks/1"
N = 4096
HASHED = (b"model", b"mask", b"config", b"heads")
"""What the hashes of the vectors' manifest are of."""

SIGMA = math.sqrt(10.5)
BASE_POINT = (9).to_bytes(32, "little")
# The first primes: with these bases the Miller-Rabin test is exact below 2^64.
BASES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)

# Tests check many files that differ in one value: what both have in common is computed once.
remembered = lru_cache(512)

Polynomial = tuple[int, ...]


def h(*parts: bytes) -> bytes:
    return sha256(b"".join(parts)).digest()


def u32(*numbers: int) -> bytes:
    return struct.pack(f">{len(numbers)}I", *numbers)


def message(kind: str, *fields: Any) -> bytes:
    return bytes(msgpack.packb([2, kind, *fields]))


def fields(data: bytes, kind: str) -> list[Any]:
    rest: list[Any] = msgpack.unpackb(data)[2:]
    if message(kind, *rest) != data:
        raise AssertionError(f"not the canonical bytes of a {kind}")
    return rest


def x25519(private: bytes, public: bytes = BASE_POINT) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def hkdf(secret: bytes, salt: bytes, label: bytes, *context: int) -> bytes:
    """No salt is one of 32 zero bytes, which HMAC treats like an empty one."""
    extracted = hmac.digest(salt, secret, "sha256")
    return hmac.digest(extracted, L + b"|" + label + b"|" + u32(*context) + b"\1", "sha256")


class Keystream:
    """AES-256-CTR from a counter of zero, as little-endian words of 64 bits."""

    def __init__(self, key: bytes) -> None:
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def words(self, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}Q", self._encryptor.update(bytes(8 * count)))


@remembered
def uniform(key: bytes, modulus: int, count: int) -> Polynomial:
    """`count` numbers below the modulus: words cut to its bits, those that are not below it left out."""
    stream, mask = Keystream(key), 2 ** modulus.bit_length() - 1
    found: list[int] = []
    while len(found) < count:
        found += [word & mask for word in stream.words(64) if word & mask < modulus]
    return tuple(found[:count])


@remembered
def smudging(key: bytes, std: float, count: int) -> tuple[float, ...]:
    """Gaussian noise: half the sum of four draws by Box and Muller, each from words of its own."""
    stream, total = Keystream(key), [0.0] * count
    for _ in range(4):
        u = [((word >> 11) + 1) * 2.0**-53 for word in stream.words(2 * count)]
        draws = zip(total, u[:count], u[count:], strict=True)
        total = [t + math.sqrt(-2 * math.log(one)) * math.cos(2 * math.pi * other) for t, one, other in draws]
    return tuple(t * std / 2 for t in total)


def fourier(values: Sequence[Any], powers: Sequence[Any], modulus: int | None = None) -> list[Any]:
    """Sum of values[k] w^(k t) for every t: modulo a prime, or of complex numbers; powers[i] is w^i."""
    if len(values) == 1:
        return list(values)
    even, odd = (fourier(values[start::2], powers[::2], modulus) for start in (0, 1))
    pairs = list(zip(even, (power * value for power, value in zip(powers, odd, strict=False)), strict=True))
    if modulus is None:
        return [a + b for a, b in pairs] + [a - b for a, b in pairs]
    return [(a + b) % modulus for a, b in pairs] + [(a - b) % modulus for a, b in pairs]


def is_prime(number: int) -> bool:
    odd = number - 1
    twos = (odd & -odd).bit_length() - 1
    for base in BASES:
        power = pow(base, odd >> twos, number)
        if power != 1 and all(pow(power, 2**i, number) != number - 1 for i in range(twos)):
            return False
    return True


@cache
def lattice(bits: int) -> Lattice:
    return Lattice(bits)


class Lattice:
    """Z_q[X] / (X^N + 1) with the largest prime q = 1 mod 2N below 2^bits, and the NTT in SEAL's order.

    Word i of a polynomial's NTT is its value at psi^(2 r + 1), r being i with its 12 bits reversed and psi the smallest
    primitive 2N-th root of unity modulo q.
    """

    def __init__(self, bits: int) -> None:
        self.q = q = next(q for q in range(2**bits + 1 - 2 * N, 0, -2 * N) if is_prime(q))
        roots = (pow(base, (q - 1) // (2 * N), q) for base in range(2, 1000))
        root = next(root for root in roots if pow(root, N, q) == q - 1)
        self.psi = min(self._powers(root)[1::2])
        self._forth, self._back = self._powers(self.psi), self._powers(pow(self.psi, -1, q))
        self._reversed = [int(f"{i:012b}"[::-1], 2) for i in range(N)]

    def _powers(self, root: int) -> list[int]:
        powers = [1]
        for _ in range(2 * N - 1):
            powers.append(powers[-1] * root % self.q)
        return powers

    @remembered
    def ntt(self, coefficients: Polynomial) -> Polynomial:
        twisted = [c * power % self.q for c, power in zip(coefficients, self._forth, strict=False)]
        values = fourier(twisted, self._forth[::2], self.q)
        return tuple(values[r] for r in self._reversed)

    @remembered
    def inverse(self, words: Polynomial) -> Polynomial:
        """Coefficients within (-q/2, q/2)."""
        twisted = fourier([words[r] for r in self._reversed], self._back[::2], self.q)
        scale, half = pow(N, -1, self.q), self.q // 2
        found = (c * power * scale for c, power in zip(twisted, self._back, strict=False))
        return tuple((c + half) % self.q - half for c in found)

    @remembered
    def add(self, *polynomials: Polynomial) -> Polynomial:
        return tuple(sum(column) % self.q for column in zip(*polynomials, strict=True))

    @remembered
    def multiply(self, a: Polynomial, b: Polynomial) -> Polynomial:
        return tuple(x * y % self.q for x, y in zip(a, b, strict=True))

    @remembered
    def negative(self, a: Polynomial) -> Polynomial:
        return tuple(-x % self.q for x in a)


ZETA = [cmath.exp(1j * math.pi * k / N) for k in range(2 * N)]
# Slot j holds the value at zeta^(3^j); its place among all odd powers.
PLACES = [(pow(3, j, 2 * N) - 1) // 2 for j in range(N // 2)]


@remembered
def unrounded(values: tuple[float, ...], scale: float) -> tuple[float, ...]:
    """Real coefficients of the polynomial whose slots hold N values, two a slot, times the scale."""
    spectrum = [0j] * N
    for place, real, imaginary in zip(PLACES, values[::2], values[1::2], strict=True):
        spectrum[place] = complex(real, imaginary)
        spectrum[N - 1 - place] = complex(real, -imaginary)
    back = [power.conjugate() for power in ZETA]
    sums = fourier(spectrum, back[::2])
    return tuple((c * power).real * scale / N for c, power in zip(sums, back, strict=False))


@remembered
def encode(values: tuple[float, ...], scale: float) -> Polynomial:
    """Coefficients of a plaintext."""
    return tuple(map(round, unrounded(values, scale)))


@remembered
def decode(coefficients: Polynomial, scale: float) -> tuple[float, ...]:
    """The N values in a plaintext's slots."""
    found = fourier([c * power for c, power in zip(coefficients, ZETA, strict=False)], ZETA[::2])
    slots = (found[place] / scale for place in PLACES)
    return tuple(part for slot in slots for part in (slot.real, slot.imag))


def rows(values: Sequence[Any], zero: Any = 0) -> list[tuple[Any, ...]]:
    """N at a time, with zeros at the end."""
    padded = [*values, *[zero] * (-len(values) % N)]
    return [tuple(padded[start : start + N]) for start in range(0, len(padded), N)]


@remembered
def integers(data: bytes, count: int) -> tuple[int, ...]:
    """Recorded integers: two bits each where four are a byte, else equally many bytes each."""
    if 4 * len(data) == count:
        return tuple((byte >> shift & 3) - 1 for byte in data for shift in (0, 2, 4, 6))
    size = len(data) // count
    if size * count != len(data):
        raise AssertionError(f"{len(data)} bytes hold no {count} integers")
    return tuple(int.from_bytes(data[at : at + size], "little", signed=True) for at in range(0, len(data), size))


def field_width(bits: int, silos: int) -> int:
    """Bits that a sum of so many silos takes."""
    return bits + (silos - 1).bit_length()


def value_widths(bits: int, silos: int) -> tuple[int, ...]:
    """Bits of the sums of a coordinate's values: of its one value, or of the lower and the upper one."""
    width = field_width(bits, silos)
    return (width,) if width <= 30 else (field_width(16, silos), width - 16)


def sizes(channels: Sequence[Sequence[Any]], silos: int) -> tuple[int, int, float, float]:
    """Bits of the modulus and of the widest value, scale, deviation of the smudging."""
    widest = max(width for _, _, bits, _ in channels for width in value_widths(bits, silos))
    for modulus_bits in (40, 48, 56):
        scale = 0.99 * 2.0 ** (modulus_bits - 1) / (math.sqrt(2) * 2 ** (widest - 1))
        std = math.sqrt(max(0.0, (1 / 18) ** 2 / silos - 2 * (SIGMA**2 + 1 / 12) * (N / 2) / scale**2))
        if std * scale / (math.sqrt(N / 2) * SIGMA) >= 64:
            return modulus_bits, widest, scale, std
    raise AssertionError(f"no modulus holds sums of {widest} bits over {silos} silos")


def values_of(channels: Sequence[Sequence[Any]], vectors: Sequence[Sequence[int]], silos: int) -> list[int]:
    """What is encrypted of the channels' integers: of wide ones first the lower parts, then the upper ones."""
    found: list[int] = []
    for (_, _, bits, _), vector in zip(channels, vectors, strict=True):
        if len(value_widths(bits, silos)) == 1:
            found += vector
            continue
        uppers = [(x + 2**15) // 2**16 for x in vector]
        found += [x - 2**16 * upper for x, upper in zip(vector, uppers, strict=True)]
        found += uppers
    return found


def vectors_of(channels: Sequence[Sequence[Any]], values: Sequence[int], silos: int) -> list[list[int]]:
    """The channels' integers that sums of values stand for."""
    found, start = [], 0
    for _, length, bits, _ in channels:
        parts = [values[start + length * i : start + length * (i + 1)] for i in range(len(value_widths(bits, silos)))]
        found.append([sum(part << 16 * i for i, part in enumerate(cut)) for cut in zip(*parts, strict=True)])
        start += length * len(parts)
    return found


def packed(channels: Sequence[Sequence[Any]], vectors: Sequence[Sequence[int]], silos: int) -> bytes:
    """Words of Z_2^64 whose fields the channels' integers are, channel by channel."""
    found: list[int] = []
    for (_, length, bits, _), vector in zip(channels, vectors, strict=True):
        if len(vector) != length:
            raise AssertionError(f"{len(vector)} integers for a channel of {length}")
        width = field_width(bits, silos)
        size = -(-length // (64 // width))
        words = [0] * size
        for c, integer in enumerate(vector):
            words[c % size] += integer << width * (c // size)
        found += words
    return struct.pack(f"<{len(found)}Q", *(word % 2**64 for word in found))


@remembered
def travelling(words: Polynomial, size: int) -> bytes:
    """Words in so many bytes each."""
    return b"".join(word.to_bytes(size, "little") for word in words)


def decoded(data: Any) -> Any:
    """JSON with hex as bytes, and numbers for keys that are numbers."""
    if isinstance(data, dict):
        return {int(name) if name.isdigit() else name: decoded(item) for name, item in data.items()}
    if isinstance(data, list):
        return [decoded(item) for item in data]
    return bytes.fromhex(data) if isinstance(data, str) else data


class Checker:
    """One walk through the file in the order of the protocol; `done` names what was checked."""

    def __init__(self, vectors: dict[str, Any]) -> None:
        self.done: list[str] = []
        # Names of channels are the one text that is no hex.
        names = [channel[0] for channel in vectors["settings"]["channels"]]
        channels = [[name.encode().hex(), *rest] for name, *rest in vectors["settings"]["channels"]]
        v = self.v = decoded({**vectors, "settings": {**vectors["settings"], "channels": channels}})
        self.channels = [[name, *rest[1:]] for name, rest in zip(names, v["settings"]["channels"], strict=True)]
        self.secrets, settings = v["secrets"], v["settings"]
        self.silos, self.slots, self.slot = settings["silos"], settings["slots"], settings["slot"]
        self.session, self.epoch = settings["session"], settings["epoch"]
        self.head = [self.session, v["roster"]["hash"], self.epoch]

    def same(self, what: str, claimed: Any, found: Any) -> None:
        if claimed != found:
            raise AssertionError(f"{what} is not what the specification gives")
        self.done.append(what)

    def verify(self, who: int, statement: bytes, signature: bytes) -> None:
        kind = msgpack.unpackb(statement)[1].encode()
        public = Ed25519PublicKey.from_public_bytes(self.v["public"][who])
        public.verify(signature, P + struct.pack(">H", len(kind)) + kind + statement)
        self.done.append(f"signature of {who} on {kind.decode()}")

    def signed(self, who: int, data: bytes, kind: str, *content: Any) -> None:
        """A signed message is by `who` and holds this."""
        payload, signature = fields(data, "signed")
        self.same(f"{kind} of {who}", payload, message(kind, *content))
        self.verify(who, payload, signature)

    def sent(self, polynomials: list[Polynomial]) -> bytes:
        """Polynomials as they travel."""
        return b"".join(travelling(words, self.bytes) for words in polynomials)

    def shown(self, what: str, claimed: dict[str, Any], polynomials: list[Polynomial]) -> None:
        words = [word for words in polynomials for word in words]
        found = {"first": words[:4], "sha256": h(self.sent(polynomials))}
        self.same(what, {name: claimed[name] for name in found}, found)

    def parties(self) -> None:
        for party, own in self.secrets.items():
            drawn = [own["identity"], *((*own["agreements"], own["smudging_key"]) if party else ())]
            self.same(f"number of draws of {party}", len(drawn), 1 + (self.slots + 1) * (party != 0))
            rule = [h(f"CKKS vectors, party {party}, draw {i}".encode()) for i in range(len(drawn))]
            self.same(f"secrets of {party}", drawn, rule)
            public = Ed25519PrivateKey.from_private_bytes(own["identity"]).public_key().public_bytes_raw()
            self.same(f"identity of {party}", self.v["public"][party], public)
        entries = [[silo, f"hospital {silo}", self.v["public"][silo]] for silo in self.silos]
        roster = message("roster", self.v["public"][0], entries)
        self.same("roster", self.v["roster"], {"bytes": roster, "hash": h(roster)})

    def sizes(self) -> None:
        """Parameters, from the channels and the number of silos."""
        silos = len(self.silos)
        bits, self.width, scale, std = sizes(self.channels, silos)
        self.scale, self.std, self.bytes, self.lattice = scale, std, bits // 8, lattice(bits)
        self.length = sum(length * len(value_widths(bits, silos)) for _, length, bits, _ in self.channels)
        self.count = -(-self.length // N)
        given = self.v["parameters"]
        found = {
            "degree": N, "modulus_bits": bits, "modulus": self.lattice.q, "root": self.lattice.psi, "width": self.width,
            "scale": given["scale"], "smudging": given["smudging"], "coefficient_bytes": self.bytes,
            "polynomials": self.count,
        }  # fmt: skip
        self.same("parameters", given, found)
        # Doubles, whose last digit is the platform's.
        near = all(math.isclose(given[name], own, rel_tol=1e-12) for name, own in (("scale", scale), ("smudging", std)))
        self.same("scale and smudging", near, True)

    def keys(self) -> None:
        given, self.publics = self.v["keys"], {}
        self.signed(0, given["request"], "ckks key request", *self.head, self.slots)
        for silo in self.silos:
            publics = [x25519(private) for private in self.secrets[silo]["agreements"]]
            self.signed(silo, given["replies"][silo], "ckks key", *self.head, silo, self.slots, b"".join(publics))
            self.publics[silo] = publics[self.slot]
        self.advertisements = [given["replies"][silo] for silo in self.silos]
        items = [u32(len(item)) + item for item in self.advertisements]
        self.keys_hash = h(L, b"|keys|", u32(len(items)), *items)
        self.same("keys hash", given["keys_hash"], self.keys_hash)

    def encrypt(self) -> None:
        given, manifest = self.v["encrypt"], msgpack.unpackb(self.v["encrypt"]["manifest"])
        self.digest, settings = h(given["manifest"]), self.v["settings"]
        self.same("digest", given["digest"], self.digest)
        self.same("manifest's keys", manifest[:5], [3, self.session, self.epoch, self.slot, self.keys_hash])
        self.same("manifest's sum", manifest[8:11], [[self.silos], [len(self.silos)], settings["threshold"]])
        self.same("threshold", settings["threshold"], 2 * len(self.silos) // 3 + 1)
        self.same("manifest's hashes", [*manifest[11:14], manifest[16]], list(map(h, HASHED)))
        self.same("manifest's blocks", manifest[17:], [[self.silos]])
        self.same("manifest's channels", manifest[14], self.channels)
        self.signed(0, given["request"], "ckks encrypt request", *self.head, given["manifest"], self.advertisements)
        key = hkdf(self.digest, b"", b"reference", 0, 8 * self.bytes)
        self.same("key of the reference", given["reference"]["key"], key)
        self.reference = rows(uniform(key, self.lattice.q, self.count * N))
        self.shown("reference", given["reference"], self.reference)
        self.lattice_keys = {silo: self.lattice_key(silo) for silo in self.silos}
        self.ciphertexts = {silo: self.ciphertext(silo, given["silos"][silo]) for silo in self.silos}

    def lattice_key(self, silo: int) -> Polynomial:
        """The key that a silo drew for this sum."""
        ternary = integers(self.secrets[silo]["key"], N)
        self.same(f"key of {silo} is ternary", set(ternary) <= {-1, 0, 1}, True)
        return self.lattice.ntt(ternary)

    def ciphertext(self, silo: int, given: dict[str, Any]) -> list[Polynomial]:
        """From a silo's integers to its ciphertexts, and its signature on them."""
        ring, key = self.lattice, self.lattice_keys[silo]
        names = [name for name, _, _, _ in self.channels]
        self.same(f"channels of {silo}", list(given["integers"]), names)
        vectors = [given["integers"][name] for name in names]
        self.same(f"words of {silo}", given["words"], packed(self.channels, vectors, len(self.silos)))
        values = values_of(self.channels, vectors, len(self.silos))
        self.same(f"values of {silo}", given["values"], values)
        plaintexts = [ring.ntt(encode(row, self.scale)) for row in rows([float(value) for value in values], 0.0)]
        self.shown(f"plaintext of {silo}", given["plaintext"], plaintexts)
        noise = rows(integers(self.secrets[silo]["encryption_noise"], self.count * N))
        found = []
        for reference, e, plaintext in zip(self.reference, noise, plaintexts, strict=True):
            hidden = ring.negative(ring.add(ring.multiply(reference, key), ring.ntt(e)))
            found.append(ring.add(hidden, plaintext))
        self.shown(f"ciphertext of {silo}", given["ciphertext"], found)
        statement = message("ckks ciphertext", self.digest, blake3(self.sent(found)).digest())
        self.same(f"statement of {silo} on its ciphertext", given["statement"], statement)
        who, signature = fields(given["reply"], "ckks encrypt reply")
        self.same(f"encrypt reply of {silo}", who, silo)
        self.verify(silo, statement, signature)
        return found

    def open(self) -> None:
        given = self.v["open"]
        self.signed(0, given["request"], "ckks open request", *self.head, self.slot, self.digest, [self.silos])
        opening = message("ckks opening", self.digest, 0, self.silos)
        self.opening = h(opening)
        self.same("opening", [given["opening"], given["opening_hash"]], [opening, self.opening])
        self.pair_keys = {}
        for low in self.silos:
            for high in (silo for silo in self.silos if silo > low):
                shared = x25519(self.secrets[low]["agreements"][self.slot], self.publics[high])
                self.pair_keys[low, high] = hkdf(shared, self.opening, b"key mask", low, high, 8 * self.bytes)
        found = {f"{low} {high}": key for (low, high), key in self.pair_keys.items()}
        self.same("pair keys", given["pair_keys"], found)
        self.parts = {silo: self.part(silo, given["silos"][silo]) for silo in self.silos}
        shares = [self.masked_key(silo) for silo in self.silos]
        self.same("masks cancel", self.lattice.add(*shares), self.lattice.add(*self.lattice_keys.values()))

    def masked_key(self, silo: int) -> Polynomial:
        """The key plus the masks shared with higher ids, less those shared with lower ones."""
        ring, terms = self.lattice, [self.lattice_keys[silo]]
        for (low, high), key in self.pair_keys.items():
            if silo in (low, high):
                mask = uniform(key, ring.q, N)
                terms.append(mask if silo == low else ring.negative(mask))
        return ring.add(*terms)

    def part(self, silo: int, given: dict[str, Any]) -> list[Polynomial]:
        """A silo's part of the opening, and its signature on it."""
        ring, share, own = self.lattice, self.masked_key(silo), self.secrets[silo]
        self.shown(f"masked key of {silo}", given["masked_key"], [share])
        smudged = [encode(row, self.scale) for row in rows(smudging(own["smudging_key"], self.std, self.count * N))]
        errors = rows(integers(own["opening_noise"], self.count * N))
        noise = [tuple(a - b for a, b in zip(*pair, strict=True)) for pair in zip(smudged, errors, strict=True)]
        self.same(f"noise of {silo}", rows(integers(given["noise"], self.count * N)), noise)
        pairs = zip(self.reference, noise, strict=True)
        found = [ring.add(ring.multiply(reference, share), ring.ntt(row)) for reference, row in pairs]
        self.shown(f"part of {silo}", given["part"], found)
        # With every silo there, no noise of the sum is to be removed.
        statement = message("ckks part", self.opening, blake3(self.sent(found)).digest(), b"")
        self.same(f"statement of {silo} on its part", given["statement"], statement)
        who, link, signature = fields(given["reply"], "ckks open reply")
        self.same(f"open reply of {silo}", [who, link], [silo, b""])
        self.verify(silo, statement, signature)
        return found

    def sum(self) -> None:
        """What the coordinator reads, from ciphertexts and parts alone."""
        given = self.v["sum"]
        columns = zip(*self.ciphertexts.values(), *self.parts.values(), strict=True)
        opened = [self.lattice.add(*column) for column in columns]
        self.shown("opened sum", given["opened"], opened)
        values = [value for words in opened for value in decode(self.lattice.inverse(words), self.scale)]
        whole = [round(value) for value in values]
        residue = max(abs(value - nearest) for value, nearest in zip(values, whole, strict=True))
        self.same("values are whole", residue <= 4 / 9, True)
        self.same("values fit their fields", max(map(abs, whole)) < 2 ** (self.width + 1), True)
        self.same("values end in zeros", set(whole[self.length :]) <= {0}, True)
        self.same("values of the sum", given["values"], whole[: self.length])
        vectors = vectors_of(self.channels, whole, len(self.silos))
        for (name, *_), vector in zip(self.channels, vectors, strict=True):
            integers_of = [self.v["encrypt"]["silos"][silo]["integers"][name] for silo in self.silos]
            self.same(f"sum of {name}", vector, [sum(column) for column in zip(*integers_of, strict=True)])
        names = [name for name, *_ in self.channels]
        self.same("integers", given["integers"], dict(zip(names, vectors, strict=True)))
        self.same("words of the sum", given["words"], packed(self.channels, vectors, len(self.silos)))


def check(vectors: dict[str, Any]) -> list[str]:
    """Names of the checks done; raises where a value is off or cannot be read."""
    checker = Checker(vectors)
    for step in ("parties", "sizes", "keys", "encrypt", "open", "sum"):
        getattr(checker, step)()
    return checker.done


if __name__ == "__main__":
    names = check(json.loads(Path(sys.argv[1] if len(sys.argv) > 1 else VECTORS).read_text()))
    print("\n".join(names))
    print(f"{len(names)} checks, nothing is off")
