"""Take each rule of CKKS sums out of a copy of the package and see a named test fail.

`python -m tests.ckks.ckks_rule_mutants` tries them all with the engine of `tests/secagg/rule_mutants.py`. Rules that
both protocols share, in `autoflip_secure/parties`, have their mutants there.
"""

from __future__ import annotations

import os
import sys
from functools import partial

from tests.secagg import rule_mutants as engine

__all__ = ["MUTANTS", "engine"]

never, gone = engine.never, engine.gone
Mutant = partial(engine.Mutant, package="ckks")


def tests(file: str, *names: str) -> tuple[str, ...]:
    return tuple(f"test_ckks_{file}::test_{name}" for name in names)


# Reads a slot's keys and notes nothing; used where the note comes too late.
LOOK = (
    'SlotKeys(*self._state._store.row("SELECT agreement, lattice, root FROM ckks_secret"'
    ' " WHERE session = ? AND epoch = ? AND slot = ?", ready.session, ready.epoch, slot))'
)
# Plaintexts of the smudging without SEAL's encryption noise.
BARE = (
    "plain = ring._seal.Plaintext()\n"
    "    noise = np.stack([(ring._encoder.encode(row.view(np.complex128).tolist(), parameters.scale, plain),"
    " ring._words(plain, DEGREE))[1] for row in smudging])"
)

SPEND = "        self._state.spend(ready, manifest.slot, request.manifest)\n"
TAKE = "keys = self._state.take_keys(ready, slot)"
SLOT_KEYS = ("import Advertised, Ready, SiloState", "import Advertised, Ready, SiloState, SlotKeys")
KEYS_STAY = (
    'key).fetchone()\n            db.execute("DELETE FROM ckks_secret" + THE_SLOT, key)\n',
    "key).fetchone()\n",
)

