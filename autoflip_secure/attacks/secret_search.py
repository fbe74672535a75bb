"""Every secret of a whole run, looked for in everything that its silo does not keep to itself.

What the adversary has: all files that a run leaves outside the folder of the silo that owns a secret (those of the
coordinator and of other silos, reports, logs, checkpoints, recorded messages, temporary folders), the text of every
object of the package that a log could print, command line and environment. And, of a stolen disk, the silo's own
folder: secrets of slots that are spent, and keys that were derived, must be gone from it; the rest stands only in the
files that are meant for it.

How the attack knows what to look for: `secret_capture` watches the places where secrets are made. It is told the
secrets, so it finds what a real adversary would find only if it knew where to look.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import msgpack

from autoflip_secure.attacks.byte_search import Finder
from autoflip_secure.attacks.outcome import Attack, Outcome, Scale, proportion_interval
from autoflip_secure.attacks.parser_fuzz import crash_rows
from autoflip_secure.attacks.secret_capture import SECRETS_FILE
from autoflip_secure.attacks.settings import SETTINGS
from autoflip_secure.ckks.messages import OpenReply
from autoflip_secure.data.records import Records
from autoflip_secure.data.silo_folder import read_silo
from autoflip_secure.errors import ProtocolError
from autoflip_secure.federation.provisioning import RunFolder
from autoflip_secure.federation.server_view import read_server_view
from autoflip_secure.federation.sum_proof import SumProof, proof_spec
from autoflip_secure.parties.signing import Signed
from autoflip_secure.secagg.round_messages import UnmaskReply
from autoflip_secure.secagg.shamir import SHARE_BYTES
from autoflip_secure.storage import OWNER_ONLY, open_silo_database
from autoflip_secure.sums.noise_chain import LINK_BYTES
from autoflip_secure.sums.sum_tag import TAG_WORDS

__all__ = ["ATTACK", "RUN_KEY", "Found", "Secret", "captured_run", "leaks", "open_files", "secrets_of"]

SMALL = "--dataset digits --model mlp --silos 5 --rounds 3 --explore-rounds 1 --colluders 0"
DROPS = "--reserve 0.5 --dropout 0.15 --prove-models"
RUNS = {
    "plain": (SETTINGS["plain"], SMALL),
    "sum": (SETTINGS["sum"], f"{SMALL} --dropout 0.15 --prove-models"),
    "sum + DP 8": (SETTINGS["sum + DP 8"], f"{SMALL} {DROPS}"),
    "sum + DP 1": (SETTINGS["sum + DP 1"], f"{SMALL} {DROPS}"),
    "ckks + DP 8": (("--aggregation", "ckks", *SETTINGS["sum + DP 8"]), f"{SMALL} --reserve 1 --dropout 0.1"),
}
QUICK = ("plain", "sum + DP 8", "ckks + DP 8")

RUN_KEY = "parties.run_key._seal"
"""Drawn by one silo, for all of them."""

STATE = ("state.sqlite", "state.sqlite-wal", "state.sqlite-shm")
KEPT_IN = {
    "parties.identity.generate": ("identity.key", "coordinator.key"),
    "federation.audit_log._made": ("audit.jsonl",),
    "record": ("train.npz", "holdout.npz"),
    "sums.noise_chain.fresh_root": STATE,
    "parties.agreement.fresh_key": STATE,
    "secagg.keys.<genexpr>": STATE,
    RUN_KEY: STATE,
    "self-mask seed": STATE,
    "mask key": STATE,
    "share": STATE,
}
"""In which files of its owner's folder a secret may stand, by kind; in none where it is not here."""

RECORD = "record"
RECORDS = 20
"""Records of each silo that are looked for."""


@dataclass(frozen=True)
class Secret:
    """What is looked for, and where it may be.

    Attributes
    ----------
    owners : frozenset of int
        Silos in whose folders it may lie; 0 is the coordinator.
    files : tuple of str
        Names of files in which it may lie there.
    """

    kind: str
    value: bytes
    owners: frozenset[int]
    files: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """A secret in a file that is not for it."""

    kind: str
    file: Path


