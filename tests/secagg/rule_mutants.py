"""Take each rule out of a copy of the package and see a named test fail: `python -m tests.secagg.rule_mutants`.

A mutant is an exact text replacement. Exits with 1 where one survives or its text is no longer there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.mutated_copy import TESTS_FAILED, TextNotThere, mutated, repository_copy, run_pytest

__all__ = ["MUTANTS", "Mutant", "Verdict", "judge", "table"]


@dataclass(frozen=True)
class Mutant:
    """One rule taken out.

    Attributes
    ----------
    rule : str
        As in brackets in protocols/secagg/README.md; or `key set-up`, or `coordinator: ` and a stage.
    what : str
        What is no longer checked.
    file : str
        In autoflip_secure/`package`, or ../parties/ or ../sums/ and its name.
    changes : tuple of (old, new)
        Each `old` occurs exactly once in the file.
    tests : tuple of str
        In tests/`package`, `file::test` without `.py`; one of them has to fail.
    package : str
        `secagg`, `sums` where a manifest is read, or `federation` where a silo's own rules or the coordinator's books
        are set up.
    """

    rule: str
    what: str
    file: str
    changes: tuple[tuple[str, str], ...]
    tests: tuple[str, ...]
    package: str = "secagg"

    @property
    def source(self) -> Path:
        return Path("autoflip_secure", self.package, self.file)

    @property
    def test_ids(self) -> tuple[str, ...]:
        return tuple(f"tests/{self.package}/{test.replace('::', '.py::')}" for test in self.tests)


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: the test that failed, empty where none did; and why where it could not be tried."""

    mutant: Mutant
    failed: str
    problem: str = ""

    @property
    def killed(self) -> bool:
        return bool(self.failed) and not self.problem


def never(condition: str) -> tuple[tuple[str, str], ...]:
    """The condition under which something is refused never holds."""
    return ((f"if {condition}:", "if False:"),)


def gone(statement: str) -> tuple[tuple[str, str], ...]:
    """The statement does nothing."""
    return ((statement, "pass"),)


def tests(file: str, *names: str) -> tuple[str, ...]:
    return tuple(f"test_secagg_{file}::test_{name}" for name in names)


