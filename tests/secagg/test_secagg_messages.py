"""One message, one encoding: round trips, and refusal of everything else."""

from __future__ import annotations

import tracemalloc

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoflip_secure.errors import ProtocolError
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.signing import Signed, open_signed, sign_message
from autoflip_secure.secagg import round_messages as rounds
from autoflip_secure.secagg import setup_messages as setup
from tests.damaged_messages import check_damaged


def fixed(size):
    return st.binary(min_size=size, max_size=size)


head = (fixed(16), fixed(32), st.integers(0, 2**32 - 1))
silo = st.integers(1, 65_535)
blob = st.binary(max_size=40)
blobs = st.lists(blob, max_size=5).map(tuple)
ids = st.lists(silo, max_size=5, unique=True).map(lambda found: tuple(sorted(found)))
survivors = st.lists(ids, max_size=3).map(tuple)
shares = st.lists(st.sampled_from([b"", bytes(49)]), max_size=4).map(tuple)


@st.composite
def advertise_replies(draw):
    slots = draw(st.integers(0, 4))
    return setup.AdvertiseReply(*(draw(part) for part in (blob, fixed(32 * slots), fixed(32 * slots))))


@st.composite
def share_requests(draw):
    threshold = draw(st.integers(1, 2000))
    holders = draw(st.just(0) | st.integers(threshold, 2000))
    return setup.ShareRequest(*(draw(part) for part in head), holders, threshold, draw(blobs))


@st.composite
def dealings(draw):
    to = draw(ids)
    return setup.Dealing(*(draw(part) for part in (*head, silo, fixed(32), st.just(to), fixed(32))))


@st.composite
def confirm_requests(draw):
    lists = draw(survivors)
    receipts = tuple((signer, draw(fixed(32)), draw(fixed(64))) for signer in draw(ids))
    return rounds.ConfirmRequest(*(draw(part) for part in head), draw(blob), lists, receipts, draw(blob))


@st.composite
def unmask_requests(draw):
    signers = tuple((signer, draw(fixed(64))) for signer in draw(ids))
    values = [draw(part) for part in (*head, st.integers(0, 1023), fixed(32), survivors)]
    return rounds.UnmaskRequest(*values, signers)


messages = st.one_of(
    st.builds(setup.AdvertiseRequest, *head, st.integers(1, 1024)),
    st.builds(setup.Advertisement, *head, silo, st.integers(1, 1024), fixed(32), fixed(32), fixed(32)),
    advertise_replies(),
    share_requests(),
    dealings(),
    st.builds(setup.ShareReply, blob, blobs, blobs),
    st.builds(setup.Delivery, blobs, blobs),
    st.builds(setup.Delivered, silo, blob, blob, blob),
    st.builds(rounds.MaskedRequest, *head, blob, blob),
    st.builds(rounds.MaskedReply, silo, fixed(64)),
    st.builds(rounds.Receipt, fixed(32), fixed(32)),
    confirm_requests(),
    st.builds(rounds.Confirmation, fixed(32), survivors),
    st.builds(rounds.ConfirmReply, silo, fixed(64)),
    unmask_requests(),
    st.builds(rounds.UnmaskReply, silo, fixed(32), shares, shares, st.just(b"") | fixed(32)),
    st.builds(Signed, blob, fixed(64)),
)


@settings(max_examples=300)
@given(messages)
def test_round_trip(message):
    assert type(message).from_bytes(message.to_bytes()) == message


@settings(max_examples=300)
@given(messages, st.data())
def test_changed_bytes_are_another_message_or_none(message, data):
    """A flipped, missing or added byte never reads as the same message."""
    check_damaged(message, data)


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_noise_is_a_protocol_error(data):
    for kind in (setup.Advertisement, rounds.ConfirmRequest, rounds.UnmaskReply, Signed):
        with pytest.raises(ProtocolError):
            kind.from_bytes(data)


def test_every_kind_has_its_own_name():
    names = [*setup.__all__, *rounds.__all__]
    kinds = [getattr(setup, name, None) or getattr(rounds, name) for name in names]
    tags = [kind.KIND for kind in (*kinds, Signed) if hasattr(kind, "KIND")]
    assert len(tags) == len(set(tags)) == 17, "a kind is a signature domain, so two of one name could be exchanged"


