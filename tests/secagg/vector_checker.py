"""Checks the test vectors of SecAgg-S against the specification, without the package.

    python tests/secagg/vector_checker.py [FILE]

A second implementation of protocols/secagg/messages.md: from the secrets, settings and integers of the file it computes
all other values, opens what was sealed, verifies what was signed and recovers what was shared.
"""

from __future__ import annotations

import hmac
import json
import math
import struct
import sys
from decimal import Decimal, localcontext
from functools import cache
from hashlib import sha256
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VECTORS = Path(__file__).parents[2] / "protocols" / "secagg" / "vectors.json"
P = b"autoflip-secure/secagg-s/2"
CHAIN = b"autoflip-secure/noise-chain/1|"
PRIME = 2**256 + 297
HASHED = (b"model", b"mask", b"config", b"heads")
"""What the hashes of the vectors' manifest are of."""

BASE_POINT = (9).to_bytes(32, "little")


def h(*parts: bytes) -> bytes:
    return sha256(b"".join(parts)).digest()


def u32(*numbers: int) -> bytes:
    return struct.pack(f">{len(numbers)}I", *numbers)


def transcript(start: bytes, items: list[bytes]) -> bytes:
    return h(P, start, u32(len(items)), *(u32(len(item)) + item for item in items))


def message(kind: str, *fields: Any) -> bytes:
    return msgpack.packb([2, kind, *fields])


def fields(data: bytes, kind: str) -> list[Any]:
    _, _, *rest = msgpack.unpackb(data)
    if message(kind, *rest) != data:
        raise AssertionError(f"not the canonical bytes of a {kind}")
    return rest


def x25519(private: bytes, public: bytes = BASE_POINT) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def hkdf(secret: bytes, salt: bytes, label: bytes, *context: int) -> bytes:
    extracted = hmac.digest(salt, secret, "sha256")
    return hmac.digest(extracted, P + b"|" + label + b"|" + u32(*context) + b"\1", "sha256")


def keystream(key: bytes, size: int) -> bytes:
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(size))


def chained(link: bytes, purpose: bytes) -> bytes:
    """HKDF without salt, which is one of 32 zero bytes."""
    return hmac.digest(hmac.digest(bytes(32), link, "sha256"), CHAIN + purpose + b"\1", "sha256")