MUTANTS = (
    # Rules of a silo: requests and key set-up.
    Mutant("signature", "of a request", "../parties/signing.py",
           never("not verify(public, kind.KIND.encode(), signed.payload, signed.signature)"),
           tests("refusals", "request_signed_by_somebody_else")),
    Mutant("signature", "of an advertisement", "epoch.py",
           never("not verify(roster.public(message.silo), kind.KIND.encode(), signed.payload, signed.signature)"),
           tests("refusals", "advertisements_that_do_not_hold")),
    Mutant("roster", "same on both sides", "../parties/requests.py",
           never("message.roster_hash != roster.hash()"),
           tests("refusals", "another_roster")),
    Mutant("session", "the run that was joined", "../parties/requests.py", never("message.session != session"),
           tests("refusals", "requests_of_a_run_that_was_not_joined")),
    Mutant("session", "others are forgotten", "silo.py", gone("self._party.state.forget_others(self._session)"),
           tests("state", "a_new_run_keeps_the_epoch_numbers_of_others_only")),
    Mutant("session", "only others are forgotten", "state.py",
           (('f"DELETE FROM {table} WHERE session <> ?"', 'f"DELETE FROM {table} WHERE ? IS NOT NULL"'),),
           tests("state", "a_run_does_not_forget_itself")),
    Mutant("session", "others are forgotten on joining", "silo.py",
           gone("self._session.secure_sum.forget_other_runs()"),
           ("test_federation_silo::test_keys_are_made_for_the_joined_run_and_forgotten_with_the_next",), "federation"),
    Mutant("message", "items of all arrays", "../parties/wire.py", never("left < 0"),
           tests("messages", "nested_arrays_that_would_fill_the_memory")),
    Mutant("epoch-order", "epochs only grow", "state.py",
           never("newest is not None and epoch <= newest[0]"),
           tests("refusals", "epochs_only_grow")),
    Mutant("deal-once", "two processes", "state.py",
           ((" AND stage = 'advertised'\"", '"'),),
           tests("breaks", "twin_process_cannot_deal_again")),
    Mutant("threshold", "of advertisers", "silo_setup.py",
           never("len(advertisements) < party.threshold"),
           tests("refusals", "advertisements_that_do_not_hold")),
    Mutant("threshold", "of dealers", "silo_delivery.py",
           never("len(read) < party.threshold"),
           tests("refusals", "deliveries_of_other_dealings")),
    Mutant("threshold", "stated by the manifest", "../parties/rules.py",
           never("manifest.threshold != threshold"),
           tests("refusals", "coordinator_cannot_choose_the_threshold")),
    Mutant("own-keys", "own advertisement", "silo_setup.py",
           never("state.advertisement not in request.advertisements"),
           tests("refusals", "advertisements_that_do_not_hold")),
    Mutant("own-keys", "own dealing", "silo_delivery.py",
           never("state.dealing not in delivery.dealings"),
           tests("refusals", "deliveries_of_other_dealings")),
    Mutant("known-silos", "one advertisement a silo", "silo_setup.py",
           never("not is_ascending(silos)"),
           tests("refusals", "advertisements_that_do_not_hold")),
    Mutant("known-silos", "one dealing a silo", "silo_delivery.py",
           never("not is_ascending([dealing.silo for dealing in read])"),
           tests("refusals", "deliveries_of_other_dealings")),
    Mutant("known-silos", "in a cohort", "../parties/rules.py", never("unknown"),
           tests("refusals", "unknown_silo_in_a_cohort")),
    Mutant("known-silos", "that confirm", "silo_round.py", never("silo not in members"),
           tests("breaks", "silo_outside_the_epoch_does_not_confirm")),
    Mutant("key set-up", "of this epoch", "epoch.py",
           never("(message.session, message.roster_hash, message.epoch) != "
                 "(head.session, head.roster_hash, head.epoch)"),
           tests("refusals", "advertisements_that_do_not_hold")),
    Mutant("key set-up", "box key not of low order", "epoch.py", never("is_low_order(message.box_key)"),
           tests("refusals", "advertised_key_of_low_order")),
    Mutant("key set-up", "mask key not of low order", "epoch.py",
           never("any(is_low_order(mask_keys[start : start + KEY_BYTES]) for start in starts)"),
           tests("blame", "advertisement_that_does_not_hold_is_left_out")),
    Mutant("key set-up", "dealt for the same advertisements", "epoch.py",
           never("message.keys_hash != keys or message.silo not in advertisers"),
           tests("sparse", "silos_shown_different_graphs_have_no_epoch_together")),
    Mutant("epoch-keys", "still there to be dealt", "state.py", never("box_key is None or len(rows) != state.slots"),
           tests("breaks", "twin_process_forgets_what_was_to_be_dealt")),
    Mutant("delivery-once", "two processes", "state.py",
           ((" AND stage = 'dealt'\"", '"'), ("INSERT INTO secagg_share", "INSERT OR REPLACE INTO secagg_share")),
           tests("breaks", "twin_process_cannot_take_delivery_again")),
    Mutant("delivery", "boxes as signed for", "silo_delivery.py", never("digest_of(peer.box) != box_hash"),
           tests("refusals", "deliveries_with_other_peers")),
    Mutant("delivery", "from all peers and nobody else", "silo_delivery.py",
           never("[peer.silo for peer in read] != peers"),
           tests("refusals", "deliveries_with_other_peers")),
    Mutant("delivery", "mask keys as advertised", "silo_delivery.py", gone("check_mask_keys(dealer, peer.mask_keys)"),
           tests("refusals", "deliveries_with_other_peers")),
    Mutant("delivery", "parcels as signed for", "dealing.py",
           never("digest_of(parcels) != dealing.parcels_hash or "
                 "len(parcels) != PARCEL_BYTES * len(dealing.recipients)"),
           tests("refusals", "deliveries_with_other_peers")),
    # Rules of a silo: the share graph above 100 silos.
    Mutant("graph", "only above 100 silos", "silo_setup.py", never("silos <= MAX_COMPLETE"),
           tests("sparse", "sparse_graph_is_refused_to_rosters_that_need_none")),
    Mutant("graph", "safe by the silo's own count", "silo_setup.py",
           never("graph.holders == 0 or not is_safe("
                 "len(request.advertisements), party.rules.colluders, graph, SAFE_BITS)"),
           tests("sparse", "graph_that_is_not_safe_is_refused")),
    Mutant("graph", "no small threshold among all", "silo_setup.py", (("if graph.holders == 0 or not", "if not"),),
           tests("sparse", "graph_that_is_not_safe_is_refused")),
    Mutant("graph", "epochs of a session", "silo_setup.py", never("request.epoch >= 1 << EPOCH_BITS"),
           tests("sparse", "sparse_graphs_end_with_the_epochs_they_are_safe_for")),
    Mutant("graph", "bound by the keys hash", "epoch.py",
           (('b"|advertisements|" + struct.pack(">II", graph.holders, graph.threshold)', 'b"|advertisements|"'),),
           tests("sparse", "silos_shown_different_graphs_have_no_epoch_together")),
    Mutant("graph", "dealt to the number of holders", "epoch.py", never("not _fits(message, advertisers, graph)"),
           tests("sparse", "dealing_to_other_than_the_drawn_number_is_refused")),
    Mutant("neighbours", "holders of every survivor", "silo_round.py",
           (("        _check_neighbours(ready, request.survivors)\n", ""),),
           tests("sparse", "every_holder_of_a_survivor_may_be_needed")),
    # Rules of a silo: the manifest and the slot.
    Mutant("manifest", "of the request's epoch", "../parties/requests.py",
           never("(manifest.session, manifest.epoch) != (ready.session, ready.epoch)"),
           tests("refusals", "manifest_of_other_keys")),
    Mutant("manifest", "one a slot", "silo_round.py", never("state.manifest != request.manifest"),
           tests("refusals", "one_silo_shown_a_smaller_cohort")),
    Mutant("epoch-keys", "named by the manifest", "../parties/requests.py",
           never("manifest.epoch_hash != ready.epoch_hash"),
           tests("refusals", "manifest_of_other_keys")),
    Mutant("size", "never below three", "../parties/rules.py", never("stated < HARD_FLOOR"),
           tests("refusals", "manifest_that_would_open_fewer_than_three")),
    Mutant("minimum", "able silos of a cohort", "../parties/rules.py",
           gone('_check_size(len(able), rules.least(len(cohort), stated, moments), "could take part")'),
           tests("refusals", "cohort_with_too_few_keys")),
    Mutant("minimum", "survivors", "../parties/rules.py",
           gone('_check_size(len(present), rules.least(len(cohort), stated, moments), "are to be summed")'),
           tests("refusals", "sums_of_one_or_two")),
    Mutant("minimum", "the manifest's", "../parties/rules.py", (("max(stated, ", "max("),),
           tests("refusals", "coordinator_can_raise_a_silos_minimum")),
    Mutant("minimum", "the silo's", "../parties/rules.py", (("stated, self.minimum, fraction", "stated, fraction"),),
           tests("refusals", "coordinator_cannot_lower_a_silos_minimum")),
    Mutant("minimum", "fraction of the cohort", "../parties/rules.py",
           (("self.minimum, fraction, ", "self.minimum, "),),
           tests("refusals", "fraction_of_the_cohort_is_a_minimum")),
    Mutant("minimum", "colluders", "../parties/rules.py", (("self.colluders + 2 + moments)", "2 + moments)"),),
           tests("refusals", "colluders_and_moments_raise_the_minimum")),
    Mutant("minimum", "colluders of the run", "silo.py",
           (("max(self._policy.colluders, request.config.colluders)", "self._policy.colluders"),),
           ("test_federation_silo::test_sums_bear_the_colluders_of_policy_and_run",), "federation"),
    Mutant("minimum", "moments", "../parties/rules.py", (("self.colluders + 2 + moments)", "self.colluders + 3)"),),
           tests("refusals", "colluders_and_moments_raise_the_minimum")),
    Mutant("cohort", "only of its own", "../parties/requests.py",
           (('raise refusal("cohort", str(error)) from error', "return 0"),),
           tests("refusals", "silo_outside_the_cohorts_sends_no_vector")),
    Mutant("slot-once", "in range", "../parties/requests.py", never("manifest.slot >= ready.slots"),
           tests("refusals", "slot_out_of_range")),
    Mutant("slot-once", "closed for good", "silo_round.py", never("isinstance(state, Closed)"),
           tests("refusals", "sums_of_one_or_two")),
    Mutant("slot-once", "two processes", "state.py",
           (('            db.execute("DELETE FROM secagg_secret" + THE_SLOT, key)\n', ""),
            ('"INSERT INTO secagg_slot (', '"INSERT OR REPLACE INTO secagg_slot (')),
           tests("breaks", "twin_process_cannot_mask_again")),
    Mutant("slot-once", "spent before the contribution", "silo_round.py",
           (("    secret = party.state.spend(ready, manifest.slot, request.manifest)\n    digest", "    digest"),
            ("    keys, signs = _masks(",
             "    secret = party.state.spend(ready, manifest.slot, request.manifest)\n    keys, signs = _masks(")),
           tests("refusals", "slot_stays_spent_when_the_contribution_fails")),
    Mutant("slot-once", "of this epoch and no newer one", "state.py",
           (('" WHERE session = ? AND epoch = ? AND slot = ?"', '" WHERE session = ? AND epoch >= ? AND slot = ?"'),),
           tests("delayed", "confirmation_written_late_opens_nothing_in_the_new_epoch")),
    Mutant("slot-once", "of this epoch and no newer one, word by word", "state.py",
           (('" WHERE session = ? AND epoch = ? AND slot = ?"', '" WHERE session = ? AND epoch >= ? AND slot = ?"'),),
           tests("delayed", "half_read_answer_of_an_old_epoch_leaves_the_new_one_alone")),
    Mutant("slot-once", "secrets are gone before anything is answered", "../parties/store.py", never("busy"),
           tests("state", "log_that_cannot_be_cleared_is_an_error")),
    Mutant("slot-once", "secrets left by a killed process", "../parties/store.py",
           (("left the log behind.\n        self.clear_log()", "left the log behind.\n        pass"),),
           tests("state", "log_that_cannot_be_cleared_is_an_error")),
    Mutant("masked words", "no clear words in a part kept too long", "masking.py",
           (("masked = np.empty_like(encoded)", "masked = encoded"),),
           tests("masking", "part_kept_too_long_never_shows_clear_words")),
    Mutant("contribution", "as long as its channel", "contribution.py", never("vector.shape != (channel.length,)"),
           ("test_malicious_coordinator::test_a_channel_longer_than_the_contribution_allocates_nothing",),
           "federation"),
    Mutant("slot-once", "closed by a broken rule", "silo_round.py", gone("party.state.close(ready, slot)"),
           tests("refusals", "sums_of_one_or_two")),
    Mutant("slot-once", "closed by a manifest", "silo_round.py",
           gone("party.state.spend(ready, slot, manifest, closed=True)"),
           tests("refusals", "coordinator_cannot_choose_the_threshold")),
    # Rules of a silo: survivors and shares.
    Mutant("survivors", "part of the cohort, ascending", "../parties/rules.py",
           never("not set(present) <= able & set(cohort) or list(present) != sorted(set(present))"),
           tests("refusals", "survivors_that_are_not_of_the_cohort")),
    Mutant("survivors", "a list a cohort", "../parties/rules.py", never("len(survivors) != len(manifest.cohorts)"),
           tests("refusals", "survivors_that_are_not_of_the_cohort")),
    Mutant("blocks", "no part of one is summed", "../parties/rules.py",
           never("manifest.whole(index, present) != present"),
           tests("blocks", "list_with_a_part_of_a_block")),
    Mutant("blocks", "in any cohort", "../parties/rules.py",
           (("if manifest.whole(index, present) != present:",
             "if index == 0 and manifest.whole(index, present) != present:"),),
           tests("blocks", "list_with_a_part_of_a_block_of_another_cohort")),
    Mutant("blocks", "able silos are in whole ones", "../parties/rules.py",
           (("able = manifest.whole(index, members)", "able = set(cohort) & set(members)"),),
           tests("blocks", "silos_with_keys_count_in_whole_blocks")),
    Mutant("blocks", "whole to the last silo", "../sums/manifest.py",
           (("if there.issuperset(block)", "if there.intersection(block)"),),
           tests("dropouts", "every_pattern_of_absence_with_blocks")),
    Mutant("blocks", "hold each silo once", "manifest.py", gone("self._check_blocks(members)"),
           ("test_sums_manifest::test_manifest_that_cannot_be",), "sums"),
    Mutant("blocks", "are of one cohort each", "manifest.py",
           ((" or len({cohort_of[silo] for silo in block}) > 1", ""),),
           ("test_sums_manifest::test_manifest_that_cannot_be",), "sums"),
    Mutant("blocks", "bound by the digest", "../sums/manifest.py",
           (("[list(block) for block in self.blocks],", "[],"),),
           tests("blocks", "list_with_a_part_of_a_block")),
    Mutant("survivors", "has sent a vector", "silo_round.py",
           never("any(party.silo in silos for silos in request.survivors) and not isinstance(state, Masked)"),
           tests("refusals", "listed_silo_that_sent_nothing")),
    Mutant("receipts", "of every survivor", "silo_round.py",
           never("held != [silo for silo, _, _ in request.receipts]"),
           tests("refusals", "receipts_are_those_of_all_survivors")),
    Mutant("receipts", "under this manifest", "silo_round.py",
           never("not statement_holds(party.roster.public(silo), Receipt(digest, words_hash), signature)"),
           tests("refusals", "one_silo_shown_a_smaller_cohort")),
    Mutant("confirm-once", "of other survivors", "silo_round.py", never("state.request_hash != digest_of(raw)"),
           tests("refusals", "two_survivor_lists_for_one_slot")),
    Mutant("confirm-once", "shares for the confirmed lists", "silo_round.py",
           never("statement.to_bytes() != state.statement"),
           tests("refusals", "unmask_of_lists_that_others_confirmed")),
    Mutant("confirm-once", "two processes", "state.py", ((" AND stage IN ('spent', 'masked')\"", '"'),),
           tests("breaks", "twin_process_cannot_confirm_otherwise")),
    Mutant("confirmations", "as many as the threshold", "silo_round.py",
           never("len(request.confirmations) < party.threshold"),
           tests("refusals", "both_shares_of_one_silo", "confirmations_that_do_not_hold")),
    Mutant("confirmations", "signed", "silo_round.py",
           never("not statement_holds(party.roster.public(silo), statement, signature)"),
           tests("refusals", "confirmations_that_do_not_hold")),
    Mutant("unmask-once", "the same request", "silo_round.py", never("state.unmask_hash != digest_of(raw)"),
           tests("refusals", "second_unmask_with_other_survivors")),
    Mutant("unmask-once", "only after a confirmation", "silo_round.py",
           (("if not isinstance(state, Confirmed):", "if state is None:"),
            ("if statement.to_bytes() != state.statement:",
             "if isinstance(state, Confirmed) and statement.to_bytes() != state.statement:")),
           tests("refusals", "unmask_before_confirm_reveals_nothing")),
    Mutant("unmask-once", "two processes", "state.py",
           ((" AND stage = 'confirmed'\"", '"'),),
           tests("breaks", "twin_process_cannot_answer_otherwise")),
    Mutant("unmask-once", "two processes, before the shares are read", "state.py",
           (('if row is None:\n            raise refusal("unmask-once"',
             'if False:\n            raise refusal("unmask-once"'),),
           tests("breaks", "twin_process_cannot_answer_otherwise")),
    Mutant("unmask-once", "shares are deleted", "state.py",
           (('answered meanwhile")\n'
             '            db.execute("DELETE FROM secagg_share" + THE_SLOT, key)',
             'answered meanwhile")'),),
           tests("state", "shares_are_deleted_once_revealed")),
    # Rules of a silo: the link of its noise chain.
    Mutant("noise link", "after as many as are missing", "silo_round.py",
           (("link_to_reveal(root, len(manifest.cohorts[cohort]) - len(present),", "link_to_reveal(root, 0,"),),
           tests("noise_links", "survivors_reveal_the_link_after_the_missing_ones")),
    Mutant("noise link", "of the silo's own cohort", "silo_round.py",
           (("    cohort = manifest.cohort_of(party.silo)\n    present", "    cohort = 0\n    present"),),
           tests("noise_links", "a_silo_counts_only_its_own_cohort")),
    Mutant("noise link", "of another cohort's list", "silo_round.py",
           (("present = survivors[cohort]", "present = survivors[-1]"),),
           tests("noise_links", "a_silo_counts_only_its_own_cohort")),
    Mutant("noise link", "with the confirmations only", "silo_round.py",
           gone("_check_confirmations(party, ready, request, statement)"),
           tests("noise_links", "links_need_as_many_confirmations_as_shares")),
    Mutant("noise link", "for the confirmed lists only", "silo_round.py",
           (*never("statement.to_bytes() != state.statement"),
            *gone("_check_confirmations(party, ready, request, statement)")),
           tests("noise_links", "honest_silos_keep_what_the_opened_sum_needs")),
    Mutant("noise link", "of silos in the sum", "silo_round.py", never("party.silo not in present"),
           tests("noise_links", "a_silo_shown_fuller_lists_reveals_no_more")),
    Mutant("noise link", "root is on disk with the slot", "state.py", never("root is not None"),
           tests("noise_links", "root_is_kept_until_the_slot_is_answered")),
    Mutant("noise link", "root is deleted once the link is revealed", "state.py",
           (('            db.execute("DELETE FROM secagg_chain" + THE_SLOT, key)\n\n    def close',
             "\n    def close"),),
           tests("noise_links", "root_is_kept_until_the_slot_is_answered")),
    Mutant("noise link", "root is deleted with a closed slot", "state.py",
           (('            db.execute("DELETE FROM secagg_chain" + THE_SLOT, key)\n\n    def shares',
             "\n    def shares"),),
           tests("noise_links", "links_need_as_many_confirmations_as_shares")),
    Mutant("noise link", "root is deleted with its epoch", "state.py",
           (('"secagg_share", "secagg_chain", "secagg_slot")', '"secagg_share", "secagg_slot")'),),
           tests("noise_links", "new_keys_and_new_runs_delete_chains")),
    Mutant("noise link", "root of the right length", "../parties/requests.py",
           never("source.removable is not None and len(source.removable) != LINK_BYTES"),
           tests("noise_links", "a_root_of_another_length_stops_the_contribution")),
    # Checks of the coordinator.
    Mutant("coordinator: request", "manifest's session", "../parties/keyed_sums.py",
           never("manifest.session != self._desk.session"),
           tests("coordinator", "manifest_that_cannot_work_is_refused_before_anything_is_sent")),
    Mutant("coordinator: request", "manifest's threshold", "../parties/keyed_sums.py",
           never("manifest.threshold != self.threshold"),
           tests("coordinator", "manifest_that_cannot_work_is_refused_before_anything_is_sent")),
    Mutant("coordinator: request", "manifest's minimum", "../parties/keyed_sums.py",
           never("min(manifest.minimum) < HARD_FLOOR"),
           tests("coordinator", "manifest_that_cannot_work_is_refused_before_anything_is_sent")),
    Mutant("coordinator: request", "known silos", "../parties/keyed_sums.py", never("unknown"),
           tests("coordinator", "manifest_that_cannot_work_is_refused_before_anything_is_sent")),
    Mutant("coordinator: request", "one cohort above 100 silos", "coordinator.py",
           never("len(manifest.cohorts) > 1 and len(self._desk.roster.entries) > MAX_COMPLETE"),
           tests("sparse", "several_cohorts_are_refused_by_the_coordinator")),
    Mutant("coordinator: replies", "one a silo, of those asked", "../parties/desk.py",
           never("silo in answered or silo not in requests"),
           tests("refusals", "reply_that_arrives_twice_counts_once")),
    Mutant("coordinator: replies", "at least t", "../parties/desk.py", never("silos < least"),
           tests("coordinator", "too_few_silos_at_key_setup")),
    Mutant("coordinator: advertise", "its own advertisement", "coordinator_setup.py",
           never("advertisement.silo != silo"), tests("blame", "reply_in_the_name_of_another_silo")),
    Mutant("coordinator: advertise", "slots", "epoch.py", never("message.slots != slots"),
           tests("blame", "advertisement_that_does_not_hold_is_left_out")),
    Mutant("coordinator: advertise", "mask keys as signed for", "epoch.py",
           never("len(mask_keys) != KEY_BYTES * advertisement.slots or "
                 "digest_of(mask_keys) != advertisement.mask_keys_hash"),
           tests("blame", "advertisement_that_does_not_hold_is_left_out")),
    Mutant("coordinator: advertise", "commitments as signed for", "coordinator_setup.py",
           never("digest_of(message.commitments) != advertisement.commitments_hash"),
           tests("blame", "advertisement_that_does_not_hold_is_left_out")),
    Mutant("coordinator: share", "its own dealing", "coordinator_setup.py", never("dealing.silo != silo"),
           tests("blame", "reply_in_the_name_of_another_silo")),
    Mutant("coordinator: share", "to every recipient", "coordinator_setup.py",
           never("not len(message.boxes) == len(message.rows) == len(dealing.recipients)"),
           tests("refusals", "coordinator_leaves_out_boxes_that_were_not_signed_for")),
    Mutant("coordinator: share", "boxes and rows as signed for", "coordinator_setup.py",
           never("digest_of(sent) != dealing.parcels_hash or "
                 "set(map(len, message.rows)) != {2 * HASH_BYTES * self.slots}"),
           tests("refusals", "coordinator_leaves_out_boxes_that_were_not_signed_for")),
    Mutant("coordinator: share", "boxes of the right size", "coordinator_setup.py",
           never("set(map(len, message.boxes)) != {box_bytes(self.slots)}"),
           tests("refusals", "coordinator_leaves_out_boxes_of_another_size")),
    Mutant("coordinator: share", "a graph for these advertisers", "desk.py",
           (("except ConfigError as error:", "except ZeroDivisionError as error:"),),
           tests("sparse", "advertisers_without_a_safe_graph_abort")),
    Mutant("coordinator: replies", "errors by known names", "exchange.py",
           (('reply.error if reply.error in KNOWN_ERRORS else "other"', "reply.error"),),
           ("test_federation_exchange::test_words_of_a_silos_own_are_neither_counted_by_nor_kept_at_length",),
           "federation"),
    Mutant("coordinator: replies", "errors of any length", "exchange.py",
           (("reply.error[:LONGEST_ERROR]", "reply.error"),),
           ("test_federation_exchange::test_words_of_a_silos_own_are_neither_counted_by_nor_kept_at_length",),
           "federation"),
    Mutant("coordinator: masked", "words of the right size", "coordinator_round.py",
           never("not end"), tests("refusals", "short_vector_is_reported_as_short")),
    Mutant("coordinator: masked", "a vector without a receipt is taken off again", "coordinator_round.py",
           (("np.subtract(total, words, out=total)", "pass"),),
           tests("blame", "reply_that_does_not_hold_counts_as_dropped")),
    Mutant("coordinator: masked", "signed", "coordinator_round.py",
           never("message.silo != silo or not statement_holds(desk.roster.public(silo), receipt, message.signature)"),
           tests("blame", "reply_that_does_not_hold_counts_as_dropped")),
    Mutant("coordinator: masked", "minimum", "../sums/block_totals.py", never("len(present) < least"),
           tests("dropouts", "one_cohort_below_its_minimum_aborts_both")),
    Mutant("coordinator: masked", "sums of whole blocks", "../sums/block_totals.py",
           (("if block is not None and self._arrived.issuperset(block):", "if block is not None:"),),
           tests("blocks", "coordinator_says_whom_it_left_out")),
    Mutant("coordinator: masked", "receipts of survivors only", "coordinator_round.py",
           (("summed = {silo: receipts[silo] for silos in survivors for silo in silos}", "summed = receipts"),),
           tests("blocks", "coordinator_says_whom_it_left_out")),
    Mutant("coordinator: masked", "nobody is asked in vain", "coordinator_round.py",
           (("for cohort in self.manifest.each_whole(epoch.dealers) for silo in cohort]",
             "for cohort in self.manifest.cohorts for silo in cohort if silo in epoch.dealers]"),),
           tests("blocks", "silos_whose_block_has_no_keys_use_no_records")),
    Mutant("coordinator: masked", "holders of every survivor", "coordinator_round.py",
           never("alone is not None"), tests("sparse", "coordinator_does_not_ask_for_what_silos_refuse")),
    Mutant("coordinator: confirm", "signed", "coordinator_round.py",
           never("message.silo != silo or not statement_holds(desk.roster.public(silo), statement, message.signature)"),
           tests("blame", "reply_that_does_not_hold_counts_as_dropped")),
    Mutant("coordinator: unmask", "about this manifest", "coordinator_round.py",
           never("message.silo != silo or message.digest != self.digest"),
           tests("blame", "signed_unmask_reply_about_something_else")),
    Mutant("coordinator: unmask", "a share for every silo", "coordinator_round.py",
           never("(len(message.seed_shares), len(message.key_shares)) != (len(seed_owners), len(key_owners))"),
           tests("blame", "signed_unmask_reply_about_something_else")),
    Mutant("coordinator: unmask", "a link of the right length", "round_messages.py",
           gone('want_bytes("a link", self.link, 0, LINK_BYTES)'),
           tests("noise_links", "link_of_another_length_counts_as_no_answer")),
    Mutant("coordinator: unmask", "a link only where noise can be removed", "coordinator_round.py",
           never("not self._has_excess(silo)"),
           tests("noise_links", "link_of_a_silo_without_excess_counts_as_no_answer")),
    Mutant("coordinator: recovery", "seed against its commitment", "recovery.py",
           (("return hmac.compare_digest(found, commitment)", "return True"),),
           tests("blame", "dealer_of_another_secret_is_blamed")),
    Mutant("coordinator: recovery", "mask key against the advertised", "recovery.py",
           (("lambda secret: hmac.compare_digest(public_key(secret), advertised)", "lambda secret: True"),),
           tests("blame", "dealer_of_another_secret_is_blamed")),
    Mutant("coordinator: recovery", "shares against the dealer's row", "recovery.py",
           (("return revealed_holds(self.epoch.context, owner, responder, self.slot, kind, share, row)",
             "return True"),),
           tests("blame", "wrong_share_is_set_aside_and_its_sender_reported")),
    Mutant("coordinator: recovery", "enough good shares", "recovery.py",
           never("len(honest) < self.epoch.graph.threshold"),
           tests("blame", "too_many_wrong_shares_abort_and_name_the_liars")),
)  # fmt: skip


