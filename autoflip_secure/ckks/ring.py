"""The ring Z_q[X] / (X^N + 1) as SEAL knows it: keys, noise, encoding. Polynomials are their N NTT words."""

from __future__ import annotations

import os
import threading
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.ckks.modular import MOST_BITS, add, multiply, subtract
from autoflip_secure.ckks.parameters import DEGREE
from autoflip_secure.ckks.seal_bytes import WORD_BYTES, SealMemory
from autoflip_secure.errors import EncodingError, NotAvailable, ProtocolError

__all__ = ["Ring", "SecretKey", "ring"]

Words = NDArray[np.uint64]
CHECKED = (0, 1, DEGREE // 2, DEGREE - 1)


class SecretKey:
    """A silo's part of the key: a ternary polynomial that SEAL drew. Never shows in repr, errors or pickles.

    Attributes
    ----------
    words : uint64 array, shape (N,)
    encryptor : SEAL's symmetric encryptor under it
    """

    def __init__(self, words: Words, encryptor: Any) -> None:
        self.words, self.encryptor = words, encryptor

    def __repr__(self) -> str:
        return "SecretKey()"

    def __reduce__(self) -> str:
        raise TypeError("a secret key cannot be pickled or copied")


class Ring:
    """One modulus, and SEAL's tools for it.

    Attributes
    ----------
    modulus : int
        The largest prime below 2^bits with q = 1 mod 2N, as SEAL chooses it.

    Raises
    ------
    NotAvailable
        SEAL does not hold the parameters for secure, or the installed TenSEAL writes objects in an unknown form.
    """

    def __init__(self, bits: int) -> None:
        import tenseal.sealapi as seal  # takes a while to load, and only runs with ckks need it

        parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(DEGREE)
        parameters.set_coeff_modulus(seal.CoeffModulus.Create(DEGREE, [bits]))
        self._seal = seal
        self._context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)
        if not self._context.parameters_set() or bits > min(
            MOST_BITS, seal.CoeffModulus.MaxBitCount(DEGREE, seal.SEC_LEVEL_TYPE.TC256)
        ):
            raise NotAvailable(f"SEAL does not accept N = {DEGREE} with a modulus of {bits} bits as secure")
        self.bits = bits
        self.modulus = int(parameters.coeff_modulus()[0].value())
        self._encoder = seal.CKKSEncoder(self._context)
        self._local = threading.local()
        self._plain_header, self._plain_members = self._learn_layout()

    def fresh_key(self) -> SecretKey:
        """A new secret key, from SEAL's generator, which the operating system seeds."""
        secret = self._seal.KeyGenerator(self._context).secret_key()
        words = self._words(secret, DEGREE).copy()
        self._memory().clear()
        return SecretKey(words, self._seal.Encryptor(self._context, secret))

    def key_from(self, words: Words) -> SecretKey:
        """A secret key kept before."""
        secret = self._seal.SecretKey()
        self._load(secret, self.checked(words))
        self._memory().clear()
        return SecretKey(words, self._seal.Encryptor(self._context, secret))

    def encrypted(self, key: SecretKey, values: NDArray[np.float64], scale: float) -> tuple[Words, Words]:
        """SEAL's symmetric CKKS encryptions (c, a) of rows of values, under fresh noise e and SEAL's own random a.

        c = -(a s + e) + m, so c + a s is the encoded row with noise.

        Parameters
        ----------
        values : float64 array, shape (rows, N)
            Two a slot: neighbours are the real and the imaginary part.
        scale : float

        Returns
        -------
        c, a : uint64 arrays, shape (rows, N)

        Raises
        ------
        EncodingError
            A value is too large for the modulus.
        """
        slots = np.ascontiguousarray(values).view(np.complex128)
        plain, cipher = self._seal.Plaintext(), self._seal.Ciphertext()
        pairs = np.empty((len(values), 2, DEGREE), np.uint64)
        for row, pair in zip(slots, pairs, strict=True):
            try:
                self._encoder.encode(row.tolist(), scale, plain)
            except ValueError as error:
                raise EncodingError("a contribution's values are too large for the modulus") from error
            key.encryptor.encrypt_symmetric(plain, cipher)
            pair[:] = self._words(cipher, 2 * DEGREE).reshape(2, DEGREE)
        # SEAL's own a and the ciphertext that is sent, together, give the key.
        self._memory().clear()
        return pairs[:, 0], pairs[:, 1]

    def decoded(self, polynomials: Words, scale: float) -> NDArray[np.float64]:
        """Rows of values that polynomials encode, noise included: the reverse of encoding, shape (rows, N)."""
        plain, values = self._seal.Plaintext(), np.empty((len(polynomials), DEGREE))
        for row, out in zip(polynomials, values, strict=True):
            self._load(plain, row)
            # The template's scale is 1.
            out[:] = np.array(self._encoder.decode_complex(plain)).view(np.float64)
        return values / scale

    def multiply(self, a: Words, b: Words) -> Words:
        """Product in the ring."""
        return multiply(a, b, self.modulus)

    def add(self, a: Words, b: Words) -> Words:
        """Sum in the ring."""
        return add(a, b, self.modulus)

    def subtract(self, a: Words, b: Words) -> Words:
        """Difference in the ring."""
        return subtract(a, b, self.modulus)

    def checked(self, words: Words) -> Words:
        """Words that are all below the modulus.

        Raises
        ------
        ProtocolError
            One is not.
        """
        if words.size and int(words.max()) >= self.modulus:
            raise ProtocolError("a coefficient is not below the modulus")
        return words

    def _words(self, value: Any, count: int) -> Words:
        return self._memory().words(value, count)

    def _load(self, value: Any, words: Words) -> None:
        body = self._plain_members + words.astype("<u8", copy=False).tobytes()
        self._memory().load(value, self._context, self._plain_header, body)

    def _memory(self) -> SealMemory:
        """This thread's memory file; a forked process, which would share its parent's, takes one of its own."""
        if getattr(self._local, "process", None) != os.getpid():
            self._local.memory, self._local.process = SealMemory(), os.getpid()
        memory: SealMemory = self._local.memory
        return memory

    def _learn_layout(self) -> tuple[bytes, bytes]:
        """Header and members before the words of a plaintext of scale 1, checked against SEAL's own accessors."""
        values = np.linspace(-1e6, 1e6, DEGREE).view(np.complex128)
        plain, secret = self._seal.Plaintext(), self._seal.KeyGenerator(self._context).secret_key()
        self._encoder.encode(values.tolist(), 1.0, plain)
        memory = self._memory()
        header, body = memory.dump(plain)
        members, words = body[: -WORD_BYTES * DEGREE], np.frombuffer(body[-WORD_BYTES * DEGREE :], "<u8")
        cipher, copy = self._seal.Ciphertext(), self._seal.Plaintext()
        self._seal.Encryptor(self._context, secret).encrypt_symmetric(plain, cipher)
        both = memory.words(cipher, 2 * DEGREE)
        memory.load(copy, self._context, header, members + words.tobytes())
        fits = (
            all(int(words[i]) == plain[i] == copy[i] for i in CHECKED)
            and all(int(both[i]) == cipher[i] and int(both[DEGREE + i]) == cipher[DEGREE + i] for i in CHECKED)
            and np.abs(np.array(self._encoder.decode_complex(copy)) - values).max() < 1e-3 * 1e6
        )
        if not fits:
            raise NotAvailable("this TenSEAL lays SEAL objects out in an unknown way; install the version pinned here")
        return header, members


@cache
def ring(bits: int) -> Ring:
    """The ring with a modulus of so many bits; made once a process."""
    return Ring(bits)
