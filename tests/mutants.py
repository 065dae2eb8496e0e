"""Sabotage on purpose: a promise counts once a test can fail for it.

`python tests/mutants.py [name ...]` lays a copy of the package and its tests
aside, breaks one line there at a time and runs the tests that should notice.
A mutant that survives is a fault of the tests. With all of them it takes
about a quarter of an hour; nothing is changed here.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 300  # seconds for one run of pytest
SURVIVED = "SURVIVED"


class Mutant(NamedTuple):
    """One sabotage, and the tests that should notice it."""

    name: str
    file: str  # in instructft/
    old: str  # stands there exactly once
    new: str
    tests: str  # a file in tests/
    words: str  # which of them: pytest's -k


MUTANTS = [
    # what the loss sees
    Mutant(
        "mask-off-by-one",
        "masking.py",
        "return [IGNORE] * answer_start + token_ids[answer_start:]",
        "return [IGNORE] * -~answer_start + token_ids[answer_start + 1 :]",
        "test_text.py",
        "test_labels",
    ),
    Mutant(
        "end-token-not-in-the-loss",
        "masking.py",
        "token if counts else IGNORE",
        "token if counts and token != tokenizer.eos_token_id else IGNORE",
        "test_text.py",
        "golden",
    ),
    Mutant(
        "every-turn-in-the-loss",
        "masking.py",
        "token if counts else IGNORE",
        "token",
        "test_text.py",
        "golden",
    ),
    Mutant(
        "end-token-outside-the-markers",
        "models.py",
        "{{- message['content'] + '<|im_end|>' -}}\n"
        "{%- endgeneration -%}\n{{- '\\\\n' -}}",
        "{{- message['content'] -}}\n"
        "{%- endgeneration -%}\n{{- '<|im_end|>\\\\n' -}}",
        "test_models.py",
        "answers_in_words",
    ),
    Mutant(
        "user-turns-inside-the-markers",
        "models.py",
        "{%- if message['role'] == 'assistant' -%}",
        "{%- if message['role'] in ('user', 'assistant') -%}",
        "test_models.py",
        "answers_in_words",
    ),
    Mutant(
        "pad-is-the-end-token",
        "models.py",
        'tokenizer.pad_token = "<|endoftext|>"',
        "tokenizer.pad_token = tokenizer.eos_token",
        "test_models.py",
        "cache_is_of_this_code",
    ),
    Mutant(
        "digits-not-set-apart",
        "models.py",
        "            pre_tokenizers.Digits(individual_digits=True),\n",
        "",
        "test_models.py",
        "cache_is_of_this_code",
    ),
    Mutant(
        "another-model-file-converted",
        "models.py",
        "if found != GGUF_SHA256:",
        "if not found:",
        "test_models.py",
        "another_file",
    ),
    # from instances to messages
    Mutant(
        "input-before-the-instruction",
        "formatting.py",
        'return f"{instruction}\\n\\n{given}" if given else instruction',
        'return f"{given}\\n\\n{instruction}" if given else instruction',
        "test_text.py",
        "where_the_input_stands",
    ),
    Mutant(
        "text-outside-the-turns",
        "formatting.py",
        "if text[end:].strip():",
        "if not found:",
        "test_forms.py",
        "no_chatml",
    ),
    Mutant(
        "marker-inside-a-turn",
        "formatting.py",
        'if marker in message["role"] + message["content"]:',
        'if marker in message["role"]:',
        "test_forms.py",
        "chatml or marker",
    ),
    # rows and files
    Mutant(
        "bad-lines-left-out-in-silence",
        "instance.py",
        "if problems:\n        raise BadRows(path, problems, rows)",
        "if not rows:\n        raise BadRows(path, problems, rows)",
        "test_instance.py",
        "bad_line or bad_instance",
    ),
    Mutant(
        "append-onto-a-torn-row",
        "instance.py",
        'line = line if file.read(1) == b"\\n" else b"\\n" + line',
        "file.read(1)",
        "test_instance.py",
        "torn_line",
    ),
    Mutant(
        "damaged-archive-read",
        "sources.py",
        "if (found := _sha256(path)) != wanted.sha256:",
        "if not (found := _sha256(path)):",
        "test_sources.py",
        "archive_damaged",
    ),
    # the gate
    Mutant(
        "lost-rows-passed",
        "preflight.py",
        "            count == rows,",
        "            count <= rows,",
        "test_preflight.py",
        "dropped_by_max_length or fewer_rows",
    ),
    Mutant(
        "cut-rows-passed",
        "preflight.py",
        "found.append(WHOLE)",
        "pass",
        "test_preflight.py",
        "test_row_cut",
    ),
    Mutant(
        "all-masked-row-passed",
        "preflight.py",
        "ok=count > 0 and teaches.ok",
        "ok=count > 0",
        "test_preflight.py",
        "all_masked_row",
    ),
    Mutant(
        "loss-on-everything-passed",
        "preflight.py",
        "0 < share < 1,",
        "0 < share <= 1,",
        "test_preflight.py",
        "loss_on_everything",
    ),
    Mutant(
        "wrong-end-token-passed",
        "preflight.py",
        "            tokenizer.eos_token_id in stops,",
        "            tokenizer.eos_token_id is not None,",
        "test_preflight.py",
        "wrong_tokenizer_eos",
    ),
    Mutant(
        "answers-that-do-not-stop-passed",
        "preflight.py",
        "elif not stopped or self._template.stops_early(marked):",
        "elif self._template.stops_early(marked):",
        "test_preflight.py",
        "end_in_its_markers",
    ),
    Mutant(
        "answers-that-stop-early-passed",
        "preflight.py",
        "elif not stopped or self._template.stops_early(marked):",
        "elif not stopped:",
        "test_preflight.py",
        "end_token_inside_an_answer",
    ),
    Mutant(
        "white-space-before-answers-passed",
        "preflight.py",
        "found.append(STARTS)",
        "pass",
        "test_preflight.py",
        "starts_with_white_space",
    ),
    Mutant(
        "two-openings-passed",
        "preflight.py",
        "twice = ids and ids[:1] == ids[1:2] and ids[0] in self._special",
        "twice = ids and ids[:1] == ids[1:2] == ids[2:3]",
        "test_preflight.py",
        "two_openings",
    ),
    Mutant(
        "other-labels-in-the-batches-passed",
        "preflight.py",
        "return int((found != wanted).sum())",
        "return 0",
        "test_preflight.py",
        "masks_anew",
    ),
    Mutant(
        "batches-of-columns-never-read",
        "preflight.py",
        "rows = trainer._remove_unused_columns(trainer.train_dataset)",
        "rows = trainer.train_dataset",
        "test_preflight.py",
        "collator_of_old",
    ),
    Mutant(
        "pad-as-the-end-passed",
        "preflight.py",
        "and not ends & {pad, model.config.pad_token_id, unread},",
        "and not ends & {unread},",
        "test_preflight.py",
        "pads_with_its_end",
    ),
    Mutant(
        "new-tokens-never-learnt-passed",
        "preflight.py",
        "not fresh or _embedding_trained(model),",
        "True,",
        "test_preflight.py",
        "new_token",
    ),
    Mutant(
        "every-stop-taken-for-an-end",
        "preflight.py",
        "        ends |= stops.intersection(marked)",
        "        ends |= stops",
        "test_preflight_families.py",
        "ends_no_row",
    ),
    Mutant(
        "wrapped-packing-passed",
        "preflight.py",
        'args.packing_strategy == "bfd"',
        'args.packing_strategy in ("bfd", "wrapped")',
        "test_preflight.py",
        "packing_that_mixes_rows",
    ),
    Mutant(
        "half-a-checkpoint-passed",
        "preflight.py",
        'missing = lacks(wanted) if wanted else ""',
        'missing = ""',
        "test_preflight.py",
        "half_a_checkpoint",
    ),
    Mutant(
        "too-little-memory-passed",
        "preflight.py",
        "        needed < there,",
        "        True,",
        "test_preflight.py",
        "too_little_memory",
    ),
    Mutant(
        "optimizer-without-states",
        "preflight.py",
        "_state_bytes(args.optim.value, p)",
        "_state_bytes(str(args.optim), p)",
        "test_preflight.py",
        "optimizers_share",
    ),
    # checkpoints
    Mutant(
        "marker-before-the-files",
        "checkpoints.py",
        "def on_save(self, args, state, control, **kwargs):\n"
        "            if state.is_world_process_zero:\n",
        "def on_step_end(self, args, state, control, **kwargs):\n"
        "            if control.should_save:\n"
        "                os.makedirs(\n"
        '                    f"{args.output_dir}/checkpoint-"\n'
        '                    f"{state.global_step}", exist_ok=True)\n',
        "test_checkpoints.py",
        "each_save_is_marked",
    ),
    Mutant(
        "marker-ignored",
        "checkpoints.py",
        'return f"{folder}: no file {MARKER}: it was not saved to its end"',
        'return ""',
        "test_checkpoints.py",
        "no_marker or passes_over",
    ),
    Mutant(
        "marker-ignored-on-resume",
        "checkpoints.py",
        "        if not fault:",
        '        if not fault or "no file" in fault:',
        "test_checkpoints.py",
        "passes_over or nothing_whole",
    ),
    Mutant(
        "changed-bytes-unseen",
        "checkpoints.py",
        "if _sha256(path) != sha256:",
        "if not sha256:",
        "test_checkpoints.py",
        "each_fault",
    ),
    Mutant(
        "optimizer-not-needed",
        "checkpoints.py",
        '    "optimizer.pt",\n',
        "",
        "test_checkpoints.py",
        "needed_file or weights_alone",
    ),
    Mutant(
        "checkpoints-by-name-not-number",
        "checkpoints.py",
        "steps[int(number[1])] = path",
        "steps[number[1]] = path",
        "test_checkpoints.py",
        "in_numbers",
    ),
    # figures before and after
    Mutant(
        "mean-of-means",
        "evaluate.py",
        "total += losses.double().sum().item()\n"
        "                count += len(losses)",
        "total += losses.double().mean().item()\n                count += 1",
        "test_evaluate.py",
        "mean_over_tokens",
    ),
    Mutant(
        "answers-padded-on-the-right",
        "evaluate.py",
        'padding_side="left",',
        'padding_side="right",',
        "test_evaluate.py",
        "in_a_batch",
    ),
    Mutant(
        "dropout-left-on",
        "evaluate.py",
        'type(module).__module__.startswith("bitsandbytes")',
        "training",
        "test_evaluate.py",
        "dropout",
    ),
    Mutant(
        "rank-hears-the-prompts-answers-too",
        "evaluate.py",
        'marks = [IGNORE] * len(opened) + row["labels"][len(opened) :]',
        'marks = row["labels"]',
        "test_evaluate.py",
        "rank_by_hand",
    ),
    Mutant(
        "cut-off-answers-stopped",
        "evaluate.py",
        "stopped = size is not None",
        "stopped = size is not None or len(ids) < max_new_tokens + 1",
        "test_evaluate.py",
        "ended_them or counting_tokens",
    ),
    Mutant(
        "rows-drawn-instead-of-groups",
        "scores.py",
        "sums, sizes = np.bincount(at, values), np.bincount(at)",
        "sums, sizes = values, np.ones(len(values))",
        "test_scores.py",
        "only_whole_groups",
    ),
    Mutant(
        "a-flip-is-a-win",
        "scores.py",
        'return "flipped"',
        'return "one"',
        "test_scores.py",
        "every_outcome or places",
    ),
    Mutant(
        "another-option-is-not-seen",
        "scores.py",
        "return any(name.isdigit() == letter.isdigit() for name in names)",
        "return False",
        "test_scores.py",
        "named_alone",
    ),
    Mutant(
        "a-cut-reply-is-read",
        "scores.py",
        'each = verdict(text) if whole else "failed"',
        "each = verdict(text)",
        "test_scores.py",
        "every_outcome or why_it_failed",
    ),
    Mutant(
        "thousands-are-two-numbers",
        "scores.py",
        r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)",
        r"(?:\d+)",
        "test_scores.py",
        "last_number",
    ),
    Mutant(
        "bad-rows-are-scored",
        "evaluate.py",
        "rows = read_rows(asked.file, check)",
        "rows = read_rows(asked.file)",
        "test_scores.py",
        "names_every_bad_line",
    ),
    # the journal
    Mutant(
        "sync-dropped",
        "journal.py",
        'getattr(os, "fdatasync", os.fsync)(self._file)',
        "pass",
        "test_journal.py",
        "synced",
    ),
    Mutant(
        "lock-skipped",
        "journal.py",
        "self._lock.acquire(timeout=0)",
        "pass",
        "test_journal.py",
        "one_writer",
    ),
    Mutant(
        "append-onto-a-torn-line",
        "journal.py",
        "os.ftruncate(self._file, whole)",
        "whole = os.fstat(self._file).st_size",
        "test_journal.py",
        "cut_at_every_byte",
    ),
    Mutant(
        "damaged-line-read",
        "journal.py",
        'if end[:8] != b"%08x" % crc32(body):',
        "if not body:",
        "test_journal.py",
        "damaged_middle_line",
    ),
    Mutant(
        "reservation-skipped",
        "journal.py",
        'self.reserved += Decimal(event["most"] or 0)',
        "self.reserved += 0",
        "test_journal.py",
        "budget_is_kept or no_order",
    ),
    Mutant(
        "reserved-after-the-wait",
        "journal.py",
        "self._apply(event)\n        await self._append(event)",
        "await self._append(event)\n        self._apply(event)",
        "test_journal.py",
        "no_order",
    ),
    Mutant(
        "unknown-cost-taken-for-none",
        "journal.py",
        'self.paid += Decimal(event["cost"]) if known else most',
        'self.paid += Decimal(event["cost"]) if known else 0',
        "test_journal.py",
        "budget_is_kept",
    ),
    Mutant(
        "cut-off-requests-taken-for-free",
        "journal.py",
        'self.paid += Decimal(intent["most"] or 0)',
        "self.paid += 0",
        "test_journal.py",
        "counts_as_paid",
    ),
    # rows by the million
    Mutant(
        "line-of-the-part-before",
        "curation.py",
        "file.seek(part.start - 1)",
        "file.seek(part.start)",
        "test_curation.py",
        "wherever_the_files_are_cut",
    ),
    Mutant(
        "bad-rows-have-twins",
        "curation.py",
        '(code == rules.index("")) & key.any(1)',
        "key.any(1)",
        "test_curation.py",
        "wherever_the_files_are_cut",
    ),
    Mutant(
        "rows-lost-while-they-are-written",
        "curation.py",
        "            if left:\n",
        "            if left > 9:\n",
        "test_curation.py",
        "read_again",
    ),
    Mutant(
        "verdicts-of-another-order",
        "curation.py",
        "        if before != [_state(each) for each in parts]:",
        "        if before and not parts:",
        "test_curation.py",
        "read_again",
    ),
    Mutant(
        "the-start-of-a-line-is-a-row",
        "curation.py",
        'if len(line) >= LONGEST_LINE and not line.endswith(b"\\n"):',
        "if len(line) > LONGEST_LINE:",
        "test_curation.py",
        "is_torn",
    ),
    Mutant(
        "the-input-written-over",
        "curation.py",
        "if each.resolve() in {",
        "if each in {",
        "test_curation.py",
        "not_written_over",
    ),
    Mutant(
        "cut-rows-kept",
        "preflight.py",
        "            return WHOLE",
        '            return ""',
        "test_preflight.py",
        "judged_as_in_the_trainer",
    ),
    # the teacher
    Mutant(
        "one-endpoint-stops-all",
        "teacher.py",
        "if came.stops and soonest <= LONGEST_WAIT:",
        "if came.stops and soonest < -LONGEST_WAIT**9:",
        "test_teacher.py",
        "left_to_the_others",
    ),
    Mutant(
        "a-rest-cut-short",
        "teacher.py",
        "self._rests[client] = max(self._rests[client], until)",
        "self._rests[client] = until",
        "test_teacher.py",
        "is_left_alone",
    ),
    Mutant(
        "busy-for-good",
        "teacher.py",
        "for_good = came.stops and not came.wait",
        "for_good = came.stops",
        "test_teacher.py",
        "is_left_alone",
    ),
    Mutant(
        "dead-endpoint-asked-on",
        "teacher.py",
        "(max(self._rests[c], now), self._busy[c])",
        "(0, self._busy[c])",
        "test_teacher.py",
        "left_to_the_others",
    ),
    Mutant(
        "retry-not-journalled",
        "teacher.py",
        "max_retries=0,",
        "max_retries=1,",
        "test_teacher.py",
        "fails_each_time",
    ),
    Mutant(
        "retry-unreserved",
        "teacher.py",
        "ticket = await self._intend(book, request, most)",
        "ticket = await self._intend(book, request, most * (left > 4))",
        "test_teacher.py",
        "no_budget_is_exceeded",
    ),
    Mutant(
        "endless-length-retries",
        "teacher.py",
        'return _Came("length", why, text, **found)',
        'return _Came("length", why, text, again=True, **found)',
        "test_teacher.py",
        "test_states",
    ),
    Mutant(
        "key-in-the-message",
        "teacher.py",
        'said = said.replace(self._key, "[key]")',
        "said += self._key[:0]",
        "test_teacher.py",
        "key_is_nowhere",
    ),
    # growing a pool
    Mutant(
        "novelty-before-the-rules",
        "self_instruct.py",
        "        if rule:\n            yield Verdict(instruction, rule",
        "        near = novelty.judge(instruction)\n"
        "        if rule := near.rule or rule:\n"
        "            yield Verdict(instruction, rule",
        "test_self_instruct.py",
        "has_its_verdict",
    ),
    Mutant(
        "keywords-before-the-length",
        "self_instruct.py",
        "    if count <= 3:",
        "    if count <= 3 and not {*instruction.lower().split()} & "
        "{*keywords}:",
        "test_self_instruct.py",
        "test_rule_against",
    ),
    Mutant(
        "empty-before-equal",
        "self_instruct.py",
        "        if asked == answer:",
        "        if asked == answer != '':",
        "test_self_instruct.py",
        "test_kept_instances",
    ),
    Mutant(
        "as-alike-as-the-threshold-rejected",
        "self_instruct.py",
        "if most > self.above:",
        "if most >= self.above:",
        "test_self_instruct.py",
        "threshold",
    ),
    Mutant(
        "another-threshold",
        "self_instruct.py",
        "above: float = 0.7, log",
        "above: float = 0.75, log",
        "test_self_instruct.py",
        "threshold",
    ),
    Mutant(
        "pool-finds-equals-too",
        "similarity.py",
        "            if score > above:",
        "            if score >= above:",
        "test_similarity.py",
        "seven_tenths",
    ),
    Mutant(
        "bound-too-strict",
        "similarity.py",
        "(len(tokens) + sizes) - 1e-6",
        "(len(tokens) + sizes) + 0.5",
        "test_similarity.py",
        "all_pairs_find",
    ),
    # text is data
    Mutant(
        "raw-text-in-a-token",
        "show.py",
        'visible = escape(text.replace("\\n", "\\u21b5")) or',
        'visible = text.replace("\\n", "\\u21b5") or',
        "test_show.py",
        "never_markup",
    ),
    Mutant(
        "raw-text-in-a-conversation",
        "show.py",
        "{escape(m['content'])}</div>",
        "{m['content']}</div>",
        "test_show.py",
        "never_markup",
    ),
    Mutant(
        "raw-text-in-a-table",
        "show.py",
        "{escape(c)}</td>",
        "{c}</td>",
        "test_show.py",
        "never_markup",
    ),
    Mutant(
        "plain-jinja",
        "sandbox.py",
        "class Environment(SandboxedEnvironment):",
        "class Environment(SandboxedEnvironment.__base__):",
        "test_sandbox.py",
        "hostile",
    ),
    Mutant(
        "every-attribute-allowed",
        "sandbox.py",
        "return attr in methods.get(type(obj), ())",
        "return True",
        "test_sandbox.py",
        "hostile",
    ),
    Mutant(
        "patterns-executed",
        "templates.py",
        "sets = ast.literal_eval(value)",
        "sets = eval(ast.unparse(value))",
        "test_templates.py",
        "bad_pattern_files",
    ),
    # conversations
    Mutant(
        "who-plays-the-user-is-told-it-is-the-user",
        "conversations.py",
        "        *mirrored(messages),\n",
        "        *messages,\n",
        "test_conversations.py",
        "either_role",
    ),
    Mutant(
        "a-pair-that-overflows-is-lost",
        "conversations.py",
        "[*pieces, piece], system + pair",
        "[*pieces, piece], system",
        "test_conversations.py",
        "one_piece",
    ),
    Mutant(
        "an-answer-that-was-cut-off-stays",
        "conversations.py",
        "cut = not whole and",
        "cut = whole and",
        "test_conversations.py",
        "finished_pair",
    ),
    Mutant(
        "a-replay-hears-the-written-answers",
        "evaluate.py",
        "[made[i] for i in asked],",
        "[conversations[i][:place] for i in asked],",
        "test_evaluate.py",
        "converse",
    ),
    Mutant(
        "another-sum-is-a-loop",
        "faults.py",
        "share > least and _numbers(stems) == _numbers(others)",
        "share > least",
        "test_faults.py",
        "another_sum",
    ),
    Mutant(
        "two-farewells-are-endless",
        "faults.py",
        "FAREWELLS = 3",
        "FAREWELLS = 2",
        "test_faults.py",
        "goodbye",
    ),
    Mutant(
        "the-task-said-again-is-a-leak",
        "faults.py",
        "{run for run in each if _TO_A_MODEL.intersection(run)}",
        "set(each)",
        "test_faults.py",
        "task",
    ),
    # instructions that a program checks
    Mutant(
        "at-least-is-more-than",
        "verifiable.py",
        "else count >= number",
        "else count > number",
        "test_verifiable.py",
        "borders or either_less",
    ),
    Mutant(
        "an-empty-answer-follows",
        "verifiable.py",
        "return bool(answer.strip()) and CHECKERS",
        "return CHECKERS",
        "test_verifiable.py",
        "every_kind",
    ),
    Mutant(
        "stars-stay-in-the-loose-verdict",
        "verifiable.py",
        'text.replace("*", "")',
        "text",
        "test_verifiable.py",
        "loose_forgives",
    ),
    Mutant(
        "instructions-drawn-instead-of-prompts",
        "verifiable.py",
        "_ends(bootstrap(values, names))",
        "_ends(bootstrap(values))",
        "test_verifiable.py",
        "whole_prompts",
    ),
    Mutant(
        "a-row-half-checked-counts",
        "verifiable.py",
        'if None not in found["strict"]:',
        'if found["strict"]:',
        "test_verifiable.py",
        "never_guessed",
    ),
    # after training
    Mutant(
        "q-and-k-not-interleaved",
        "export.py",
        "return halves.swapaxes(1, 2).reshape(weight.shape)",
        "return halves.reshape(weight.shape)",
        "test_export.py",
        "answers_are_the_same or holds_what",
    ),
    Mutant(
        "served-prompts-start-twice",
        "export.py",
        "writer.add_add_bos_token(False)",
        "writer.add_add_bos_token(True)",
        "test_export.py",
        "same_bytes_and_tokens",
    ),
    Mutant(
        "ollama-forgets-the-default-system-message",
        "export.py",
        "    if default:  # the template",
        "    if not default:  # the template",
        "test_export.py",
        "ollamas_template",
    ),
    Mutant(
        "pickles-given-on",
        "cards.py",
        "p.name in GIVEN_ON]",
        'p.name in {*GIVEN_ON, "training_args.bin"}]',
        "test_cards.py",
        "without_pickles",
    ),
    Mutant(
        "adapter-keeps-a-machines-path",
        "cards.py",
        'config["base_model_name_or_path"] = base',
        'config.get("base_model_name_or_path", base)',
        "test_cards.py",
        "without_pickles",
    ),
    Mutant(
        "one-licence-for-anothers-notices",
        "cards.py",
        'if all(n in _names(base) or _kinds(n) == ("free",) for n in named):',
        'if all({*_kinds(n)} <= {"free", "notice"} for n in named):',
        "test_cards.py",
        "licence_comes_of",
    ),
    Mutant(
        "card-of-no-revision",
        "cards.py",
        'BASE = ("name", "revision", "licence")',
        'BASE = ("name", "licence")',
        "test_cards.py",
        "missing_fact",
    ),
    # what a run takes
    Mutant(
        "scales-not-in-8-bit",
        "memory.py",
        "floats = ceil(scales / 256) + 1 + 16 + 256",
        "floats = scales + 1 + 16 + 256",
        "test_memory.py",
        "odd_sizes",
    ),
    Mutant(
        "small-tensors-in-8-bit-too",
        "memory.py",
        "if size >= 4096 else 8 * size",
        "if size >= 0 else 8 * size",
        "test_memory.py",
        "optimizer_bytes",
    ),
    Mutant(
        "what-is-freed-stays-booked",
        "memory.py",
        "            self.now[kind] -= size",
        "            self.now[kind] -= 0",
        "test_memory.py",
        "published and Mistral",
    ),
    Mutant(
        "a-layer-too-few",
        "memory.py",
        "(depth - 2) * (three[name] - two[name])",
        "(depth - 3) * (three[name] - two[name])",
        "test_memory.py",
        "tell_of_more",
    ),
    Mutant(
        "rows-alone-get-a-mask",
        "memory.py",
        '"find_packed_sequence_indices", lambda _: None',
        '"find_packed_sequence_indices", lambda _: _',
        "test_memory.py",
        "alone_need",
    ),
    Mutant(
        "unlike-layers-forecast",
        "memory.py",
        "    if found == wanted:",
        "    if found:",
        "test_memory.py",
        "unlike_layers",
    ),
    Mutant(
        "no-head-room",
        "memory.py",
        "if forecast.total <= (1 - head_room) * room:",
        "if forecast.total <= room:",
        "test_memory.py",
        "test_fits",
    ),
]


def missing(mutant: Mutant, root: Path = ROOT) -> str:
    """Say why a mutant cannot be made; "" if it can."""
    path = root / "instructft" / mutant.file
    if not path.is_file():
        return f"no instructft/{mutant.file}"
    times = path.read_text("utf-8").count(mutant.old)
    if times != 1:
        first = mutant.old.strip().split("\n")[0]
        return f"{times} times in instructft/{mutant.file}: {first}"
    return ""


def laid_out(place: Path) -> Path:
    """Copy what the tests need; what they only read is linked."""
    copy = place.resolve() / "copy"
    old = shutil.ignore_patterns("__pycache__")
    for name in ("instructft", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=old)
    for name in ("pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, copy)
    for name in ("data", "notebooks"):
        with contextlib.suppress(OSError):  # Windows asks for a right
            (copy / name).symlink_to(ROOT / name, target_is_directory=True)
    return copy


def surroundings(copy: Path) -> dict[str, str]:
    """Return the variables of a child that shall import the copy.

    No bytecode is kept: a line of the same length, changed within the same
    second, would not be seen.
    """
    ours = {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    given = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
    return given | ours


def check_what_is_imported(copy: Path) -> None:
    """Raise RuntimeError unless a child imports the copy, wherever it is."""
    code = "import instructft; print(instructft.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=copy.parent,
        env=surroundings(copy),
        capture_output=True,
        text=True,
    )
    found = Path(done.stdout.strip()).resolve()
    if copy not in found.parents:
        raise RuntimeError(
            f"instructft is imported from {found}, not from {copy}: the "
            f"mutants would not be seen. {done.stderr}"
        )


def tested(copy: Path, tests: str, words: str) -> tuple[int | None, str]:
    """Run some tests of a copy until one fails: (exit status, output).

    The status is None if they took longer than LIMIT.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=short"]
    command += ["-p", "no:cacheprovider", f"tests/{tests}", "-k", words]
    # a file, not a pipe: a child left behind could keep a pipe open
    with open(copy.parent / "output.txt", "w+b") as output:
        try:
            done = subprocess.run(
                command,
                cwd=copy,
                env=surroundings(copy),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=LIMIT,
            ).returncode
        except subprocess.TimeoutExpired:
            done = None
        output.seek(0)
        return done, output.read().decode("utf-8", "replace")