def judge(mutants: Iterable[Mutant]) -> list[Verdict]:
    """Try mutants one after another on one copy.

    Raises
    ------
    RuntimeError
        The named tests do not pass without any mutant.
    """
    mutants = tuple(mutants)
    with repository_copy(sorted({mutant.package for mutant in mutants})) as copy:
        named = sorted({test for mutant in mutants for test in mutant.test_ids})
        code, output = run_pytest(copy, named)
        if code != 0:
            raise RuntimeError(f"the named tests do not pass as it is:\n{output}")
        return [_judge_one(copy, mutant) for mutant in mutants]


def _judge_one(copy: Path, mutant: Mutant) -> Verdict:
    try:
        with mutated(copy, ((mutant.source, old, new) for old, new in mutant.changes)):
            code, output = run_pytest(copy, mutant.test_ids, "-x")
    except TextNotThere as error:
        return Verdict(mutant, "", str(error))
    failed = re.findall(r"^FAILED tests/\w+/test_(?:secagg_)?(.+?)(?: - .*)?$", output, re.MULTILINE)
    if code not in (0, TESTS_FAILED):
        return Verdict(mutant, "", f"pytest ended with {code}: {output[-500:]}")
    return Verdict(mutant, failed[0] if failed else "")


def table(verdicts: Iterable[Verdict]) -> str:
    """`rule | mutant | failing test | killed`, one line a mutant."""
    lines = ["| rule | mutant | failing test | killed |", "|---|---|---|---|"]
    for verdict in verdicts:
        outcome = "yes" if verdict.killed else f"NO: {verdict.problem or 'survived'}"
        lines.append(f"| {verdict.mutant.rule} | {verdict.mutant.what} | {verdict.failed} | {outcome} |")
    return "\n".join(lines)


def main() -> int:
    verdicts = judge(MUTANTS)
    print(table(verdicts))
    return 0 if all(verdict.killed for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
