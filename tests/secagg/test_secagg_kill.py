"""kill -9 of a silo before every statement it gives its database, and between the last one and its reply.

The silo's process is a fork that really dies. Afterwards a new process on the same files is asked again, for the same
and for something else: it may repeat what it said, or say it for the first time, but never say two different things.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from autoflip_secure.errors import AutoflipSecureError
from autoflip_secure.parties.signing import Signed
from autoflip_secure.secagg.round_messages import ConfirmRequest, MaskedRequest, UnmaskRequest
from autoflip_secure.secagg.setup_messages import AdvertiseRequest, ShareRequest
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.words import PackedWords

VICTIM = 1
ROOT = bytes(range(32))
KINDS = {
    "advertise": AdvertiseRequest,
    "share": ShareRequest,
    "masked": MaskedRequest,
    "confirm": ConfirmRequest,
    "unmask": UnmaskRequest,
}


def words_of(manifest):
    return PackedWords(np.full(3, 7, np.uint64), ROOT)


def answer_and_die(fed, stage, request, before):
    """Answer in a child that is killed before its statement number `before` (from 0).

    Returns the reply where the child lived long enough to send one, else None.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            silo = fed.start(VICTIM)
            left = [before]

            def count(statement):
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1

            fed.connections[VICTIM].set_trace_callback(count)
            reply = silo.answer(stage, request, words_of)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            os.write(writing, reply)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        reply = pipe.read()
    os.waitpid(child, 0)
    return reply or None


def asked_again(fed, stage, request):
    """What a new process says; None where it refuses."""
    silo = fed.start(VICTIM)
    try:
        return silo.answer(stage, request, words_of)
    except AutoflipSecureError:
        return None
    finally:
        fed.connections[VICTIM].close()


def something_else(fed, stage, request):
    """Another request for the same slot or epoch, signed as well."""
    message = KINDS[stage].from_bytes(Signed.from_bytes(request).payload)
    if stage == "advertise":
        return fed.signed(replace(message, slots=message.slots + 1))
    if stage == "share":
        return fed.signed(replace(message, advertisements=message.advertisements[:-1]))
    if stage == "masked":
        manifest = Manifest.from_bytes(message.manifest)
        return fed.signed(replace(message, manifest=replace(manifest, attempt=9).to_bytes()))
    if stage == "confirm":
        survivors, receipts = (message.survivors[0][:-1],), message.receipts[:-1]
        return fed.signed(replace(message, survivors=survivors, receipts=receipts))
    return fed.signed(replace(message, survivors=(message.survivors[0][:-1],)))


def up_to(fed, stage):
    """Run the protocol with all silos until `stage`; the request that silo 1 gets there."""
    caught = {}

    class ReachedError(Exception):
        pass

    def exchange(now, requests):
        if now == stage:
            caught.update(requests)
            raise ReachedError
        return fed.exchange()(now, requests)

    with pytest.raises(ReachedError):
        fed.coordinator.sum(fed.manifest(), exchange)
    return caught[VICTIM]


def restore(spare, home):
    """Put the victim's files back as they were."""
    for file in home.glob(f"{VICTIM}.db*"):
        file.unlink()
    for file in spare.glob(f"{VICTIM}.db*"):
        (home / file.name).write_bytes(file.read_bytes())


@pytest.fixture
def folders(tmp_path):
    home, spare = tmp_path / "home", tmp_path / "spare"
    home.mkdir()
    spare.mkdir()
    return home, spare


@pytest.mark.parametrize("stage", list(KINDS))
def test_killed_before_every_statement(federation, stage, folders):
    home, spare = folders
    fed = federation(4, folder=home)
    fed.contribute = lambda silo: words_of
    request = up_to(fed, stage)
    other = something_else(fed, stage, request)
    fed.connections[VICTIM].close()
    restore(home, spare)
    deaths, sent = 0, None
    while sent is None:
        restore(spare, home)
        sent = answer_and_die(fed, stage, request, before=deaths)
        said = {reply for reply in (sent, asked_again(fed, stage, request), asked_again(fed, stage, other)) if reply}
        assert len(said) <= 1, f"killed before statement {deaths}, it said {len(said)} things"
        deaths += 1
    assert deaths >= 5, "the silo was killed while it worked"


def test_spent_secrets_are_off_the_disk_after_a_kill(federation, folders):
    """Also where it was killed after the deletion was committed and before the log was cleared."""
    home, spare = folders
    fed = federation(4, folder=home)
    fed.contribute = lambda silo: words_of
    request = up_to(fed, "masked")
    query = "SELECT seed, mask_key FROM secagg_secret WHERE slot = 0"
    secrets = fed.connections[VICTIM].execute(query).fetchone()
    fed.connections[VICTIM].close()
    restore(home, spare)
    kills, spent, sent = 0, 0, None
    while sent is None:
        restore(spare, home)
        sent = answer_and_die(fed, "masked", request, before=kills)
        kills += 1
        fed.start(VICTIM)
        if fed.connections[VICTIM].execute(query).fetchone() is None:
            spent += 1
            content = b"".join(file.read_bytes() for file in home.glob(f"{VICTIM}.db*"))
            assert not any(secret in content for secret in secrets), f"killed before statement {kills - 1}"
        fed.connections[VICTIM].close()
    assert 3 <= spent < kills
