"""Take each check of enrolment and bundles out of a copy of the package and see a named test fail:

    python -m tests.deployment.enrolment_mutants

A mutant is an exact text replacement. Exits with 1 where one survives or its text is no longer there.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from tests.mutated_copy import TESTS_FAILED, TextNotThere, mutated, repository_copy, run_pytest

__all__ = ["MUTANTS", "Mutant", "judge"]


@dataclass(frozen=True)
class Mutant:
    """One check taken out.

    Attributes
    ----------
    what : str
        What is no longer checked.
    file : str
        In autoflip_secure/deployment, without `.py`.
    old, new : str
        `old` occurs exactly once in the file.
    tests : tuple of str
        In tests/deployment, `file::test` without `test_` and `.py`; one of them has to fail.
    """

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def source(self) -> Path:
        return Path("autoflip_secure/deployment", f"{self.file}.py")

    @property
    def test_ids(self) -> tuple[str, ...]:
        return tuple("tests/deployment/test_" + test.replace("::", ".py::test_") for test in self.tests)


def gone(what: str, file: str, condition: str, *tests: str) -> Mutant:
    """The condition under which something is refused never holds."""
    return Mutant(what, file, f"if {condition}:", "if False:", tests)


def not_required(what: str, old: str, *tests: str) -> Mutant:
    """A requirement of a bundle always holds."""
    return Mutant(what, "bundle", f"require({old}, ", "require(True, ", tests)


FORGED = "enrolment::a_forged_or_malformed_silo_request_is_refused"
FORGED_COORDINATOR = "enrolment::a_forged_coordinator_request_is_refused"
CONTRADICTS = "bundle::a_bundle_that_contradicts_itself_is_refused_although_its_authority_signed_it"

MUTANTS = (
    # Requests.
    gone(
        "identity proves itself", "enrolment",
        'not verify(request.public, DOMAINS[label], message, unhex(signatures["identity"]))', FORGED,
    ),
    gone(
        "node key proves itself", "enrolment",
        'not node_verify(request.node, message, unhex(signatures["node"]))', FORGED,
    ),
    Mutant(
        "one spelling of a signature", "armour", " if is_hex(text) else b", " if text else b",
        ("enrolment::a_signature_has_one_text",),
    ),
    gone("all signatures are there", "enrolment", "set(signatures) != expected", FORGED),
    Mutant("names", "enrolment", "    check_name(request.name, where)\n", "", (FORGED,)),
    Mutant("one spelling of a node key", "keys", "        or node_public_text(key) != text\n", "", (FORGED,)),
    Mutant(
        "certificate request is read", "enrolment",
        "    valid_request(request.certificate_request, request.identity)\n", "", (FORGED_COORDINATOR,),
    ),
    gone(
        "certificate request is the identity's", "certificates", "request.subject != _named(owner)",
        FORGED_COORDINATOR,
    ),
    gone(
        "certificate request proves its key", "certificates", "not proven",
        "enrolment::a_certificate_request_for_a_key_that_did_not_sign_it_is_refused",
    ),
    Mutant(
        "one text for a statement", "armour", " and armoured(label, body, signatures) == text", "",
        ("enrolment::a_request_with_any_byte_changed_is_refused",),
    ),
    # Certificates.
    gone(
        "authorities sign servers only", "certificates",
        "not _may_sign_servers_only(ca)",
        "certificates::an_authority_that_could_sign_further_ones_is_refused",
    ),
    Mutant(
        "chain and host", "certificates", "        verifier.verify(server, [])\n", "",
        ("certificates::a_chain_that_silos_could_not_use_is_refused",),
    ),
    gone(
        "one certificate in a text", "certificates", "_pem(certificate) != pem",
        "certificates::a_chain_that_silos_could_not_use_is_refused",
    ),
    Mutant(
        "no further authorities", "certificates", "path_length=0", "path_length=1",
        ("certificates::the_authority_signs_no_further_authorities",),
    ),
    # Bundles.
    gone(
        "pinned authority", "bundle", "pinned is not None and not pinned(public)",
        "bundle::a_bundle_of_another_authority_is_refused_whatever_it_says",
    ),
    gone(
        "signature", "bundle", "not verify(public, DOMAIN, canonical(body), signature)",
        "bundle::a_bundle_of_another_authority_is_refused_whatever_it_says",
    ),
    gone("nothing but a bundle", "bundle", "bundle.text != text", CONTRADICTS),
    not_required("address", "place is not None and 0 < bundle.port < 1 << 16", CONTRADICTS),
    not_required("history", "len(bundle.history) == bundle.version - 1", CONTRADICTS),
    not_required("digests", "all(HASH.fullmatch(digest) for digest in bundle.history)", CONTRADICTS),
    not_required("scoring", '(bundle.scoring == "public") == bool(bundle.public_test)', CONTRADICTS),
    not_required("task", "bundle.task == task and Task.from_json(bundle.task)", CONTRADICTS),
    not_required("node keys", "len(set(bundle.node_keys.values())) == len(roster.silos)", CONTRADICTS),
    not_required("next id", "bundle.next_silo > max(roster.silos)", CONTRADICTS),
    not_required(
        "authority is no party", "bytes.fromhex(bundle.authority) not in _publics(roster)", CONTRADICTS
    ),
    Mutant("node keys are read", "bundle", "        node_public(key)\n", "        pass\n", (CONTRADICTS,)),
    Mutant("chain", "bundle", "    check_chain(bundle.ca, bundle.server, bundle.host)\n", "", (CONTRADICTS,)),
    # What follows from what.
    gone("older versions", "bundle", "new.version < old.version", "bundle::an_older_bundle_is_refused"),
    Mutant(
        "forks", "bundle", "chain[old.version - 1] != old.digest or ", "",
        ("bundle::two_different_versions_of_one_number_are_told_apart",),
    ),
    Mutant(
        "forks before", "bundle", " or chain[: old.version - 1] != old.history", "",
        ("bundle::a_version_that_hides_the_installed_one_is_refused",),
    ),
    Mutant(
        "ids once", "bundle", " or any(entry.silo < old.next_silo for entry in added)", "",
        ("bundle::an_id_is_never_used_again",),
    ),
    Mutant(
        "next id grows", "bundle", "new.next_silo < old.next_silo or ", "", ("bundle::an_id_is_never_used_again",)
    ),
    gone(
        "one authority", "bundle", "new.authority != old.authority",
        "bundle::the_history_of_versions_stays_with_its_authority",
    ),
    Mutant(
        "consent to additions", "bundle", "bool(self.added) or ", "",
        ("homes::a_removal_is_taken_over_unasked_and_an_addition_is_not",),
    ),
    Mutant(
        "consent to other changes", "bundle", "any(name not in WITHOUT_CONSENT for name in self.other)", "False",
        ("bundle::other_changes_need_consent_and_a_renewed_server_certificate_does_not",),
    ),
    # Homes.
    gone(
        "an authority is pinned by a person", "homes", "authority is None or not consent",
        "homes::the_first_bundle_needs_the_fingerprint_of_its_authority",
    ),
    gone(
        "consent", "homes", "change.needs_consent", "homes::a_removal_is_taken_over_unasked_and_an_addition_is_not"
    ),
    gone(
        "least sizes", "homes", "change.removed and left < least",
        "homes::a_removal_below_the_least_size_of_the_policy_needs_consent",
    ),
    Mutant(
        "own keys", "homes", "        home.check_own_part(bundle, before)\n", "",
        ("homes::a_bundle_without_this_partys_keys_is_refused",),
    ),
    Mutant(
        "one rename installs", "homes", '        _link(home / CURRENT, f"{VERSIONS}/{name}")\n', "",
        ("homes::a_removal_is_taken_over_unasked_and_an_addition_is_not",),
    ),
    Mutant(
        "a version is whole before it is installed", "homes",
        "    for file, data in _unpacked(bundle).items():\n        write_atomically(folder / file, data)\n",
        '    _link(home / CURRENT, f"{VERSIONS}/{name}")\n'
        "    for file, data in _unpacked(bundle).items():\n        write_atomically(folder / file, data)\n",
        ("homes::a_crash_while_installing_leaves_the_old_files_or_the_new_ones",),
    ),
    gone(
        "own node key", "silo_home", "entry.name != self.name or bundle.node_keys[entry.silo] != node",
        "homes::a_bundle_with_another_node_key_or_certificate_for_this_party_is_refused",
    ),
    gone(
        "own TLS key", "coordinator_home", "tls_public(bundle.server) != der",
        "homes::a_bundle_with_another_node_key_or_certificate_for_this_party_is_refused",
    ),
    gone(
        "public test records", "coordinator_home", "not hmac.compare_digest(_digest(given), bundle.public_test)",
        "authority::public_test_records_reach_the_coordinator_and_nobody_elses",
    ),
    gone("keys for their owner", "keys", "mode & READABLE_BY_OTHERS", "homes::a_key_that_others_may_read_is_refused"),
    # The authority.
    gone("named silos", "authority", "request.name not in federation.silos",
         "authority::a_silo_that_the_file_does_not_name_is_not_enrolled"),
    gone(
        "keys once", "authority", "key in used",
        "authority::keys_that_were_removed_never_come_back", "authority::one_key_is_not_two_parties",
    ),
    gone(
        "new keys on demand", "authority", "request.name in enrolled and not replace",
        "authority::new_keys_of_an_enrolled_silo_take_a_new_id_and_only_on_demand",
    ),
    gone(
        "new coordinator on demand", "authority", "before and len(read) > len(silos) and not replace",
        "authority::a_new_coordinator_takes_the_place_of_the_old_one_on_demand",
    ),
    gone("three silos", "authority", "len(entries) < MIN_SILOS", "authority::a_federation_keeps_three_silos"),
    gone(
        "one request a party", "authority", "len(set(names)) != len(names) or len(read) - len(silos) > 1",
        "authority::a_party_sends_one_request",
    ),
    # Records.
    gone(
        "records are replaced on demand", "record_import", "present and not replace",
        "record_import::other_records_take_their_place_only_on_demand_and_never_half",
    ),
    Mutant(
        "records are whole before they are moved", "record_import",
        "        write_silo(making, train, holdout)\n",
        "        shutil.rmtree(home.data, ignore_errors=True)\n        write_silo(making, train, holdout)\n",
        ("record_import::other_records_take_their_place_only_on_demand_and_never_half",),
    ),
)  # fmt: skip


def judge() -> list[tuple[Mutant, str]]:
    """Every mutant, and why it is not killed; empty where it is.

    Raises
    ------
    RuntimeError
        The named tests do not pass without any mutant.
    """
    with repository_copy(["deployment"]) as copy:
        code, output = run_pytest(copy, sorted({test for mutant in MUTANTS for test in mutant.test_ids}))
        if code != 0:
            raise RuntimeError(f"the named tests do not pass as it is:\n{output}")
        return [(mutant, _survives(copy, mutant)) for mutant in MUTANTS]


def _survives(copy: Path, mutant: Mutant) -> str:
    try:
        with mutated(copy, [(mutant.source, mutant.old, mutant.new)]):
            code, output = run_pytest(copy, mutant.test_ids, "-x")
    except TextNotThere as error:
        return str(error)
    return "" if code == TESTS_FAILED else f"pytest ended with {code}: {output[-300:]}"


def main() -> int:
    verdicts = judge()
    for mutant, problem in verdicts:
        print(f"{'NO' if problem else 'yes':<4} {mutant.file}: {mutant.what} {problem}")
    return 1 if any(problem for _, problem in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