def captured_run(options: Iterable[str], out: Path) -> Path:
    """A run of the real command line that writes down its secrets; its folder. Temporary files go below `out`.

    Raises
    ------
    RuntimeError
        The run failed; the message is its own.
    """
    run, temporary = out / "run", out / "tmp"
    temporary.mkdir(parents=True)
    command = [sys.executable, "-m", "autoflip_secure.attacks.secret_capture", str(out), *options]
    command += ["--run-dir", str(run), "--record-server-view", "--workers", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if ended.returncode:
        raise RuntimeError(f"{shlex.join(command)}: {ended.stderr.strip()}")
    (out / "stdout.txt").write_text(ended.stdout)
    (out / "stderr.txt").write_text(ended.stderr)
    return run


def secrets_of(out: Path) -> list[Secret]:
    """All secrets of a captured run that no message was meant to reveal, and some records of each silo."""
    run = out / "run"
    revealed, spent = _revealed(run), _spent(run)
    public = RunFolder(run).public_test
    shown = {row.tobytes() for row in Records.load(public).x} if public.exists() else set()
    found: dict[bytes, Secret] = {}
    newest, silos = _newest_epochs(out), RunFolder(run).roster().silos
    for number, each in enumerate(msgpack.unpackb((out / SECRETS_FILE).read_bytes())):
        kind, value, owner = each["kind"], each["value"], each["owner"]
        if value in revealed:
            continue
        files = KEPT_IN.get(kind, ())
        if "slot" in each and (each["slot"] in spent[owner] or number < newest.get(owner, 0)):
            files = ()  # its vector is out, or its epoch is over
        owners = frozenset(silos if kind == RUN_KEY else (owner, each.get("holder", owner)))
        secret = Secret(kind, value, owners, files)
        known = found.get(value)
        found[value] = secret if known is None or not secret.files else known
    for folder in sorted((run / "silos").iterdir()):
        own = frozenset({int(folder.name.removeprefix("silo-"))})
        rows = [row.tobytes() for row in read_silo(folder / "data").train.x[:RECORDS]]
        found |= {row: Secret(RECORD, row, own, KEPT_IN[RECORD]) for row in rows if row not in shown}
    return list(found.values())


def leaks(secrets: Sequence[Secret], out: Path) -> list[Found]:
    """Every secret in a file that is not for it; each file counts."""
    whole = {number for number, secret in enumerate(secrets) if secret.kind == RECORD}
    finder, found = Finder([secret.value for secret in secrets], whole), []
    for path in sorted(p for p in out.rglob("*") if p.is_file() and p.name != SECRETS_FILE):
        parts = path.relative_to(out).parts
        silo = int(parts[2].removeprefix("silo-")) if parts[:2] == ("run", "silos") else 0
        for number in finder.found_in(path.read_bytes()):
            secret = secrets[number]
            if silo not in secret.owners or path.name not in secret.files:
                found.append(Found(secret.kind, path))
    return found


def open_files(run: Path) -> list[Path]:
    """Files with secrets or records in silos' folders that others than their owner may read."""
    names = {*STATE, "identity.key", "coordinator.key", "silo.log", "audit.jsonl", "train.npz", "holdout.npz"}
    files = [path for path in run.rglob("*") if path.name in names]
    return [path for path in files if path.stat().st_mode & 0o777 & ~OWNER_ONLY]


def _revealed(run: Path) -> set[bytes]:
    """What silos sent because the protocol says so: shares, links of unneeded noise, ends of noise chains."""
    found: set[bytes] = set()
    for message in read_server_view(run / "server_view"):
        reply = message["fields"]["reply"]
        if message["stage"] == "unmask" and reply:
            answer = UnmaskReply.from_bytes(Signed.from_bytes(reply).payload)
            shares = [share for share in (*answer.seed_shares, *answer.key_shares) if share]
            found |= {share[-SHARE_BYTES:] for share in shares} | {share[:-SHARE_BYTES] for share in shares}
            found.add(answer.link)
        elif message["stage"] == "open" and reply:
            found.add(_end_of(reply).link)
    return (found | _ends_of_chains(run)) - {b""}


def _ends_of_chains(run: Path) -> set[bytes]:
    """Part of the opened sums that silos are shown: what comes after the last link of a chain that noise comes from."""
    found: set[bytes] = set()
    for path in RunFolder(run).proofs.glob("*.msgpack"):
        proof = SumProof.from_bytes(path.read_bytes())
        for opened in proof.sums:
            ends = opened.words[-proof_spec(proof.manifest).length : -TAG_WORDS].astype("<u8").tobytes()
            found |= {ends[start : start + LINK_BYTES] for start in range(0, len(ends), LINK_BYTES)}
    return found


def _end_of(reply: bytes) -> OpenReply:
    """What follows the coefficients of a part of an opening: its link has 32 bytes, or none."""
    for link in (bytes(32), b""):
        with suppress(ProtocolError):
            return OpenReply.from_bytes(reply[-len(OpenReply(1, link, bytes(64)).to_bytes()) :])
    raise RuntimeError("a part of an opening has no end")


def _spent(run: Path) -> dict[int, set[int]]:
    """By silo, slots of its newest epoch that it has used or closed.

    Read from copies: whoever opens a database takes in its write-ahead log, which is to be searched as it was left.
    """
    found = {}
    for folder in (run / "silos").iterdir():
        with tempfile.TemporaryDirectory() as copies:
            for name in STATE:
                if (folder / name).exists():
                    shutil.copy(folder / name, copies)
            with closing(open_silo_database(Path(copies) / STATE[0])) as database:
                there = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'secagg_slot'").fetchone()
                rows = database.execute("SELECT slot FROM secagg_slot").fetchall() if there else []
        found[int(folder.name.removeprefix("silo-"))] = {slot for (slot,) in rows}
    return found


def _newest_epochs(out: Path) -> dict[int, int]:
    """By silo, place of the first secret of its newest epoch."""
    newest: dict[int, int] = {}
    for number, each in enumerate(msgpack.unpackb((out / SECRETS_FILE).read_bytes())):
        if each.get("slot") == 0 and each["kind"] == "self-mask seed":
            newest[each["owner"]] = number
    return newest


def _run(scale: Scale) -> Iterator[Outcome]:
    for setting in QUICK if scale.quick else RUNS:
        options, small = RUNS[setting]
        out = scale.work / setting.replace(" ", "")
        captured_run([*shlex.split(small), *options, "--quiet"], out)
        secrets = secrets_of(out)
        found = leaks(secrets, out)
        kinds = sorted({each.kind for each in found})
        share, low, high = proportion_interval(min(len(found), len(secrets)), len(secrets))
        yield Outcome(
            "secrets outside their silo", setting, "part of all secrets", share, low, high, len(secrets), 0.0, 0.0,
            "secrets leave a silo's own files only as the protocol reveals them",
            f"found {', '.join(kinds)}" if kinds else f"searched {sum(1 for p in out.rglob('*') if p.is_file())} files",
        )  # fmt: skip
    yield from crash_rows(scale)


ATTACK = Attack("supply-and-storage", "supply-and-storage.md", _run)