MUTANTS = (
    # Rules of a silo: key set-up.
    Mutant("signature", "of an advertisement", "keys.py",
           never("not verify(public, KeyAdvertisement.KIND.encode(), signed.payload, signed.signature)"),
           tests("refusals", "keys_that_do_not_hold")),
    Mutant("known-silos", "one advertisement a silo", "keys.py",
           never("not is_ascending([message.silo for message in messages])"),
           tests("refusals", "keys_that_do_not_hold")),
    Mutant("own-keys", "own advertisement", "silo.py", never("state.advertisement not in advertisements"),
           tests("refusals", "keys_that_do_not_hold")),
    Mutant("key set-up", "of this epoch", "keys.py",
           never("(message.session, message.roster_hash, message.epoch) != "
                 "(head.session, head.roster_hash, head.epoch)"),
           tests("refusals", "keys_that_do_not_hold")),
    Mutant("key set-up", "for as many slots as asked", "keys.py", never("message.slots != slots"),
           tests("refusals", "keys_that_do_not_hold")),
    Mutant("key set-up", "a key a slot", "messages.py",
           gone('want_bytes("keys", self.keys, KEY_BYTES * self.slots)'),
           tests("messages", "fields_of_the_wrong_kind")),
    Mutant("key set-up", "not of low order", "keys.py",
           never("any(is_low_order(key_of(message.keys, slot)) for slot in range(slots))"),
           tests("refusals", "key_of_low_order")),
    Mutant("key set-up", "not of low order in any slot", "keys.py",
           (("for slot in range(slots))", "for slot in range(1))"),),
           tests("refusals", "key_of_low_order")),
    Mutant("key set-up", "each slot has its own", "messages.py",
           (("return keys[KEY_BYTES * slot : KEY_BYTES * (slot + 1)]", "return keys[:KEY_BYTES]"),),
           tests("messages", "keys_of_slots_are_32_bytes_one_after_another")),
    Mutant("epoch-keys", "hash of all that was advertised", "keys.py",
           gone('total.update(len(item).to_bytes(4, "big") + item)'),
           tests("refusals", "silo_that_shows_two_silos_other_keys")),
    Mutant("epoch-order", "epochs only grow", "state.py", never("newest is not None and epoch <= newest[0]"),
           tests("refusals", "epochs_only_grow")),
    Mutant("epoch-order", "requests of the current epoch", "silo.py", never("current.epoch != head.epoch"),
           tests("refusals", "slot_of_an_epoch_that_is_over")),
    Mutant("epoch-order", "keys at hand are of the current epoch", "silo.py",
           (("if cached is not None and (cached.session, cached.epoch) == (head.session, head.epoch):",
             "if cached is not None:"),),
           tests("refusals", "process_whose_twin_made_new_keys")),
    Mutant("epoch-order", "keys of an older one are deleted", "state.py",
           (('PER_EPOCH = ("ckks_epoch", "ckks_secret", "ckks_slot")', 'PER_EPOCH = ("ckks_epoch", "ckks_slot")'),),
           tests("state", "new_epoch_deletes_old_keys_from_the_files")),
    Mutant("epoch-order", "keys of an older one are out of the log", "state.py",
           (("with self._store.forgetting() as db:\n            newest",
             "with self._store.change() as db:\n            newest"),),
           tests("state", "new_epoch_deletes_old_keys_from_the_files")),
    Mutant("keys-once", "two processes", "state.py", ((' AND epoch_hash IS NULL"', '"'),),
           tests("refusals", "keys_are_taken_once_by_two_processes")),
    Mutant("session", "others are forgotten", "silo.py", gone("self._state.forget_others(self._session)"),
           tests("state", "a_new_run_deletes_the_keys_of_others_and_keeps_their_epoch_numbers")),
    Mutant("session", "only others are forgotten", "state.py",
           (('f"DELETE FROM {table} WHERE session <> ?"', 'f"DELETE FROM {table} WHERE ? IS NOT NULL"'),),
           tests("state", "a_run_does_not_forget_itself")),
    # Rules of a silo: the manifest and the slot.
    Mutant("manifest", "rules about it are looked at", "silo.py",
           gone("check_manifest(manifest, self._rules, self._roster, tuple(ready.publics))"),
           tests("refusals", "manifest_that_breaks_a_rule_closes_the_slot")),
    Mutant("minimum", "silos with keys can take part", "silo.py",
           (("check_manifest(manifest, self._rules, self._roster, tuple(ready.publics))",
             "check_manifest(manifest, self._rules, self._roster, self._roster.silos)"),),
           tests("refusals", "cohort_with_too_few_keys")),
    Mutant("slot-once", "closed by a manifest", "silo.py",
           gone("self._state.spend(ready, slot, manifest, closed=True)"),
           tests("refusals", "manifest_that_breaks_a_rule_closes_the_slot")),
    Mutant("slot-once", "keys of a slot closed by a manifest are deleted", "state.py",
           (('            if closed:\n                db.execute("DELETE FROM ckks_secret" + THE_SLOT, key)\n', ""),),
           tests("forward_secrecy", "keys_of_a_closed_slot_are_gone")),
    Mutant("slot-once", "keys of a slot closed by a manifest are out of the log", "state.py",
           (("with self._store.forgetting() as db:\n            key = _key(ready, slot)\n            unused",
             "with self._store.change() as db:\n            key = _key(ready, slot)\n            unused"),),
           tests("forward_secrecy", "keys_of_a_closed_slot_are_gone")),
    Mutant("slot-once", "spent before the contribution", "silo.py",
           ((SPEND + "        digest", "        digest"),
            ("        rows = rows_of(", SPEND + "        rows = rows_of(")),
           tests("state", "slot_is_spent_on_disk_before_training_starts")),
    Mutant("slot-once", "never again", "silo.py",
           (("if self._state.slot(ready, manifest.slot) is not None:", "if False:"),
            (SPEND, "        if self._state.slot(ready, manifest.slot) is None:\n    " + SPEND)),
           tests("refusals", "slot_is_used_once")),
    Mutant("slot-once", "two processes", "state.py",
           ((" if used or not unused:", " if not unused:"),
            ('"INSERT INTO ckks_slot VALUES', '"INSERT OR REPLACE INTO ckks_slot VALUES')),
           tests("refusals", "slot_is_used_once_by_two_processes")),
    Mutant("slot-once", "of this epoch", "state.py", ((" if used or not unused:", " if used:"),),
           tests("refusals", "slot_of_an_epoch_that_is_over")),
    Mutant("slot-once", "closed while the contribution was computed", "state.py", ((" AND stage = 'spent'\"", '"'),),
           tests("refusals", "slot_closed_while_the_contribution_was_computed")),
    Mutant("slot-once", "closed for good", "silo.py", never('state.stage == "closed"'),
           tests("refusals", "opening_under_another_manifest")),
    # Rules of a silo: what it opens.
    Mutant("opened-unsent", "no ciphertext yet", "silo.py",
           (('if state is None or state.stage == "spent":', "if state is None:"),),
           tests("refusals", "opening_while_the_contribution_is_computed")),
    Mutant("open-once", "the slot says so", "silo.py",
           (('if state.stage == "opened":', "if False:"), (TAKE, f"keys = {LOOK}"), SLOT_KEYS),
           tests("refusals", "second_opening")),
    Mutant("open-once", "two processes", "state.py", ((" AND stage = 'encrypted'\"", '"'), KEYS_STAY),
           tests("refusals", "second_opening_by_two_processes")),
    Mutant("open-once", "noted before the part is computed", "silo.py",
           ((TAKE, f"keys = {LOOK}"),
            ("link = _link(keys.root,", "self._state.take_keys(ready, slot)\n        link = _link(keys.root,"),
            SLOT_KEYS),
           tests("kill", "part_that_fails_while_it_is_computed")),
    Mutant("open-once", "keys are deleted", "state.py", (KEYS_STAY,),
           tests("forward_secrecy", "a_thief_who_recorded_everything_reads_no_earlier_update")),
    Mutant("open-once", "keys are out of the log", "state.py",
           (("with self._store.forgetting() as db:\n            key = _key(ready, slot)\n            query",
             "with self._store.change() as db:\n            key = _key(ready, slot)\n            query"),),
           tests("forward_secrecy", "keys_of_an_opened_slot_are_gone")),
    Mutant("open-once", "a lattice key a sum", "silo.py",
           (("key, references = lattice.fresh_key(), ",
             'key, references = lattice.__dict__.setdefault("kept", lattice.fresh_key()), '),),
           tests("state", "keys_of_an_epoch")),
    Mutant("manifest", "the one that was encrypted under", "silo.py", never("digest != request.digest"),
           tests("refusals", "opening_under_another_manifest")),
    Mutant("survivors", "rules about them are looked at", "silo.py",
           gone("check_survivors(manifest, request.survivors, self._rules, tuple(ready.publics))"),
           tests("refusals", "survivors_that_break_a_rule_close_the_slot")),
    Mutant("survivors", "have keys", "silo.py",
           (("check_survivors(manifest, request.survivors, self._rules, tuple(ready.publics))",
             "check_survivors(manifest, request.survivors, self._rules, self._roster.silos)"),),
           tests("refusals", "survivor_without_keys")),
    Mutant("survivors", "lists of ids", "messages.py", gone('want_ids("survivors", silos)'),
           tests("refusals", "survivors_that_are_no_lists_of_ascending_ids")),
    Mutant("survivors", "the silo is one of them", "silo.py", never("self._silo not in survivors"),
           tests("refusals", "survivors_that_break_a_rule_close_the_slot")),
    Mutant("slot-once", "earlier slots are closed", "state.py",
           (("\" AND stage <> 'opened'\"", "\" AND stage = 'none'\""),),
           tests("forward_secrecy", "a_later_slot_closes_those_before_it")),
    Mutant("slot-once", "keys of earlier slots are deleted", "state.py",
           (('db.execute("DELETE FROM ckks_secret" + EARLIER, key)', "pass"),),
           tests("forward_secrecy", "a_later_slot_closes_those_before_it")),
    Mutant("one-list", "at all", "silo.py",
           gone("self._check_only_list(len(survivors), len(manifest.cohorts[cohort]))"),
           tests("refusals", "two_lists_of_one_slot_with_only_colluders_in_common")),
    Mutant("one-list", "more than half", "../parties/rules.py",
           (("return (cohort + colluders) // 2 + 1", "return (cohort + colluders) // 2"),),
           tests("refusals", "lists_of_which_a_slot_could_have_two")),
    Mutant("one-list", "colluders open both", "silo.py",
           (("only_list(cohort, self._rules.colluders)", "only_list(cohort, 0)"),),
           tests("refusals", "lists_of_which_a_slot_could_have_two")),
    Mutant("one-list", "of its own cohort", "silo.py",
           (("(len(survivors), len(manifest.cohorts[cohort]))",
             "(len(request.survivors[0]), len(manifest.cohorts[0]))"),),
           tests("refusals", "one_list_is_asked_of_a_silos_own_cohort")),
    Mutant("slot-once", "closed by a list", "silo.py", gone("self._state.close(ready, slot)"),
           tests("refusals", "survivors_that_break_a_rule_close_the_slot")),
    Mutant("slot-once", "keys of a slot closed by a list are deleted", "state.py",
           gone('db.execute("DELETE FROM ckks_secret" + THE_SLOT, _key(ready, slot))'),
           tests("forward_secrecy", "keys_of_a_closed_slot_are_gone")),
    Mutant("slot-once", "keys of a slot closed by a list are out of the log", "state.py",
           (("with self._store.forgetting() as db:\n            db.execute(\"UPDATE ckks_slot SET stage = 'closed'\"",
             "with self._store.change() as db:\n            db.execute(\"UPDATE ckks_slot SET stage = 'closed'\""),),
           tests("forward_secrecy", "keys_of_a_closed_slot_are_gone")),
    # Rules of a silo: the link of its noise chain.
    Mutant("noise link", "after as many as that list leaves out", "silo.py",
           (("missing = len(manifest.cohorts[cohort]) - len(survivors)", "missing = 0"),),
           tests("noise_links", "a_link_goes_with_one_part_and_one_list")),
    Mutant("noise link", "of the silo's own cohort", "silo.py",
           (("link = _link(keys.root, manifest, cohort, survivors)",
             "link = _link(keys.root, manifest, 0, request.survivors[0])"),),
           tests("noise_links", "each_cohort_counts_its_own_missing_silos")),
    Mutant("noise link", "root is on disk with the slot", "silo.py",
           ((".tobytes(), source.removable)", ".tobytes(), None)"),),
           tests("noise_links", "root_is_kept_until_the_slot_is_opened")),
    Mutant("noise link", "of the right length", "messages.py", gone('want_bytes("a link", self.link, 0, LINK_BYTES)'),
           tests("messages", "fields_of_the_wrong_kind")),
    # What hides: references, masks, noise.
    Mutant("reference", "of the manifest", "reference.py",
           (('_derive(digest, b"", b"reference",', '_derive(bytes(32), b"", b"reference",'),),
           tests("reference", "every_sum_has_a_reference_key_of_its_own")),
    Mutant("reference", "of the cohort", "reference.py",
           (('struct.pack(">II", cohort, bits)', 'struct.pack(">II", 0, bits)'),),
           tests("reference", "every_sum_has_a_reference_key_of_its_own")),
    Mutant("reference", "of the modulus", "reference.py",
           (('struct.pack(">II", cohort, bits)', 'struct.pack(">II", cohort, 0)'),),
           tests("reference", "every_sum_has_a_reference_key_of_its_own")),
    Mutant("reference", "of the manifest, as silos use it", "silo.py",
           (("reference_key(digest, cohort, lattice.bits)", "reference_key(bytes(32), cohort, lattice.bits)"),),
           tests("sums", "reference_follows_from_manifest_and_cohort")),
    Mutant("reference", "of the cohort, as silos use it", "silo.py",
           (("reference_key(digest, cohort, lattice.bits)", "reference_key(digest, 0, lattice.bits)"),),
           tests("sums", "reference_follows_from_manifest_and_cohort")),
    Mutant("reference", "uniform", "reference.py",
           (("drawn[drawn < self._ring.modulus]", "drawn % np.uint64(self._ring.modulus)"),),
           tests("reference", "the_largest_coefficients_occur")),
    Mutant("masks", "hide the key", "reference.py",
           (("total = ring.add(total, mask) if pair_sign(silo, peer) > 0 else ring.subtract(total, mask)", "pass"),),
           tests("reference", "a_share_shows_nothing_of_its_key")),
    Mutant("masks", "one adds, the other subtracts", "reference.py",
           (("if pair_sign(silo, peer) > 0 else", "if True else"),),
           tests("reference", "lower_id_adds")),
    Mutant("masks", "of the opening", "reference.py",
           (("_derive(agreement.with_peer(public), opening,", '_derive(agreement.with_peer(public), b"",'),),
           tests("reference", "both_silos_of_a_pair_have_the_same_key_and_nobody_else")),
    Mutant("masks", "of the modulus", "reference.py",
           (('struct.pack(">III", low, high, bits)', 'struct.pack(">III", low, high, 0)'),),
           tests("reference", "both_silos_of_a_pair_have_the_same_key_and_nobody_else")),
    Mutant("masks", "of the opening, as silos use it", "silo.py",
           (("Agreement(keys.agreement), others, opening, self._silo)",
             "Agreement(keys.agreement), others, bytes(32), self._silo)"),),
           tests("refusals", "lists_of_each_silos_own_that_name_each_other")),
    *(
        Mutant("masks", f"an opening is of its {field}", "messages.py",
               (("return digest_of(self.to_bytes())", f"return digest_of(Opening({values}).to_bytes())"),),
               tests("messages", "part_signed_for_something_else"))
        for field, values in (
            ("manifest", "bytes(32), self.cohort, self.survivors"),
            ("cohort", "self.digest, 0, self.survivors"),
            ("survivors", "self.digest, self.cohort, ()"),
        )
    ),
    Mutant("masks", "of the slot's keys", "silo.py",
           (("key_of(ready.publics[silo], slot)", "key_of(ready.publics[silo], 0)"),),
           tests("coordinator", "contribute_gets_the_bound_manifest")),
    Mutant("noise", "smudging", "summation.py", (("parameters.smudging, randomness)", "0.0, randomness)"),),
           tests("sums", "every_part_is_smudged_by_itself")),
    Mutant("noise", "all the smudging", "summation.py",
           (("parameters.smudging, randomness)", "0.9 * parameters.smudging, randomness)"),),
           tests("sums", "every_part_is_smudged_by_itself")),
    Mutant("noise", "smudging of each silo and slot alone", "silo.py",
           (("count = SecretRandomness(), ", "count = SecretRandomness(bytes(32)), "),),
           tests("sums", "smudging_is_of_each_silo_and_slot_alone")),
    Mutant("noise", "encryption noise in parts", "summation.py",
           (("noise = ring.add(cipher, ring.multiply(own, key.words))", BARE),),
           tests("sums", "every_part_has_encryption_noise_besides")),
    Mutant("noise", "enough smudging", "parameters.py", (("LEAST_SMUDGING = 64.0", "LEAST_SMUDGING = 32.0"),),
           tests("parameters", "every_choice")),
    Mutant("noise", "exact with nine deviations", "parameters.py", (("SAFETY = 9.0", "SAFETY = 8.5"),),
           tests("parameters", "every_choice")),
    Mutant("noise", "two encryptions a silo", "parameters.py", (("encryption = 2 *", "encryption = 1 *"),),
           tests("parameters", "every_choice")),
    Mutant("noise", "lower parts are signed", "packing.py",
           (("upper = (integers + (1 << (LOW_BITS - 1))) >> LOW_BITS", "upper = integers >> LOW_BITS"),),
           tests("packing", "wide_fields_are_cut_and_put_together_again")),
    # Secrets in a process.
    Mutant("secrets", "memory of each thread's own", "ring.py",
           (("self._local = threading.local()", 'self._local = type("Shared", (), {})()'),),
           tests("threads", "threads_do_not_read_each_others_words")),
    Mutant("secrets", "memory of each process' own", "ring.py",
           (('if getattr(self._local, "process", None) != os.getpid():',
             'if getattr(self._local, "process", None) is None:'),),
           tests("secrets", "ring_works_in_a_forked_process_and_stays_apart")),
    *(
        Mutant("secrets", f"memory is cleared after {what}", "ring.py",
               ((before + "self._memory().clear()", before + "pass"),),
               tests("secrets", "no_secret_stays_in_the_memory_file"))
        for what, before in (
            ("a fresh key", "words = self._words(secret, DEGREE).copy()\n        "),
            ("a key kept before", "self._load(secret, self.checked(words))\n        "),
            ("encryption", "together, give the key.\n        "),
        )
    ),
    Mutant("secrets", "lattice keys are not pickled", "ring.py",
           (('raise TypeError("a secret key cannot be pickled or copied")', "return object.__reduce__(self)"),),
           tests("secrets", "keys_are_not_copied")),
    Mutant("secrets", "keys of a slot are not pickled", "state.py",
           (('raise TypeError("a slot\'s private keys cannot be pickled or copied")',
             "return object.__reduce__(self)"),),
           tests("secrets", "keys_are_not_copied")),
    Mutant("secrets", "moduli that are secure", "ring.py", (("or bits > min(", "or bits > max("),),
           tests("secrets", "moduli_that_are_too_large")),
    # Checks of the coordinator.
    Mutant("coordinator: keys", "its own keys", "coordinator.py", ((".silo != silo:", ".silo is None:"),),
           tests("messages", "key_of_another_silo_as_ones_own")),
    Mutant("coordinator: keys", "at least t", "coordinator.py",
           gone('desk.require(len(advertisements), "made keys", "keys")'),
           tests("coordinator", "too_few_silos_make_keys")),
    Mutant("coordinator: keys", "new ones after an abort", "coordinator.py",
           (("ABORTS_BEFORE_NEW_KEYS = 1", "ABORTS_BEFORE_NEW_KEYS = 2"),),
           tests("coordinator", "silo_missing_at_open")),
    Mutant("coordinator: keys", "sent to who has none", "coordinator.py",
           (("later if silo in epoch.delivered else first", "later"),),
           tests("coordinator", "keys_are_sent_until_a_silo_has_them")),
    Mutant("coordinator: replies", "long enough", "coordinator.py", never("len(reply) <= self.nbytes"),
           tests("messages", "silo_that_is_not_believed_at_encrypt_is_not_in_the_sum")),
    Mutant("coordinator: replies", "signed", "coordinator.py",
           (("if named != silo or not statement_holds(self._desk.roster.public(silo), statement, signature):",
             "if named != silo:"),),
           tests("messages", "ciphertext_signed_for_something_else")),
    Mutant("coordinator: replies", "in the silo's own name", "coordinator.py",
           (("if named != silo or not statement_holds(", "if not statement_holds("),),
           tests("messages", "reply_that_names_another_silo")),
    Mutant("coordinator: replies", "parts signed for this opening", "coordinator.py",
           gone('self._check_signed(silo, message.silo, statement, message.signature, "part")'),
           tests("messages", "part_signed_for_something_else")),
    Mutant("coordinator: replies", "coefficients below the modulus", "coordinator.py",
           gone("self.ring.checked(coefficients(part))"),
           tests("messages", "coefficients_that_are_none_though_signed")),
    Mutant("coordinator: replies", "all coefficients before any is added", "coordinator.py",
           (("checked(coefficients(part))\n        for part in slices:\n", "checked(coefficients(part))\n"),),
           tests("coordinator", "nothing_is_added_of_ciphertexts_with_one_bad_coefficient")),
    Mutant("coordinator: replies", "whole coefficients", "packing.py", never("len(data) % width"),
           tests("packing", "bytes_that_are_no_whole_coefficients")),
    Mutant("coordinator: encrypt", "minimum", "coordinator.py", never("len(present) < least"),
           tests("coordinator", "minimum_of_one_cohort_not_reached")),
    Mutant("coordinator: open", "every part", "coordinator.py", never("missing"),
           tests("coordinator", "every_silo_of_every_cohort_has_to_open")),
    Mutant("coordinator: open", "a link only where noise can be removed", "coordinator.py",
           never("message.link and missing >= manifest.most_missing(cohort)"),
           tests("noise_links", "link_of_a_silo_without_excess_counts_as_no_part")),
    Mutant("coordinator: open", "values near whole numbers", "summation.py",
           (("if np.abs(values - whole).max() > FAR_OFF or np", "if np"),),
           tests("sums", "values_that_are_no_sum_are_refused")),
    Mutant("coordinator: open", "values within their fields", "summation.py",
           ((" or np.abs(whole).max() >= 2.0 ** (parameters.width + 1):", ":"),),
           tests("sums", "values_that_are_no_sum_are_refused")),
)  # fmt: skip


def main() -> int:
    # Plugins take longer to load than most of these tests to run, and none of them needs one.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    verdicts = engine.judge(MUTANTS)
    print(engine.table(verdicts))
    return 0 if all(verdict.killed for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
