"""Take each check of a silo's policy out of a copy of the package and see a named test fail:

    python -m tests.federation.policy_mutants

The mechanism is that of tests/secagg/rule_mutants.py. Exits with 1 where one survives or its text is no longer there.
"""

from __future__ import annotations

import sys
from typing import Any

from tests.secagg import rule_mutants

__all__ = ["MUTANTS", "rule_mutants"]

never, gone = rule_mutants.never, rule_mutants.gone


def changed(old: str, new: str) -> tuple[tuple[str, str], ...]:
    return ((old, new),)


def refused(rule: str, *changes: str) -> tuple[str, ...]:
    """The test of a rule's violation, or of what a round asks for."""
    names = [f"test_policy_rules::test_a_violation_is_refused_by_its_rule[{rule}]"]
    return (*names, *(f"test_policy_rules::test_a_limit_holds_for_each_round_too[{each}]" for each in changes))


def mutant(rule: str, what: str, file: str, changes: Any, *tests: str) -> Any:
    return rule_mutants.Mutant(rule, what, file, changes, tests, "federation")


def approvals(*names: str) -> tuple[str, ...]:
    return tuple(f"test_approvals::test_{name}" for name in names)


def forged(*names: str) -> tuple[str, ...]:
    return tuple(f"test_forged_sums::test_{name}" for name in names)


def followed(*names: str) -> tuple[str, ...]:
    return tuple(f"test_followed_model::test_{name}" for name in names)