def gaussian(variance: float, key: bytes, count: int) -> list[int]:
    """Discrete Gaussian noise from a keystream: words against the distribution of the magnitude, then signs."""
    words = np.frombuffer(keystream(key, 8 * (count + -(-count // 64))), "<u8")
    signs = np.unpackbits(words[count:].view(np.uint8))
    draws = zip(words[:count].tolist(), signs, strict=False)
    return [sum(bound <= word for bound in reached(variance)) * (-1 if sign else 1) for word, sign in draws]


@cache
def reached(variance: float) -> list[int]:
    """2^64 times the chance of a magnitude up to 0, 1, ..."""
    with localcontext(prec=60):
        weights = [(-Decimal(k * k) / (2 * Decimal(variance))).exp() * (2 if k else 1) for k in range(600)]
        total = sum(weights)
        return [int(so_far / total * 2**64) for so_far in accumulate(weights)]


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def interpolate(revealed: dict[int, bytes]) -> bytes:
    """Secret behind `nonce share` of silos, by Lagrange's formula at zero."""
    total = 0
    for silo, piece in revealed.items():
        top = bottom = 1
        for other in set(revealed) - {silo}:
            top, bottom = top * other, bottom * (other - silo)
        total += int.from_bytes(piece[16:], "big") * top * pow(bottom, -1, PRIME)
    return (total % PRIME).to_bytes(32, "big")


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
        v = self.v = decoded(vectors)
        self.secrets, settings = v["secrets"], v["settings"]
        self.silos, self.slots, self.t = (settings[name] for name in ("silos", "slots", "threshold"))
        self.epoch, self.slot, self.blocks = (settings[name] for name in ("epoch", "slot", "blocks"))
        self.session, self.digest = settings["session"], v["masked"]["digest"]
        self.sent = [silo for silo in self.silos if silo != settings["dropped"]]
        self.present = [silo for block in self.blocks if set(block) <= set(self.sent) for silo in block]
        self.gone = [silo for silo in self.silos if silo not in self.present]
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
        self.verify(who, payload, signature)
        self.same(f"{kind} of {who}", payload, message(kind, *content))

    def parties(self) -> None:
        for party, own in self.secrets.items():
            pairs = zip(own.get("seeds", []), own.get("mask_keys", []), strict=True)
            drawn = [own["identity"], *(secret for pair in pairs for secret in pair)]
            if party:
                drawn += [own["box_key"], own["shamir_key"], *own["nonce_keys"], *own["gcm_nonces"]]
            if party in self.sent:
                drawn += [own["noise_root"], own["noise_key"]]
            rule = [h(f"SecAgg-S vectors, party {party}, draw {i}".encode())[: len(d)] for i, d in enumerate(drawn)]
            self.same(f"secrets of {party}", drawn, rule)
            public = Ed25519PrivateKey.from_private_bytes(own["identity"]).public_key().public_bytes_raw()
            self.same(f"identity of {party}", self.v["public"][party], public)
        entries = [[silo, f"hospital {silo}", self.v["public"][silo]] for silo in self.silos]
        roster = message("roster", self.v["public"][0], entries)
        self.same("roster", self.v["roster"], {"bytes": roster, "hash": h(roster)})
        self.same("threshold", self.t, 2 * len(self.silos) // 3 + 1)

    def advertise(self) -> None:
        given = self.v["advertise"]
        self.signed(0, given["request"], "advertise request", *self.head, self.slots)
        self.mask_keys, self.commitments, self.box_keys, self.advertisements = {}, {}, {}, []
        for silo in self.silos:
            own, signed = self.secrets[silo], fields(given["replies"][silo], "advertise reply")[0]
            self.box_keys[silo], self.mask_keys[silo] = x25519(own["box_key"]), [x25519(k) for k in own["mask_keys"]]
            self.commitments[silo] = [self.commitment(silo, slot, seed) for slot, seed in enumerate(own["seeds"])]
            parts = b"".join(self.mask_keys[silo]), b"".join(self.commitments[silo])
            self.same(f"reply of {silo}", given["replies"][silo], message("advertise reply", signed, *parts))
            content = silo, self.slots, self.box_keys[silo], *map(h, parts)
            self.signed(silo, signed, "advertisement", *self.head, *content)
            self.advertisements.append(signed)
        self.keys_hash = transcript(b"|advertisements|" + u32(0, self.t), self.advertisements)
        self.same("keys hash", given["keys_hash"], self.keys_hash)

    def commitment(self, silo: int, slot: int, seed: bytes) -> bytes:
        return h(P, b"|seed commitment|", self.session, u32(self.epoch, silo, slot), seed)

    def share(self) -> None:
        given, self.pieces, parcels = self.v["share"], {}, {}
        self.signed(0, given["request"], "share request", *self.head, 0, self.t, self.advertisements)
        replies = {silo: fields(given["replies"][silo], "share reply") for silo in self.silos}
        dealings = [signed for signed, _, _ in replies.values()]
        for dealer, (signed, boxes, rows) in replies.items():
            coefficients, texts = self.shares(dealer)
            sealed = [self.box(dealer, *each) for each in zip(self.silos, boxes, rows, texts, strict=True)]
            parcels[dealer] = b"".join(h(box) + h(row) for box, row in zip(boxes, rows, strict=True))
            self.signed(dealer, signed, "dealing", *self.head, dealer, self.keys_hash, self.silos, h(parcels[dealer]))
            if dealer == 2:
                found = {"dealer": 2, "recipient": 3, "coefficients": coefficients, "plaintext": texts[2]}
                found |= {"box": boxes[2], "row": rows[2], "parcels": parcels[2], "signed": signed}
                found |= dict(zip(("key", "associated_data"), sealed[2], strict=True))
                self.same("dealing in detail", given["dealing"], found)
        self.deliveries = {}
        for at, silo in enumerate(self.silos):
            peers = [(d, b"".join(self.mask_keys[d]), parcels[d], boxes[at]) for d, (_, boxes, _) in replies.items()]
            self.deliveries[silo] = message("delivery", dealings, [message("delivered", *peer) for peer in peers])
        self.same("delivery", given["delivery"], {"silo": 3, "bytes": self.deliveries[3]})
        self.epoch_hash = transcript(b"|epoch|" + self.keys_hash, dealings)
        self.same("epoch hash", given["epoch_hash"], self.epoch_hash)

    def shares(self, dealer: int) -> tuple[list[bytes], list[bytes]]:
        """Coefficients, and the plaintext of every box."""
        own, degree = self.secrets[dealer], self.t - 1
        secrets = [secret for pair in zip(own["seeds"], own["mask_keys"], strict=True) for secret in pair]
        pool = pieces(keystream(own["shamir_key"], 48 * degree * len(secrets)), 48)
        drawn = [int.from_bytes(part, "big") % PRIME for part in pool]
        # The coefficient drawn first belongs to the highest power, the secret to the lowest.
        lines = [[*drawn[i * degree : (i + 1) * degree], int.from_bytes(s, "big")] for i, s in enumerate(secrets)]
        texts = []
        for silo, key in zip(self.silos, own["nonce_keys"], strict=True):
            values = [sum(c * silo**power for power, c in enumerate(reversed(line))) % PRIME for line in lines]
            nonces = pieces(keystream(key, 16 * len(secrets)), 16)
            texts.append(b"".join(n + v.to_bytes(33, "big") for n, v in zip(nonces, values, strict=True)))
        return [c.to_bytes(33, "big") for c in drawn], texts

    def box(self, dealer: int, recipient: int, box: bytes, row: bytes, text: bytes) -> tuple[bytes, bytes]:
        """Opens a box as its recipient does; its key and associated data."""
        shared, where = x25519(self.secrets[recipient]["box_key"], self.box_keys[dealer]), u32(dealer, recipient)
        key = hkdf(shared, self.keys_hash, b"share box", dealer, recipient)
        data = P + where + u32(self.epoch) + self.session + self.v["roster"]["hash"] + self.keys_hash
        nonce = self.secrets[dealer]["gcm_nonces"][self.silos.index(recipient)]
        opened = AESGCM(key).decrypt(box[:12], box[12:], data)
        self.same(f"box {dealer} to {recipient}", [box[:12], opened], [nonce, text])
        prefix, revealed = P + b"|share|" + self.keys_hash + where, pieces(text, 49)
        leaves = [h(prefix, u32(i // 2), bytes([i % 2]), piece) for i, piece in enumerate(revealed)]
        self.same(f"row {dealer} to {recipient}", row, b"".join(leaves))
        self.pieces[recipient, dealer] = revealed[2 * self.slot : 2 * self.slot + 2]
        return key, data

    def masked(self) -> None:
        given, settings, manifest = self.v["masked"], self.v["settings"], msgpack.unpackb(self.v["masked"]["manifest"])
        self.same("digest", self.digest, h(given["manifest"]))
        self.same("manifest's keys", manifest[:5], [3, self.session, self.epoch, self.slot, self.epoch_hash])
        self.same("manifest's sum", manifest[8:11], [[self.silos], [3], self.t])
        self.levels(manifest[14][0], manifest[15], manifest[9][0])
        self.same("manifest's hashes", [*manifest[11:14], manifest[16]], list(map(h, HASHED)))
        self.same("manifest's blocks", manifest[17:], [self.blocks])
        self.same("manifest's channel", manifest[14], [["update", settings["length"], settings["bits"], 1.0]])
        self.width = settings["bits"] + (len(self.silos) - 1).bit_length()
        self.m = -(-settings["length"] // (64 // self.width))
        masks = {f"self {silo}": self.self_mask(silo, self.secrets[silo]["seeds"][self.slot]) for silo in self.sent}
        for low, high in self.pairs():
            masks[f"pair {low} {high}"] = self.pair_mask(self.secrets[low]["mask_keys"][self.slot], low, high)
        self.same("masks", given["masks"], masks)
        for silo in self.sent:
            self.vector(silo, masks, given["silos"][silo], given["replies"][silo])
            content = given["manifest"], self.deliveries[silo]
            self.signed(0, given["requests"][silo], "masked request", *self.head, *content)

    def levels(self, channel: list[Any], privacy: list[Any], minimum: int) -> None:
        """What a silo owes by the number of missing silos; here each number is a level."""
        (_, length, bits, limit), (trust, _, _, _, multiplier, clip, colluders, delta) = channel, privacy
        self.same("trust", trust, "distributed")
        distance = clip / (limit / (2 ** (bits - 1) - 1)) + math.sqrt(length) * 2.0**-26
        spread = 2 * distance + math.sqrt(length)
        mean = distance**2 + length / 4 + 2.0**-26 * spread * math.sqrt(length)
        sensitivity = math.sqrt(mean + spread * math.sqrt(math.log(1 / (1e-9 * delta)) / 2))
        together = (multiplier * sensitivity) ** 2 + 1 / 12
        self.most = len(self.silos) - minimum
        self.owed = [together / (len(self.silos) - d - colluders) for d in range(self.most + 1)]
        millionths = [round(1e6 * owed) for owed in self.owed]
        found = {"owed": millionths, "most": [*range(self.most + 1)], "kept": millionths}
        self.same("levels", self.v["masked"]["levels"], found)

    def noise(self, silo: int, given: dict[str, Any]) -> list[int]:
        """A silo's chain, and the parts of its noise; their sum."""
        own = self.secrets[silo]
        links = [own["noise_root"]]
        while len(links) < self.most:
            links.append(chained(links[-1], b"next"))
        keys = [own["noise_key"], *(chained(link, b"noise|update") for link in links)]
        variances = [self.owed[0], *(more - less for less, more in pairwise(self.owed))]
        drawn = [gaussian(*part, self.v["settings"]["length"]) for part in zip(variances, keys, strict=True)]
        self.same(f"links of {silo}", given["links"], links)
        self.same(f"noise of {silo}", given["parts"], drawn)
        return [sum(parts) for parts in zip(*drawn, strict=True)]

    def pairs(self) -> list[tuple[int, int]]:
        """Who masks with whom, less who sent nothing."""
        return [(low, high) for low in self.sent for high in self.silos if low < high]

    def vector(self, silo: int, masks: dict[str, Any], given: dict[str, Any], reply: bytes) -> None:
        """A silo's masked vector, as added up from its integers and masks, and its receipt."""
        noised = zip(given["integers"], self.noise(silo, given), strict=True)
        words = self.packed(list(map(sum, noised)))
        sent = words + self.words(masks[f"self {silo}"])
        for low, high in (pair for pair in self.pairs() if silo in pair):
            mask = self.words(masks[f"pair {low} {high}"])
            sent = sent + mask if silo == low else sent - mask
        receipt = message("receipt", self.digest, blake3(sent.tobytes()).digest())
        self.same(f"words of {silo}", given["words"], words.tobytes())
        self.same(f"masked words of {silo}", given["masked_words"], sent.tobytes())
        self.same(f"receipt of {silo}", given["receipt"], receipt)
        signature = fields(reply[8 * self.m :], "masked reply")[1]
        self.same(f"masked reply of {silo}", reply, sent.tobytes() + message("masked reply", silo, signature))
        self.verify(silo, receipt, signature)

    def self_mask(self, silo: int, seed: bytes) -> dict[str, bytes]:
        return self.mask(hkdf(seed, self.digest, b"self mask", silo, self.slot))

    def pair_mask(self, private: bytes, silo: int, peer: int) -> dict[str, bytes]:
        shared = x25519(private, self.mask_keys[peer][self.slot])
        return self.mask(hkdf(shared, self.digest, b"pair mask", *sorted((silo, peer)), self.slot, 0))

    def mask(self, key: bytes) -> dict[str, bytes]:
        return {"key": key, "keystream": keystream(key, 8 * self.m)}

    def words(self, mask: dict[str, bytes]) -> np.ndarray:
        return np.frombuffer(mask["keystream"], "<u8")

    def packed(self, integers: list[int]) -> np.ndarray:
        words = [0] * self.m
        for c, integer in enumerate(integers):
            words[c % self.m] += integer << self.width * (c // self.m)
        return np.array([word % 2**64 for word in words], "<u8")

    def confirm(self) -> None:
        given, replies, receipts = self.v["confirm"], self.v["masked"]["replies"], []
        for silo in self.present:
            words, signature = replies[silo][: 8 * self.m], fields(replies[silo][8 * self.m :], "masked reply")[1]
            receipts.append([silo, blake3(words).digest(), signature])
        content = self.v["masked"]["manifest"], [self.present], receipts, b""
        self.signed(0, given["request"], "confirm request", *self.head, *content)
        self.same("statement", given["statement"], message("confirmation", self.digest, [self.present]))
        self.confirmations = [fields(given["replies"][silo], "confirm reply") for silo in self.sent]
        for silo, (who, signature) in zip(self.sent, self.confirmations, strict=True):
            self.same(f"confirm reply of {silo}", who, silo)
            self.verify(silo, given["statement"], signature)

    def unmask(self) -> None:
        given, content = self.v["unmask"], [self.digest, [self.present], self.confirmations]
        self.signed(0, given["request"], "unmask request", *self.head, self.slot, *content)
        seeds = {owner: {silo: self.pieces[silo, owner][0] for silo in self.sent} for owner in self.present}
        keys = {owner: {silo: self.pieces[silo, owner][1] for silo in self.sent} for owner in self.gone}
        links = {silo: self.v["masked"]["silos"][silo]["links"][len(self.gone)] for silo in self.present}
        self.same("links", given["links"], links)
        for silo in self.sent:
            revealed = [shares[silo] for shares in seeds.values()], [shares[silo] for shares in keys.values()]
            link = links.get(silo, b"")
            self.signed(silo, given["replies"][silo], "unmask reply", silo, self.digest, *revealed, link)
        self.same("shares", [given["seed_shares"], given["mask_key_shares"]], [seeds, keys])
        self.same("recovered seeds", given["seeds"], {owner: interpolate(shares) for owner, shares in seeds.items()})
        self.same("recovered mask keys", given["mask_keys"], {owner: interpolate(keys[owner]) for owner in self.gone})
        for silo, seed in given["seeds"].items():
            commitment = self.commitment(silo, self.slot, seed)
            self.same(f"commitment of {silo}", commitment, self.commitments[silo][self.slot])
        for silo, key in given["mask_keys"].items():
            self.same(f"public key of {silo}", x25519(key), self.mask_keys[silo][self.slot])
        self.open_sum(given)

    def open_sum(self, given: dict[str, Any]) -> None:
        """With the recovered secrets only, as the coordinator does."""
        total = np.zeros(self.m, "<u8")
        for silo in self.present:
            total = total + np.frombuffer(self.v["masked"]["replies"][silo], "<u8", self.m)
        self.same("masked sum", given["masked_sum"], total.tobytes())
        for silo in self.present:
            total = total - self.words(self.self_mask(silo, given["seeds"][silo]))
            for gone, key in given["mask_keys"].items():
                pair = self.words(self.pair_mask(key, gone, silo))
                total = total - pair if silo < gone else total + pair
        self.same("sum", given["sum"], total.tobytes())
        self.same("integers of the sum", given["integers"], self.unpacked(total.tolist()))
        silos = [self.v["masked"]["silos"][silo] for silo in self.present]
        owed = len(self.gone) + 1
        for what, found, parts in (("integers", given["integers"], None), ("excess", given["without_excess"], owed)):
            rows = [row for silo in silos for row in (silo["integers"], *silo["parts"][:parts])]
            self.same(f"sum of the integers: {what}", found, [sum(column) for column in zip(*rows, strict=True)])

    def unpacked(self, words: list[int]) -> list[int]:
        half, integers = 2 ** (self.width - 1), []
        for _ in range(64 // self.width):
            digits = [(word + half) % 2**self.width - half for word in words]
            words = [(word - digit) >> self.width for word, digit in zip(words, digits, strict=True)]
            integers += digits
        return integers[: self.v["settings"]["length"]]


def check(vectors: dict[str, Any]) -> list[str]:
    """Names of the checks done; raises where a value is off or cannot be read."""
    checker = Checker(vectors)
    for step in ("parties", "advertise", "share", "masked", "confirm", "unmask"):
        getattr(checker, step)()
    return checker.done


if __name__ == "__main__":
    names = check(json.loads(Path(sys.argv[1] if len(sys.argv) > 1 else VECTORS).read_text()))
    print("\n".join(names))
    print(f"{len(names)} checks, nothing is off")
