"""The chain of secrets that removable noise is drawn from: it runs one way."""

from __future__ import annotations

import hmac
from itertools import pairwise

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from autoflip_secure.sums.noise_chain import LINK_BYTES, fresh_root, later_link, link_to_reveal, noise_stream


def hkdf(secret: bytes, info: bytes) -> bytes:
    """One block of RFC 5869 without salt, from HMAC alone."""
    extracted = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(extracted, b"autoflip-secure/noise-chain/1|" + info + b"\1", "sha256")


def test_links_and_words_are_hkdf_and_aes_of_the_root() -> None:
    root = bytes(range(32))
    second = hkdf(root, b"next")
    assert later_link(root, 0) == root
    assert later_link(root, 1) == second
    assert later_link(root, 3) == hkdf(hkdf(second, b"next"), b"next")
    cipher = Cipher(algorithms.AES(hkdf(second, b"noise|metric")), modes.CTR(bytes(16))).encryptor()
    expected = np.frombuffer(cipher.update(bytes(80)), "<u8")
    np.testing.assert_array_equal(noise_stream(second, "metric").words(10), expected)


def test_who_reveals_more_gives_what_who_reveals_less_goes_on_to() -> None:
    root, most = fresh_root(), 6
    revealed = [link_to_reveal(root, missing, most) for missing in range(most)]
    assert revealed[0] == root
    assert len(set(revealed)) == most
    for fewer, more in pairwise(revealed):
        assert later_link(fewer, 1) == more
        assert later_link(more, 1) != fewer


@pytest.mark.parametrize("most", [0, 1, 5])
def test_nothing_is_revealed_where_all_noise_is_needed(most: int) -> None:
    assert link_to_reveal(fresh_root(), most, most) == b""


def test_every_link_and_channel_has_words_of_its_own() -> None:
    root = fresh_root()
    drawn = {
        noise_stream(later_link(root, k), channel).words(2).tobytes() for k in range(20) for channel in ("update", "x")
    }
    assert len(drawn) == 40
    again = noise_stream(root, "update").words(4)
    np.testing.assert_array_equal(again, noise_stream(root, "update").words(4))


def test_roots_come_from_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    roots = {fresh_root() for _ in range(50)}
    assert len(roots) == 50
    assert {len(root) for root in roots} == {LINK_BYTES}
    monkeypatch.setattr("os.urandom", lambda size: b"s" * size)
    assert fresh_root() == b"s" * LINK_BYTES


def test_a_stream_does_not_show_its_key() -> None:
    assert repr(noise_stream(bytes(32), "update")) == "SecretRandomness()"