MUTANTS = (
    # Limits, at joining
    mutant("aggregations", "of a run", "policy.py", never("config.aggregation not in self.aggregations"),
           *refused("aggregations")),
    mutant("trusts", "of a run and of rounds", "policy.py", never("trust not in self.trusts"), *refused("trusts")),
    mutant("epsilon", "of a run", "policy.py",
           never("config.dp_epsilon is not None and config.dp_epsilon > self.epsilon"), *refused("epsilon")),
    mutant("delta", "of a run and of rounds", "policy.py", never("delta > self.delta"), *refused("delta")),
    mutant("colluders", "of a run and of rounds", "policy.py", never("colluders < self.colluders"),
           *refused("colluders")),
    mutant("min_cohort", "at all", "policy.py", never("least < math.ceil(self.min_cohort * size)"),
           *refused("min_cohort")),
    mutant("min_cohort", "the cohort that falls furthest short", "policy.py",
           changed("size, least = min(sizes, key=lambda each: each[1] - math.ceil(self.min_cohort * each[0]))",
                   "size, least = sizes[0]"),
           "test_federation_policy::test_each_cohort_is_held_against_its_own_size"),
    mutant("min_silos", "at all", "policy.py", never("fewest < self.min_silos"), *refused("min_silos")),
    mutant("min_silos", "survivors", "silo.py",
           changed("minimum=policy.min_silos, minimum_fraction", "minimum_fraction"),
           "test_federation_policy::test_sums_are_opened_with_the_policy_s_fewest_silos"),
    mutant("min_block", "at all", "policy.py", never("smallest < least"), *refused("min_block")),
    mutant("min_block", "with colluders in it", "policy.py",
           changed("least_block(config.colluders, schedule.moments)", "0"),
           "test_federation_blocks::test_a_policy_counts_colluders_out_of_a_block"),
    mutant("min_threshold", "at all", "policy.py", never("threshold < self.min_threshold"), *refused("min_threshold")),
    mutant("channels", "at all", "policy.py", never("not names <= set(self.channels)"), *refused("channels")),
    mutant("models", "where some are listed", "policy.py",
           changed('(self.models or self.approval == "standing")', '(self.approval == "standing")'),
           "test_federation_policy::test_listed_networks_bind_also_what_is_approved"),
    mutant("models", "where none is and nobody looks", "policy.py",
           changed('(self.models or self.approval == "standing")', "self.models"),
           "test_policy_rules::test_with_standing_approval_networks_and_code_have_to_be_listed"),
    mutant("rotating_cohorts", "at all", "policy.py",
           never("cohorts_change(config) and not self.rotating_cohorts"),
           *refused("rotating_cohorts")),
    mutant("simulated", "at all", "policy.py", never("words is not None"), *refused("simulated")),
    # Limits, in each round
    mutant("trusts", "of rounds", "policy.py",
           gone("yield from self._privacy_refusals(terms.trust, terms.delta, terms.colluders)"),
           *refused("trusts", "trusts-changes0", "delta-changes1", "colluders-changes2")[1:]),
    mutant("min_silos", "of rounds", "policy.py", gone("yield from self._size_refusals(sizes, manifest.threshold)"),
           *refused("min_silos", "min_cohort-changes3", "min_silos-changes4", "min_threshold-changes5")[1:]),
    mutant("channels", "of the policy, in rounds", "policy.py", gone("yield from self._channel_refusals(names)"),
           *refused("channels", "channels-changes6")[1:]),
    mutant("channels", "of the joined run", "session.py", never("leaving"),
           "test_policy_rules::test_a_round_has_no_channel_that_the_joined_run_has_not"),
    mutant("linear", "at all", "policy.py",
           never('terms.trust == "distributed" and not names <= LINEAR_CHANNELS'), *refused("linear")),
    # Code, records, task, plan
    mutant("code", "listed", "admission.py",
           changed("elif accepted and self.code.hex() not in accepted:", "elif False:"), *refused("code")),
    mutant("code", "none is listed and nobody looks", "admission.py",
           changed('elif not accepted and self.policy.approval == "standing":', "elif False:"),
           "test_policy_rules::test_with_standing_approval_networks_and_code_have_to_be_listed"),
    mutant("code", "changed under a running silo", "admission.py", never("installed_digest() != self.code"),
           *approvals("an_approval_is_for_the_code_it_was_given_for")),
    mutant("code", "approved for other code", "admission.py", never("pins is None or pins.code != self.code"),
           *approvals("an_approval_is_for_the_code_it_was_given_for")),
    mutant("data", "at joining", "admission.py", gone("yield from self.policy.data_refusals(self.folder)"),
           *refused("data")),
    mutant("data", "in each round", "session.py", gone("self._policy.check_data(self._folder)"),
           "test_policy_rules::test_records_that_move_away_between_rounds_are_not_read"),
    mutant("data", "files, not only their folder", "policy.py",
           changed("for path in (read, read / TRAIN_FILE, read / HOLDOUT_FILE):", "for path in (read,):"),
           "test_policy_rules::test_records_that_move_away_between_rounds_are_not_read"),
    mutant("data", "a link is not what it points to", "policy.py",
           changed("Path(os.path.normpath(folder.resolve() / self.data))", "(folder / self.data).resolve()"),
           *refused("data")),
    mutant("task", "at all", "admission.py",
           changed("        if request.task != self.task:\n", "        if False:\n"), *refused("task")),
    mutant("plan", "at all", "admission.py",
           never('request.config.trust != "none" and not request.planned.get("train")'), *refused("plan")),
    # The officer's word
    mutant("denied", "at all", "admission.py", never("decision is not None and decision.verdict == DENIED"),
           *refused("denied")),
    mutant("denied", "at each stage", "silo.py", gone("self._session.check_approval()"),
           *approvals("a_withdrawn_approval_ends_the_run_at_its_next_stage")),
    mutant("approval", "at all", "admission.py", changed("elif decision is None:", "elif False:"),
           *refused("approval")),
    mutant("roster", "silos", "admission.py",
           changed("if joined or approved.coordinator", "if approved.coordinator"), *refused("roster")),
    mutant("roster", "the coordinator", "admission.py",
           changed("if joined or approved.coordinator != self.roster.coordinator:", "if joined:"),
           "test_policy_rules::test_a_new_silo_in_the_roster_is_told_from_one_that_left"),
    mutant("approval", "of a request that is kept", "approvals.py",
           never('not self._connection.execute("SELECT 1 FROM asked_runs WHERE digest = ?", (digest,)).fetchone()'),
           *approvals("what_nobody_asked_for_cannot_be_decided")),
    mutant("approval", "the last decision counts", "approvals.py",
           changed('"ORDER BY number DESC LIMIT 1"', '"ORDER BY number LIMIT 1"'),
           *approvals("decisions_are_added_and_never_changed")),
    mutant("approval", "a body that is the digest's", "approvals.py",
           changed("return request if request.digest() == digest else None", "return request"),
           *approvals("a_body_that_is_not_the_digest_s_is_no_run")),
    mutant("approval", "a bounded number", "approvals.py",
           changed("MAX_UNDECIDED - 1)", "100 * MAX_UNDECIDED)"), *approvals("a_coordinator_cannot_flood_the_store")),
    mutant("approval", "what was joined goes last", "approvals.py",
           changed("ORDER BY joined DESC, asked DESC", "ORDER BY asked DESC"),
           *approvals("a_running_session_can_be_denied_however_many_are_asked_for_after_it")),
    mutant("approval", "what was joined is marked", "silo.py", gone("self._admission.note_joined(request)"),
           *approvals("a_running_session_can_be_denied_however_many_are_asked_for_after_it")),
    mutant("approval", "only this federation's task is kept", "admission.py",
           changed("self.approvals is not None and request.task == self.task", "self.approvals is not None"),
           *approvals("a_task_of_another_federation_is_not_kept")),
    mutant("approval", "a bounded size", "join.py", never("len(message) > MAX_REQUEST_BYTES"),
           *approvals("a_request_that_nobody_signed_is_not_kept")),
    mutant("approval", "enough digits", "approvals.py",
           changed("least = SHOWN_DIGITS if deciding else LEAST_DIGITS", "least = LEAST_DIGITS"),
           *approvals("a_run_is_found_by_the_start_of_its_digest")),
    mutant("approval", "of the coordinator's code", "join.py",
           changed("self.config.digest(), self.task, planned, self.code]", "self.config.digest(), self.task, planned]"),
           *approvals("what_was_approved_does_not_cover_anything_else")),
    # Rounds
    mutant("session", "at all", "session.py", never("manifest.session != self._request.session"), *refused("session")),
    mutant("run", "its configuration", "session.py", never("manifest.config_hash != self._digest"), *refused("run")),
    mutant("rounds", "at all", "session.py",
           never('terms.trust == "none" and manifest.phase in TRAINING and manifest.round >= config.rounds'),
           *refused("rounds")),
    mutant("terms", "no step", "terms.py", never("terms.steps < 1"), *refused("terms")),
    mutant("grid", "too coarse", "terms.py", never("largest > GRID_SHARE * terms.delta"), *refused("grid")),
    mutant("cohorts", "a second one", "session.py",
           never("self._less_departed(before) != asked"), *refused("cohorts")),
    mutant("cohorts", "less those that left", "session.py",
           changed("list(still_enrolled(cohort, self._blocks(), self._admission.roster))", "cohort"),
           "test_malicious_coordinator::test_a_round_that_was_asked_for_goes_on_without_a_silo_that_was_removed"),
    mutant("blocks", "at all", "session.py",
           never("manifest.blocks != blocks or (self._config.block > 1 and not blocks)"), *refused("blocks")),
    mutant("blocks", "of another roster", "session.py",
           never("self._config.block > 1 and not self._places"),
           "test_federation_blocks::test_a_run_of_other_silos_than_the_roster_has_no_blocks"),
    mutant("min_block", "made of those of other runs", "policy.py",
           changed("elif least > 1 and config.block != block_size(config.block):",
                   "elif False:"),
           "test_federation_blocks::test_a_policy_counts_colluders_out_of_a_block"),
    mutant("blocks", "where no block is whole", "session.py",
           changed(" or (self._config.block > 1 and not blocks)", ""),
           "test_federation_blocks::test_a_cohort_of_no_whole_block_is_refused"),
    mutant("blocks", "of a silo that left", "blocks.py",
           changed("if silo in enrolled and silo not in broken)", "if silo in enrolled)"),
           "test_federation_blocks::test_a_silo_that_is_removed_takes_its_block_along"),
    mutant("one_model", "at all", "session.py",
           never('self._asked_first(manifest, "model", manifest.model_hash) != manifest.model_hash'),
           *refused("one_model")),
    mutant("model", "named by the manifest", "session.py",
           never("manifest.model_hash != hashlib.sha256(attachment).digest()"), *refused("model")),
    mutant("initial_model", "at all", "session.py", never("not is_close(model, own)"), *refused("initial_model")),
    mutant("initial_model", "the approved one", "session.py",
           never("approved is not None and start_hash(own) != approved"),
           *approvals("an_approved_model_is_the_one_round_0_starts_from")),
    mutant("initial_model", "within rounding", "initial_model.py",
           changed("ROUNDING = 1e-5", "ROUNDING = 1.0"),
           "test_outflow::test_last_bits_may_differ_between_machines_and_nothing_else"),
    # Models that follow from opened sums
    mutant("proved_models", "at all", "policy.py",
           never('self.proved_models and not (config.prove_models and config.aggregation == "secagg")'),
           *refused("proved_models")),
    mutant("proof", "of what is asked for", "session.py", gone("self.followed.check(manifest, model)"),
           *forged("a_model_is_not_taken_from_the_coordinator")),
    mutant("proof", "the round's turn", "followed_model.py", never("self._taken != needed"),
           *forged("no_round_is_asked_for_out_of_turn")),
    mutant("proof", "a tag is asked for", "followed_model.py",
           never("manifest.phase in PROVED_PHASES and not is_tagged(manifest)"),
           *forged("a_sum_that_could_not_be_shown_to_anybody_is_not_made")),
    mutant("proof", "a key to tag with", "followed_model.py",
           never("is_tagged(manifest) and self._keys.key is None"),
           *forged("without_the_run_s_key_nothing_is_contributed_or_taken")),
    mutant("proof", "the model", "followed_model.py",
           changed("not is_close(model, self.model) or (model.records", "(model.records"),
           *forged("a_model_is_not_taken_from_the_coordinator", "a_mask_is_not_taken_from_the_coordinator")),
    mutant("proof", "the number of records", "followed_model.py",
           changed(" or (model.records != self.model.records and not counting)", ""),
           *forged("how_many_records_there_are_is_not_taken_from_the_coordinator")),
    mutant("proof", "terms and channels", "followed_model.py",
           changed("(self._check_census if counting else self._check_terms)(manifest)",
                   "counting and self._check_census(manifest)"),
           *forged("channels_are_those_of_the_run")),
    mutant("proof", "the phase", "followed_model.py", never("manifest.phase != phase"),
           *forged("another_phase_of_the_round_is_refused")),
    mutant("proof", "the clip", "followed_model.py",
           never('terms.trust != "none" and not _close(terms.clip, self._step.clip.value)'),
           *forged("a_clip_is_not_taken_from_the_coordinator")),
    mutant("proof", "the channels", "followed_model.py",
           never("len(asked) != len(expected) or not all(map(_same_channel, asked, expected))"),
           *forged("channels_are_those_of_the_run")),
    mutant("proof", "the channels' ranges", "followed_model.py",
           changed("names == (expected.name, expected.length, expected.bits) and _close(asked.limit, expected.limit)",
                   "names == (expected.name, expected.length, expected.bits)"),
           *forged("channels_are_those_of_the_run")),
    mutant("proof", "sums of this session", "followed_model.py",
           never("manifest.session != self._request.session"),
           *forged("sums_that_do_not_come_next_are_refused")),
    mutant("proof", "an upgraded coordinator", "followed_model.py",
           changed("request.run_digest().hex()", "request.digest().hex()"),
           *followed("a_coordinator_that_was_upgraded_goes_on_with_the_run")),
    mutant("proof", "how records are counted", "followed_model.py",
           changed("self._check_channels(manifest, ModelStep.census_channels(noise))", "pass"),
           *followed("how_records_are_counted_is_not_the_coordinator_s_to_choose")),
    mutant("proof", "too few that can answer", "sums.py", changed("if not short:", "if True:"),
           *followed("nobody_is_charged_while_too_few_silos_could_answer")),
    mutant("proof", "a lost key", "model_proofs.py",
           changed("self._keyed -= {silo for silo, taken in positions.items() if taken < 0}", "pass"),
           *followed("a_silo_that_lost_its_key_is_given_it_again")),
    mutant("proof", "sums that come next", "followed_model.py",
           never("(manifest.phase, manifest.round) != (phase, round)"),
           *forged("sums_that_do_not_come_next_are_refused")),
    mutant("proof", "sums of the phase that comes next", "followed_model.py",
           changed("(manifest.phase, manifest.round) != (phase, round)", "manifest.round != round"),
           *forged("sums_that_do_not_come_next_are_refused")),
    mutant("proof", "sums with a tag", "followed_model.py", never("not is_tagged(manifest)"),
           *forged("sums_that_do_not_come_next_are_refused")),
    mutant("proof", "sums of the run's rounds", "followed_model.py", never("round >= self._schedule.rounds"),
           *followed("no_sum_comes_after_the_last")),
    mutant("proof", "tags at all", "followed_model.py", gone("self._check_tags(shown)"),
           *forged("words_that_silos_did_not_send_are_refused")),
    mutant("proof", "tags of each cohort", "sum_proof.py",
           changed("all(self._sum_holds(key, each) for each in self.sums)",
                   "all(self._sum_holds(key, each) for each in self.sums[:1])"),
           *forged("words_that_silos_did_not_send_are_refused")),
    mutant("proof", "tags of these silos", "sum_proof.py",
           changed("opened.cohort, opened.silos) and", "opened.cohort, self.manifest.cohorts[opened.cohort]) and"),
           *forged("a_sum_is_of_the_silos_it_names")),
    mutant("proof", "links of noise", "sum_proof.py",
           changed(" and not self._false_links(opened)", ""),
           *forged("links_of_noise_are_those_that_silos_revealed")),
    mutant("proof", "the weights of the start", "followed_model.py",
           never("not np.abs(weights - self._step.start).max(initial=0.0) <= ROUNDING"),
           *forged("the_weights_that_a_run_starts_from_are_not_the_coordinator_s_to_choose")),
    mutant("proof", "how records are used", "followed_model.py",
           gone('self._check_use(terms, exploring=phase == "explore")'),
           *forged("records_are_used_as_the_joined_run_says")),
    mutant("proof", "no census", "followed_model.py", never("not self._counted"),
           *forged("where_the_number_of_records_is_public_there_is_no_census")),
    mutant("proof", "a key to check with", "followed_model.py", never("key is None"),
           *forged("without_the_run_s_key_nothing_is_contributed_or_taken")),
    mutant("proof", "what another process took", "followed_model.py",
           never("checkpoint_stamp(self._folder) != self._stamp"),
           *followed("what_another_process_took_is_seen")),
    mutant("proof", "what is on disk counts", "followed_model.py",
           changed("self._load()  # what is on disk is what counts", "pass"),
           *followed("what_fails_half_way_leaves_the_model_as_it_was")),
    mutant("proof", "the last sum once more", "followed_model.py", never("name == self._last"),
           *followed("the_last_sum_once_more_changes_nothing")),
    mutant("proof", "another run's model", "followed_model.py",
           changed("request.run_digest().hex()", '"run"'),
           *followed("another_run_is_followed_from_its_beginning")),
    mutant("proof", "of a run that proves its models", "session.py", never("self._run_keys is None"),
           *followed("a_run_that_proves_nothing_has_no_such_stages")),
    mutant("proof", "tags only where the run has them", "session.py",
           changed("untagged(manifest) if self._run_keys is not None and is_tagged(manifest) else manifest",
                   "untagged(manifest)"),
           *followed("a_run_that_proves_nothing_has_no_tags")),
    mutant("proof", "sums of enough silos", "sum_proof.py", changed(" or len(silos) < max(1, least)", ""),
           "test_sum_proof::test_what_contradicts_the_manifest_is_malformed"),
    mutant("proof", "of a cohort's own silos", "sum_proof.py", changed(" or not set(silos) <= set(members)", ""),
           "test_sum_proof::test_what_contradicts_the_manifest_is_malformed"),
    # What the coordinator learns
    mutant("names", "at joining only", "policy_rules.py",
           changed("if joining and type(error)", "if type(error)"),
           "test_policy_rules::test_the_coordinator_learns_rules_while_joining_and_no_later[session]"),
    mutant("names", "of the enumeration only", "policy_rules.py",
           changed("type(error) is PolicyRefusal and rule in RULES", "type(error) is PolicyRefusal and rule"),
           "test_policy_rules::test_names_that_may_travel_are_those_of_the_enumeration"),
)  # fmt: skip


def main() -> int:
    verdicts = rule_mutants.judge(MUTANTS)
    print(rule_mutants.table(verdicts))
    return 0 if all(verdict.killed for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
