"""The silo half of a CKKS sum, with every rule it enforces by itself."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from autoflip_secure.ckks.keys import keys_hash, read_advertisements
from autoflip_secure.ckks.messages import (
    Ciphertext,
    EncryptReply,
    EncryptRequest,
    KeyAdvertisement,
    KeyRequest,
    Opening,
    OpenReply,
    OpenRequest,
    Part,
    key_of,
)
from autoflip_secure.ckks.packing import polynomials_of, rows_of, to_bytes
from autoflip_secure.ckks.parameters import CkksParameters, parameters_for
from autoflip_secure.ckks.reference import UniformPolynomials, masked_key, reference_key
from autoflip_secure.ckks.ring import Ring, ring
from autoflip_secure.ckks.state import Advertised, Ready, SiloState
from autoflip_secure.ckks.summation import encrypt, open_part
from autoflip_secure.errors import ProtocolError, Refusal
from autoflip_secure.parties.agreement import Agreement, fresh_key, public_key
from autoflip_secure.parties.head import Head
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.requests import checked_source, open_request, own_cohort, read_manifest
from autoflip_secure.parties.roster import Roster
from autoflip_secure.parties.rules import (
    SiloRules,
    check_enrolled_silo,
    check_manifest,
    check_survivors,
    only_list,
    refusal,
)
from autoflip_secure.parties.signing import digest_of, sign_message, sign_statement
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.noise_chain import link_to_reveal
from autoflip_secure.sums.randomness import SecretRandomness
from autoflip_secure.sums.secure_sum import Contribute
from autoflip_secure.sums.words import all_words

__all__ = ["STAGES", "CkksSilo"]

STAGES = ("keys", "encrypt", "open")
BATCH = 64
"""Polynomials at a time: a silo holds its words, their values in doubles and the reply, and a few megabytes more."""


class CkksSilo:
    """Answers the coordinator's requests, as far as this silo's own rules allow.

    All state is in the database, so each request may be answered by a new process.

    Parameters
    ----------
    connection : sqlite3.Connection
        From `storage.open_silo_database`; no transaction may be open on it.
    identity : Identity
    silo_id : int
    roster : Roster
    rules : SiloRules
    session : bytes, 16
        The run this silo joined; requests of other runs are not answered.

    Raises
    ------
    InputError
        Identity, id, roster and rules do not fit together.
    StorageError
        The database cannot be written.
    """

    stages = STAGES

    def __init__(
        self,
        connection: sqlite3.Connection,
        identity: Identity,
        silo_id: int,
        roster: Roster,
        rules: SiloRules,
        session: bytes,
    ) -> None:
        check_enrolled_silo(identity, silo_id, roster, rules)
        self._identity, self._silo, self._roster, self._rules = identity, silo_id, roster, rules
        self._session, self._state = session, SiloState(connection)
        self._ready: Ready | None = None

    def answer(self, stage: str, request: bytes, contribute: Contribute) -> bytes:
        """Answer one request.

        Parameters
        ----------
        stage : str
            One of `stages`.
        request : bytes
        contribute : callable
            Called in stage encrypt only, after the slot was durably spent; what it raises is passed on.

        Raises
        ------
        Refusal
            A rule would be broken; the message names it.
        ProtocolError
            The request is malformed or out of order; nothing was changed.
        ConfigError
            No modulus holds the sums that the manifest asks for; nothing was changed.
        EncodingError
            `contribute` returned words that do not fit the manifest, or values too large; the slot is spent.
        """
        if stage == "keys":
            return self._make_keys(open_request(KeyRequest, self._roster, self._session, request))
        if stage == "encrypt":
            return self._encrypt(open_request(EncryptRequest, self._roster, self._session, request), contribute)
        if stage == "open":
            return self._open(open_request(OpenRequest, self._roster, self._session, request))
        raise ProtocolError(f"a CKKS sum has no stage {stage!r}; stages are {', '.join(STAGES)}")

    def forget_other_runs(self) -> None:
        """Delete the keys of former sessions; their epoch numbers stay used."""
        self._state.forget_others(self._session)

    def __repr__(self) -> str:
        return f"CkksSilo(silo {self._silo})"

    def _make_keys(self, request: KeyRequest) -> bytes:
        agreements = [fresh_key() for _ in range(request.slots)]
        keys = b"".join(map(public_key, agreements))
        advertisement = KeyAdvertisement(
            request.session, request.roster_hash, request.epoch, self._silo, request.slots, keys
        )
        signed = sign_message(self._identity, advertisement)
        self._state.open_epoch(request.session, request.epoch, signed, agreements)
        self._ready = None
        return signed

    def _encrypt(self, request: EncryptRequest, contribute: Contribute) -> bytes:
        ready = self._epoch(request, request.advertisements)
        manifest = read_manifest(ready, request.manifest)
        if self._state.slot(ready, manifest.slot) is not None:
            raise refusal(
                "slot-once", f"slot {manifest.slot} of epoch {ready.epoch} was used before; take the next one"
            )
        with self._spend_on_refusal(ready, manifest.slot, request.manifest):
            check_manifest(manifest, self._rules, self._roster, tuple(ready.publics))
            cohort = own_cohort(self._silo, manifest)
            lattice, parameters = _lattice(manifest, cohort)
        self._state.spend(ready, manifest.slot, request.manifest)
        digest = digest_of(request.manifest)
        source = checked_source(contribute(manifest), manifest, cohort)
        rows = rows_of(all_words(source), manifest.channels, len(manifest.cohorts[cohort]))
        # A key of this sum only: what it opened cannot be opened again by whoever takes this silo's state later.
        key, references = lattice.fresh_key(), _references(lattice, digest, cohort)
        parts = (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))
        ciphers = (encrypt(lattice, parameters, key, references.next(len(part)), part) for part in parts)
        reply, coefficients_hash = _packed(ciphers, parameters)
        signature = sign_statement(self._identity, Ciphertext(digest, coefficients_hash))
        self._state.record_encrypted(ready, manifest.slot, key.words.astype("<u8").tobytes(), source.removable)
        reply += EncryptReply(self._silo, signature).to_bytes()
        return bytes(reply)

    def _open(self, request: OpenRequest) -> bytes:
        """This silo's part of the opening of one sum, once a slot.

        The part is the common reference times this silo's masked key, so it does not depend on any ciphertext: whatever
        the coordinator adds up, what the parts of all silos open is the sum over the survivors listed, and nothing
        where one silo of the list was told another list or another manifest.
        """
        ready, slot = self._epoch(request, ()), request.slot
        state = self._state.slot(ready, slot)
        if state is None or state.stage == "spent":
            raise refusal("opened-unsent", f"this silo has no ciphertext in slot {slot}")
        if state.stage == "closed":
            raise refusal("slot-once", f"slot {slot} was closed after a broken rule or by a later slot")
        if state.stage == "opened":
            raise refusal("open-once", f"slot {slot} was opened before; every slot is opened once")
        manifest, digest = Manifest.from_bytes(state.manifest), digest_of(state.manifest)
        with self._close_on_refusal(ready, slot):
            if digest != request.digest:
                raise refusal("manifest", f"slot {slot} is bound to another manifest")
            check_survivors(manifest, request.survivors, self._rules, tuple(ready.publics))
            cohort = manifest.cohort_of(self._silo)
            survivors = request.survivors[cohort]
            if self._silo not in survivors:
                raise refusal("survivors", "this silo is asked to open a sum that it is not in")
            self._check_only_list(len(survivors), len(manifest.cohorts[cohort]))
        lattice, parameters = _lattice(manifest, cohort)
        keys = self._state.take_keys(ready, slot)
        opening = Opening(digest, cohort, survivors).hash()
        key = lattice.key_from(np.frombuffer(keys.lattice, "<u8").astype(np.uint64))
        references = _references(lattice, digest, cohort)
        others = {silo: key_of(ready.publics[silo], slot) for silo in survivors if silo != self._silo}
        share = masked_key(lattice, key.words, Agreement(keys.agreement), others, opening, self._silo)
        randomness, count = SecretRandomness(), polynomials_of(manifest.channels, len(manifest.cohorts[cohort]))
        batches = (references.next(min(BATCH, count - start)) for start in range(0, count, BATCH))
        parts = (open_part(lattice, parameters, key, share, reference, randomness) for reference in batches)
        reply, coefficients_hash = _packed(parts, parameters)
        link = _link(keys.root, manifest, cohort, survivors)
        signature = sign_statement(self._identity, Part(opening, coefficients_hash, link))
        reply += OpenReply(self._silo, link, signature).to_bytes()
        return bytes(reply)

    def _check_only_list(self, survivors: int, cohort: int) -> None:
        """Two lists that are both so long share a silo that does not collude, and it opens one of them."""
        if survivors < only_list(cohort, self._rules.colluders):
            raise refusal(
                "one-list", f"{survivors} of {cohort} silos are so few that another list of the slot could be opened"
            )

    def _epoch(self, head: Head, advertisements: tuple[bytes, ...]) -> Ready:
        current = self._state.epoch(head.session)
        if current.epoch != head.epoch:
            raise ProtocolError(f"epoch {head.epoch} is not the one this silo has keys for; nothing was changed")
        cached = self._ready
        if cached is not None and (cached.session, cached.epoch) == (head.session, head.epoch):
            return cached
        if isinstance(current, Advertised) and advertisements:
            current = self._take_keys(current, head, advertisements)
        if not isinstance(current, Ready):
            raise ProtocolError(f"the key set-up of epoch {head.epoch} is not complete; nothing was changed")
        self._ready = current
        return current

    def _take_keys(self, state: Advertised, head: Head, advertisements: tuple[bytes, ...]) -> Advertised | Ready:
        publics = read_advertisements(advertisements, self._roster, head, state.slots)
        if state.advertisement not in advertisements:
            raise refusal("own-keys", "this silo's own advertisement is missing or altered")
        self._state.record_keys(state, keys_hash(advertisements), publics)
        return self._state.epoch(state.session)

    @contextmanager
    def _spend_on_refusal(self, ready: Ready, slot: int, manifest: bytes) -> Iterator[None]:
        try:
            yield
        except Refusal:
            self._state.spend(ready, slot, manifest, closed=True)
            raise

    @contextmanager
    def _close_on_refusal(self, ready: Ready, slot: int) -> Iterator[None]:
        try:
            yield
        except Refusal:
            self._state.close(ready, slot)
            raise


def _lattice(manifest: Manifest, cohort: int) -> tuple[Ring, CkksParameters]:
    parameters = parameters_for(manifest.channels, len(manifest.cohorts[cohort]))
    return ring(parameters.modulus_bits), parameters


def _link(root: bytes | None, manifest: Manifest, cohort: int, survivors: tuple[int, ...]) -> bytes:
    if root is None:
        return b""
    missing = len(manifest.cohorts[cohort]) - len(survivors)
    return link_to_reveal(root, missing, manifest.most_missing(cohort))


def _packed(polynomials: Iterable[NDArray[np.uint64]], parameters: CkksParameters) -> tuple[bytearray, bytes]:
    """Coefficients as they travel, and their BLAKE3 hash."""
    data, hashed = bytearray(), blake3()
    for batch in polynomials:
        part = to_bytes(batch, parameters.coefficient_bytes)
        hashed.update(part)
        data += part
    return data, hashed.digest()


def _references(lattice: Ring, digest: bytes, cohort: int) -> UniformPolynomials:
    return UniformPolynomials(lattice, reference_key(digest, cohort, lattice.bits))
