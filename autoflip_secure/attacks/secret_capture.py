"""python -m autoflip_secure.attacks.secret_capture OUT OPTIONS... : a simulated run that writes down all its secrets.

For the search alone: the run's own code is unchanged, but whatever makes a secret is watched. Everything drawn from the
operating system's entropy by this package is a secret unless `PUBLIC` names the place; keys that are derived from it,
shares and lattice keys are added. So a secret that somebody adds later is looked for without being named here.
"""

from __future__ import annotations

import gc
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

import msgpack

__all__ = ["PUBLIC", "SECRETS_FILE", "TEXTS_FILE", "main"]

SECRETS_FILE, TEXTS_FILE, PROCESS_FILE = "secrets.msgpack", "texts.txt", "process.txt"

PUBLIC = frozenset(
    {
        ("secagg.dealing", "deal"),  # nonces of AES-GCM, which travel beside what they seal
        ("federation.provisioning", "provision"),  # the session's id
    }
)
"""Where what is drawn is no secret, by module and function."""

PUBLIC_LABELS = frozenset({b"reference", b"|run key name"})
"""Of what is derived: keys of public polynomials, and the names by which run keys are compared."""

MOST_OBJECTS = 20_000
ANSWERS_LOOKED_AT = 12
"""Answers of silos after which all their objects are printed: it takes a tenth of a second each."""


class Capture:
    """Secrets as they are made; `owner` is the silo that answers now, 0 for everybody else."""

    def __init__(self) -> None:
        self.secrets: list[dict[str, Any]] = []
        self.texts: list[str] = []
        self.owner = 0
        self._looked: dict[int, int] = {}

    def add(self, kind: str, value: bytes, **facts: Any) -> None:
        """Note a secret of the present owner."""
        self.secrets.append({"kind": kind, "owner": self.owner, "value": value, **facts})

    @contextmanager
    def owned_by(self, silo: int) -> Iterator[None]:
        """What is made in the block belongs to a silo."""
        before, self.owner = self.owner, silo
        try:
            yield
        finally:
            self.owner = before

    def look_at(self, thing: object) -> None:
        """Print every object of this package that can be reached, as a log or a debugger would."""
        seen, queue = {id(thing)}, [thing]
        for each in queue:
            if type(each).__module__.startswith("autoflip_secure"):
                self.texts.append(f"{each!r} {each!s} {each}")
            if len(queue) < MOST_OBJECTS:
                for other in gc.get_referents(each):
                    if id(other) not in seen and not isinstance(other, type | ModuleType | FunctionType | MethodType):
                        seen.add(id(other))
                        queue.append(other)


def watch(capture: Capture) -> None:
    """Put watchers around everything that makes a secret."""
    from autoflip_secure.ckks import reference
    from autoflip_secure.ckks.ring import Ring
    from autoflip_secure.federation.coordinator import Coordinator
    from autoflip_secure.federation.silo import Silo
    from autoflip_secure.parties import run_key
    from autoflip_secure.parties.agreement import Agreement
    from autoflip_secure.parties.identity import Identity
    from autoflip_secure.secagg import dealing, keys
    from autoflip_secure.sums import noise_chain, sum_tag

    _watch_entropy(capture)
    _watch_slots(capture, keys)
    for module in (keys, reference, run_key, sum_tag):
        _watch_derived(capture, module, "derived key")
    _watch_derived(capture, noise_chain, "noise link")

    deal = dealing.split  # type: ignore[attr-defined]

    def split(secrets: Any, threshold: int, points: Any) -> Any:
        shared = deal(secrets, threshold, points)
        for shares in shared:
            for point, share in zip(points, shares, strict=True):
                capture.add("share", share, holder=point)
        return shared

    dealing.split = split  # type: ignore[attr-defined]
    _after(Agreement, "with_peer", lambda this, shared: capture.add("agreed secret", shared))
    _after(Ring, "fresh_key", lambda this, key: capture.add("lattice key", key.words.astype("<u8").tobytes()[:4096]))

    create = Identity.create.__func__  # type: ignore[attr-defined]

    def created(cls: Any, path: Path) -> Any:
        folder = path.parent.name
        with capture.owned_by(int(folder.removeprefix("silo-")) if folder.startswith("silo-") else 0):
            return create(cls, path)

    Identity.create = classmethod(created)  # type: ignore[assignment,method-assign]

    answer = Silo.answer

    def answered(this: Any, request: Any) -> Any:
        with capture.owned_by(this.id):
            reply = answer(this, request)
        if capture._looked.setdefault(this.id, 0) < ANSWERS_LOOKED_AT and this.id <= 2:
            capture._looked[this.id] += 1
            capture.look_at(this)
        return reply

    Silo.answer = answered  # type: ignore[assignment,method-assign]
    _after(Coordinator, "run", lambda this, _: capture.look_at(this))


def _watch_entropy(capture: Capture) -> None:
    urandom = os.urandom

    def drawn(size: int, /) -> bytes:
        value = urandom(size)
        frame = sys._getframe(1)
        module = str(frame.f_globals.get("__name__", ""))
        place = (module.removeprefix("autoflip_secure."), frame.f_code.co_name)
        if module.startswith("autoflip_secure.") and place not in PUBLIC and len(value) >= 16:
            capture.add(f"{place[0]}.{place[1]}", value)
        return value

    os.urandom = drawn


def _watch_slots(capture: Capture, keys: Any) -> None:
    """Which slot a seed and a mask key are of: they must be gone from the silo's own disk once it is spent."""
    from autoflip_secure.secagg import silo_setup

    fresh = keys.fresh_slot_secrets

    def made(slots: int) -> Any:
        secrets = fresh(slots)
        for slot, secret in enumerate(secrets):
            capture.add("self-mask seed", secret.seed, slot=slot)
            capture.add("mask key", secret.mask_key, slot=slot)
        return secrets

    silo_setup.fresh_slot_secrets = made  # type: ignore[attr-defined]


def _watch_derived(capture: Capture, module: Any, kind: str) -> None:
    derive = module._derive

    def derived(secret: bytes, *rest: Any) -> bytes:
        value: bytes = derive(secret, *rest)
        if not PUBLIC_LABELS.intersection(rest):
            capture.add(kind, value)
        return value

    module._derive = derived


def _after(kind: Any, name: str, note: Callable[[Any, Any], None]) -> None:
    method = getattr(kind, name)

    def watched(this: Any, *arguments: Any) -> Any:
        found = method(this, *arguments)
        note(this, found)
        return found

    setattr(kind, name, watched)


def main(arguments: list[str]) -> int:
    """Run the command line in this process, and write what was captured to the folder named first."""
    out, options = Path(arguments[0]), arguments[1:]
    capture = Capture()
    watch(capture)
    sys.argv = ["autoflip_secure.sim", *options]
    code = 0
    try:
        runpy.run_module("autoflip_secure.sim", run_name="__main__")
    except SystemExit as ended:
        code = int(ended.code or 0)
    (out / SECRETS_FILE).write_bytes(msgpack.packb(capture.secrets))
    (out / TEXTS_FILE).write_text("\n".join(capture.texts), errors="replace")
    said = b"\0".join(Path(f"/proc/self/{name}").read_bytes() for name in ("cmdline", "environ"))
    (out / PROCESS_FILE).write_bytes(said + b"\0" + repr(dict(os.environ)).encode())
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