def first_failure(output: str) -> str:
    """Name the first test that failed, without its parameters."""
    found = re.search(r"^(?:FAILED|ERROR) \S*?::(\w+)", output, re.M)
    return found[1] if found else ""


def sabotaged(copy: Path, mutant: Mutant) -> tuple[bool, str]:
    """Break a copy, run the tests, mend it: (caught?, by what)."""
    path = copy / "instructft" / mutant.file
    whole = path.read_bytes()
    text = whole.decode("utf-8").replace("\r\n", "\n")
    path.write_text(text.replace(mutant.old, mutant.new), "utf-8")
    try:
        status, output = tested(copy, mutant.tests, mutant.words)
    finally:
        path.write_bytes(whole)
    name = first_failure(output)
    if status == 1 and name:
        return True, name
    if status == 0:
        return False, SURVIVED
    if status is None:
        return False, f"ran past {LIMIT} s"
    # no test was chosen, or the package could not even be imported
    return False, f"did not run (pytest {status}): {output[-500:]}"


def main(names: Sequence[str], mutants: Sequence[Mutant] = MUTANTS) -> int:
    """Run the mutants of these names, or all: 0 if each is caught."""
    known = {mutant.name: mutant for mutant in mutants}
    if unknown := [name for name in names if name not in known]:
        print(f"no mutant {unknown}, only {list(known)}", file=sys.stderr)
        return 2
    chosen = [known[name] for name in names] or list(mutants)
    left = 0
    with tempfile.TemporaryDirectory() as place:
        copy = laid_out(Path(place))
        check_what_is_imported(copy)
        # "caught" means something only if the same tests pass on the whole
        sound = {}
        for file in dict.fromkeys(mutant.tests for mutant in chosen):
            words = {m.words: None for m in chosen if m.tests == file}
            every = " or ".join(f"({each})" for each in words)
            start = time.monotonic()
            status, output = tested(copy, file, every)
            sound[file] = status == 0
            said = "pass" if sound[file] else f"DO NOT PASS\n{output[-2000:]}"
            seconds = time.monotonic() - start
            print(f"{'(none)':36} {file + ': ' + said:52} {seconds:6.1f} s")
            sys.stdout.flush()
        for mutant in chosen:
            start = time.monotonic()
            if fault := missing(mutant, copy):
                caught, by = False, f"TEXT NOT FOUND, {fault}"
            elif not sound[mutant.tests]:
                caught, by = False, f"not tried: {mutant.tests} fails anyway"
            else:
                caught, by = sabotaged(copy, mutant)
            seconds = time.monotonic() - start
            print(f"{mutant.name:36} {by:52} {seconds:6.1f} s", flush=True)
            left += not caught
    print(f"{len(chosen) - left} of {len(chosen)} mutants caught")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