REPLY = rounds.ConfirmReply(3, bytes(64))


@pytest.mark.parametrize(
    "fields",
    [
        [2, "confirm reply", 3],
        [2, "confirm reply", 3, bytes(64), 0],
        [1, "confirm reply", 3, bytes(64)],
        [2.0, "confirm reply", 3, bytes(64)],
        [2, "masked reply", 3, bytes(64)],
        [2, "confirm reply", 0, bytes(64)],
        [2, "confirm reply", 65_536, bytes(64)],
        [2, "confirm reply", True, bytes(64)],
        [2, "confirm reply", 3.0, bytes(64)],
        [2, "confirm reply", "3", bytes(64)],
        [2, "confirm reply", 3, bytes(63)],
        [2, "confirm reply", 3, "x" * 64],
        [2, "confirm reply", 3, {}],
        [2, "confirm reply", 3, None],
    ],
)
def test_fields_of_the_wrong_kind(fields):
    with pytest.raises(ProtocolError):
        rounds.ConfirmReply.from_bytes(msgpack.packb(fields))


def test_encoding_that_is_not_the_shortest():
    data = REPLY.to_bytes()
    assert rounds.ConfirmReply.from_bytes(data) == REPLY
    loose = data.replace(b"\x03\xc4", b"\xcc\x03\xc4", 1)
    assert msgpack.unpackb(loose) == msgpack.unpackb(data)
    with pytest.raises(ProtocolError, match="canonical"):
        rounds.ConfirmReply.from_bytes(loose)


@pytest.mark.parametrize(
    "data", [b"\xdd\xff\xff\xff\xff", b"\xdc\xff\xff" * 100, b"\x91" * 5000, b"\xc6\xff\xff\xff\xff"]
)
def test_short_message_that_claims_to_be_huge(data):
    with pytest.raises(ProtocolError):
        rounds.UnmaskRequest.from_bytes(data)


def test_nested_arrays_that_would_fill_the_memory():
    """1.6 MB within the limit of every single array; 100 MB were all of it read."""
    chains = (b"\x91" * 400 + b"\x00") * 4096
    data = b"\x94\x01\xa6signed" + b"\xdc\x10\x00" + chains + b"\xc4\x40" + bytes(64)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="more than 32768 items"):
            Signed.from_bytes(data)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_items_are_counted_over_all_arrays():
    """The largest message there is, of a roster of 2000 silos, stays far below the limit."""
    everyone = tuple(range(1, 2001))
    receipts = tuple((silo, bytes(32), bytes(64)) for silo in everyone)
    request = rounds.ConfirmRequest(bytes(16), bytes(32), 1, b"", (everyone,), receipts, b"")
    assert rounds.ConfirmRequest.from_bytes(request.to_bytes()) == request
    lists = [list(range(1, 4001))] * 9
    fields = [1, "confirmation", bytes(32), lists]
    with pytest.raises(ProtocolError, match="items"):
        rounds.Confirmation.from_bytes(msgpack.packb(fields))


@pytest.mark.parametrize("survivors", [((2, 1),), ((1, 1),), ((0,),), (1,), [(1,)], ((1.0,),)])
def test_survivors_are_lists_of_ascending_ids(survivors):
    with pytest.raises(ProtocolError):
        rounds.UnmaskRequest(bytes(16), bytes(32), 1, 0, bytes(32), survivors, ())


def test_signed_message_is_of_one_kind_and_sender():
    identity, other = Identity.generate(), Identity.generate()
    data = sign_message(identity, REPLY)
    assert open_signed(rounds.ConfirmReply, identity.public, data) == REPLY
    with pytest.raises(ProtocolError, match="signature"):
        open_signed(rounds.ConfirmReply, other.public, data)
    with pytest.raises(ProtocolError, match="signature"):
        open_signed(rounds.MaskedReply, identity.public, data)


def test_messages_with_shares_or_words_do_not_show_them():
    message = rounds.UnmaskReply(1, bytes(32), (b"s" * 49,), (b"k" * 49,), b"l" * 32)
    assert repr(message) == "UnmaskReply(...)"
    assert repr(setup.Delivered(1, b"", b"", b"wwwwwwww")) == "Delivered(...)"
