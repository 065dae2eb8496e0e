"""The gate before training: what would silently learn nothing.

Reads a built trainer, trains nothing. Each check gives one line; a red
one stops with the offending row and the remedy.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from instructft.checkpoints import lacks
from instructft.formatting import token_ids
from instructft.machine import memory_gb
from instructft.masking import IGNORE, assistant_labels, supervised

# Checks that a row passes or fails alone
WHOLE = "no row is cut"
TEACHES = "every row teaches"
STOPS = "every answer teaches to stop"
STARTS = "answers start as in generation"
ENDS = "no turn ends inside a text"
OPENS = "texts open once"
_TALK = [
    {"role": "user", "content": "?"},
    {"role": "assistant", "content": "!"},
]


class Check(NamedTuple):
    """One line of the gate: what was checked, and what was seen."""

    name: str
    ok: bool
    seen: str
    remedy: str = ""


class NotReady(ValueError):
    """Training would go wrong; `checks` holds every line of the gate."""

    def __init__(self, checks: list[Check]):
        self.checks = checks
        red = [check for check in checks if not check.ok]
        super().__init__(
            "\n".join(f"{c.name}: {c.seen}; {c.remedy}" for c in red)
        )


def preflight(trainer, rows: int) -> list[Check]:
    """Check a built `SFTTrainer`, fed `rows` rows, before its first step.

    Returns the lines of the gate. Raises NotReady, a ValueError, if any
    is red: its text names each fault, the row and the remedy.
    """
    checks = [
        *_check_data(trainer, rows),
        _check_batches(trainer),
        *_check_tokens(trainer),
        *_check_model(trainer),
        _check_memory(trainer),
    ]
    if not all(check.ok for check in checks):
        raise NotReady(checks)
    return checks


def stop_ids(trainer) -> set[int]:
    """Return the token ids at which generation stops."""
    stops = trainer.model.generation_config.eos_token_id
    if stops is None:
        return set()
    return set(stops if isinstance(stops, list) else [stops])


def samples(trainer) -> Iterator[tuple[list[int], list[int]]]:
    """Yield (ids, labels) of each training row, packed rows taken apart."""
    for row in trainer.train_dataset:
        ids = row["input_ids"]
        # trl 1.16 masks every row itself; older data may come without
        marked = row.get("labels", ids)
        start = 0
        for length in row.get("seq_lengths") or [len(ids)]:
            end = start + length
            yield ids[start:end], marked[start:end]
            start = end


class RowGate:
    """The gate's checks of one row alone, without a trainer.

    For rows by the million, where each machine reads some. `stops` are the
    ids at which generation stops; a row is cut at `max_length` tokens, as
    TRL cuts it.
    """

    def __init__(self, tokenizer, stops: set[int], max_length: int | None):
        self._tokenizer, self._stops = tokenizer, stops
        self._most, self._template = max_length, _Template(tokenizer, stops)

    def rule(self, messages: list[dict]) -> str:
        """Name the first check that a conversation fails; "" if none.

        The loss is on the assistant's turns, by the template's markers.
        Raises ValueError if the template has none.
        """
        try:
            seen = assistant_labels(self._tokenizer, messages)
        except ValueError:  # no assistant, or no markers: then this raises
            assistant_labels(self._tokenizer, _TALK)
            return TEACHES
        ids, marked = seen["input_ids"], seen["labels"]
        if self._most and len(ids) > self._most:
            return WHOLE
        faults = self.faults(ids, marked)
        return faults[0] if faults else ""

    def faults(self, ids: list[int], marked: list[int]) -> list[str]:
        """Name the checks that a tokenised row (ids, labels) fails."""
        found = []
        answer = supervised(marked)
        # a line end after the end token may count too (prompt, completion)
        end = answer[-1:]
        if end and not self._tokenizer.decode(end).strip():
            end = answer[-2:-1]
        stopped = self._stops & set(end)
        tail = next(
            (i for i, m in enumerate(reversed(marked)) if m != IGNORE), 0
        )
        if self._most and len(ids) >= self._most:
            if not stopped or tail > 2:
                found.append(WHOLE)
        if not answer:
            found.append(TEACHES)
        elif not stopped or self._template.stops_early(marked):
            found.append(STOPS)
        if answer and not self._template.starts_after_header(ids, marked):
            found.append(STARTS)
        if self._template.stops_inside(ids):
            found.append(ENDS)
        if self._template.opens_twice(ids):
            found.append(OPENS)
        return found


def _check_data(trainer, rows: int) -> list[Check]:
    args, tokenizer = trainer.args, trainer.processing_class
    stops = stop_ids(trainer)
    gate = RowGate(tokenizer, stops, args.max_length)
    lengths, counted = [], 0
    bad = {name: [] for name in (WHOLE, TEACHES, STOPS, STARTS, ENDS, OPENS)}
    for ids, marked in samples(trainer):
        lengths.append(len(ids))
        counted += len(supervised(marked))
        for name in gate.faults(ids, marked):
            bad[name].append(ids)

    def check(name: str, what: str, remedy: str, more: str = "") -> Check:
        """Say how many rows fail it, and how the first of them ends."""
        seen = f"{len(bad[name])} rows {what}"
        if bad[name]:
            last = tokenizer.decode(bad[name][0][-40:])
            seen += f", the first ends in {last!r}"
        return Check(name, not bad[name], seen + more, remedy)

    count, tokens = len(lengths), sum(lengths)
    longer = f"raise max_length (now {args.max_length}) or shorten the rows"
    share = counted / tokens if tokens else 0
    teaches = check(
        TEACHES,
        "without a token in the loss",
        f"check the mask (assistant_only_loss); {longer}",
    )
    marks = f"; generation stops at {tokenizer.decode(sorted(stops))!r}"
    return [
        Check(
            "every row arrives",
            count == rows,
            f"{count} of {rows} rows are in the training set",
            f"TRL drops rows whose answer is cut off: {longer}",
        ),
        check(WHOLE, "are cut at max_length", longer, _quantiles(lengths)),
        teaches._replace(ok=count > 0 and teaches.ok),
        Check(
            "the mask hides the prompt",
            0 < share < 1,
            f"{counted:,} of {tokens:,} tokens are in the loss ({share:.1%})",
            "set assistant_only_loss=True for rows of messages, or "
            "completion_only_loss=True for prompt and completion",
        ),
        check(
            STOPS,
            "do not stop at the end, or stop before",
            "put the end token inside the generation markers, let "
            "generation_config.eos_token_id hold it, and take it out of the "
            "rows' own text",
            marks if bad[STOPS] else "",
        ),
        check(
            STARTS,
            "with an answer that does not start right after its header",
            "strip white space and control characters from the start of "
            "answers: they merge with the header's last token, or hide the "
            "answer from the loss",
        ),
        check(
            ENDS,
            "with an end token that the template did not put there",
            "take the template's markers out of the rows' own text: the "
            "model would see a turn end there",
        ),
        check(
            OPENS,
            "begin with two openings",
            "give messages, or text without the template's first token: "
            "TRL's tokenizer adds it again to a text that has it",
        ),
    ]


class _Template:
    """What a chat template puts around texts, seen in a made conversation."""

    def __init__(self, tokenizer, stops: set[int]):
        self._tokenizer, self._stops = tokenizer, stops
        self._special = {
            *tokenizer.all_special_ids,
            *tokenizer.get_added_vocab().values(),
        }
        self._doubled = False
        self.header: list[int] = []  # the ids that open an answer
        self._ends = 1  # stop tokens after the last answer
        self._after: set[int] = set()  # ids that may follow a stop token
        if not tokenizer.chat_template:
            self._doubled = self.opens_twice(tokenizer("x")["input_ids"])
            return
        asked = _TALK[:1]
        alone = token_ids(tokenizer, asked)
        opened = token_ids(tokenizer, asked, answer_next=True)
        self.header = opened[_same(alone, opened) :]
        self._doubled = self.opens_twice(opened)
        whole = token_ids(tokenizer, _TALK)
        self._ends = sum(i in stops for i in whole[_same(whole, opened) :])
        for seen in (whole, opened, token_ids(tokenizer, _TALK + _TALK)):
            self._after |= {b for a, b in pairwise(seen) if a in stops}

    def starts_after_header(self, ids: list[int], marked: list[int]) -> bool:
        """Say whether each answer follows a header, and the last one's does.

        TRL may hide one answer and all that follow, without a word. White
        space that ends the header may count as the answer's.
        """
        starts = [start for start, _ in _spans(marked)]
        if not self.header or starts[0] == 0:
            return True  # a loss on everything has its own line
        size = len(self.header)
        slack = len(self.header) - len(self._blank_off(self.header))
        headed = [
            i
            for i in range(size, len(ids) + 1)
            if ids[i - 1] == self.header[-1]
            and ids[i - size : i] == self.header
        ]
        right = {i - off: i for i in headed for off in range(slack + 1)}
        return (
            all(start in right for start in starts)
            and right[starts[-1]] == headed[-1]
        )

    def _blank_off(self, ids: list[int]) -> list[int]:
        while ids and not self._tokenizer.decode(ids[-1:]).strip():
            ids = ids[:-1]
        return ids

    def stops_early(self, marked: list[int]) -> bool:
        """Say whether an answer has too many stops: the first ends it."""
        return any(
            sum(
                label in self._stops and not self._two_kinds(before, label)
                for before, label in pairwise([IGNORE, *marked[start:end]])
            )
            > max(1, self._ends)
            for start, end in _spans(marked)
        )

    def _two_kinds(self, before: int, token: int) -> bool:
        """Say whether a stop follows one of another kind: no harm in that.

        TRL puts the tokenizer's EOS behind an end of turn in plain text.
        """
        return {before, token} <= self._stops and before != token

    def stops_inside(self, ids: list[int]) -> bool:
        """Say whether a stop token stands where the template puts none."""
        return bool(self._after) and any(
            a in self._stops
            and b not in self._after
            and not self._two_kinds(a, b)
            for a, b in pairwise(ids)
        )

    def opens_twice(self, ids: list[int]) -> bool:
        """Say whether a text's first mark stands there twice, by mistake."""
        twice = ids and ids[:1] == ids[1:2] and ids[0] in self._special
        return bool(twice) and not self._doubled


def _same(one: list[int], other: list[int]) -> int:
    """Return how many first ids two lists share."""
    pairs = enumerate(zip(one, other, strict=False))
    shorter = min(len(one), len(other))
    return next((i for i, (a, b) in pairs if a != b), shorter)


def _quantiles(lengths: list[int]) -> str:
    """Say how long rows are, in tokens."""
    if not lengths:
        return ""
    ordered = sorted(lengths)
    half, most = (ordered[int(len(ordered) * q)] for q in (0.5, 0.95))
    return f"; tokens a row: median {half}, 95 % {most}, most {ordered[-1]}"


def _spans(marked: list[int]) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each run of labels that count."""
    start = None
    for i, label in enumerate([*marked, IGNORE]):
        if label == IGNORE and start is not None:
            yield start, i
            start = None
        elif label != IGNORE and start is None:
            start = i


def _check_batches(trainer) -> Check:
    """Put all rows into batches: a collator of one's own may mask anew."""
    # as in training: without columns that the model does not read
    rows = trainer._remove_unused_columns(trainer.train_dataset)
    name = "batches keep the labels"
    size = trainer.args.per_device_train_batch_size
    remedy = "leave data_collator out: TRL's own keeps the rows' labels"
    other = 0
    try:
        for start in range(0, len(rows), size):
            end = min(start + size, len(rows))
            part = [rows[i] for i in range(start, end)]
            other += _changed(trainer.data_collator(part), part)
    except (ValueError, KeyError, TypeError) as error:
        return Check(name, False, f"the collator fails: {error}", remedy)
    return Check(
        name, not other, f"{other} labels differ in the batches", remedy
    )


def _changed(batch: dict, rows: list[dict]) -> int:
    """Count the labels of a batch that are not its rows'."""
    import torch

    wanted = torch.tensor(
        [m for row in rows for m in row.get("labels", row["input_ids"])]
    )
    found = batch["labels"]
    if "attention_mask" in batch:
        found = found[batch["attention_mask"].bool()]
    else:  # laid end to end: each first token is nobody's next
        first = batch["position_ids"].flatten() == 0
        found, wanted = found.flatten()[~first], wanted[~first]
    if len(found) != len(wanted):
        return abs(len(found) - len(wanted))
    return int((found != wanted).sum())


def _check_tokens(trainer) -> list[Check]:
    tokenizer, model = trainer.processing_class, trainer.model
    stops, pad = stop_ids(trainer), tokenizer.pad_token_id
    # a stop that no row ends with may pad: Qwen2.5 does so
    ends = {tokenizer.eos_token_id} - {None}
    for _, marked in samples(trainer):
        ends |= stops.intersection(marked)
    embedding = model.get_input_embeddings()
    size = embedding.weight.shape[0]
    unread = getattr(embedding, "padding_idx", None)  # gets no gradient
    fresh = _new_tokens(tokenizer)
    return [
        Check(
            "pad is not the end token",
            pad is not None
            and not ends & {pad, model.config.pad_token_id, unread},
            f"pad {pad}, stop {sorted(ends)}, "
            f"model pad {model.config.pad_token_id}"
            + (f", embedding's {unread}" if unread in ends else ""),
            "give tokenizer, config and generation config a pad token of "
            "its own, before the model is loaded",
        ),
        Check(
            "tokenizer and model stop alike",
            tokenizer.eos_token_id in stops,
            f"tokenizer {tokenizer.eos_token_id}, generation {sorted(stops)}",
            "set tokenizer.eos_token to the template's end of turn",
        ),
        Check(
            "the vocabulary fits",
            len(tokenizer) <= size,
            f"{len(tokenizer):,} tokens, {size:,} embedding rows",
            "use the model's own tokenizer and add no token to it",
        ),
        Check(
            "new tokens are learnt and kept",
            not fresh or _embedding_trained(model),
            f"{len(fresh)} tokens added to the tokenizer"
            + (f", the first {fresh[0]!r}" if fresh else ""),
            "add none and use markers the model knows, or train the "
            "embedding whole (modules_to_save of LoraConfig): an adapter "
            "alone neither trains nor saves their rows",
        ),
    ]


def _new_tokens(tokenizer) -> list[str]:
    """Return the tokens that the tokenizer's folder does not have."""
    from transformers import AutoTokenizer

    folder = Path(tokenizer.name_or_path or "")
    if not (folder / "tokenizer_config.json").is_file():
        return []  # nothing to compare with
    known = AutoTokenizer.from_pretrained(folder).get_vocab().keys()
    added = tokenizer.get_added_vocab()
    return sorted(added.keys() - known, key=added.get)


def _embedding_trained(model) -> bool:
    """Say whether the embedding's rows change, and are saved."""
    embedding = model.get_input_embeddings()
    # PEFT keeps a trained copy in `modules_to_save`, or single rows
    return any(p.requires_grad for p in embedding.parameters())


def _check_model(trainer) -> list[Check]:
    import torch

    model, args = trainer.model, trainer.args
    trained = {
        name: p for name, p in model.named_parameters() if p.requires_grad
    }
    total = sum(p.numel() for p in model.parameters())
    count = sum(p.numel() for p in trained.values())
    kinds = {str(p.dtype).removeprefix("torch.") for p in trained.values()}
    on_cpu = model.device.type == "cpu"
    half = args.bf16 or args.fp16 or any(k != "float32" for k in kinds)
    has_bf16 = on_cpu or torch.cuda.is_bf16_supported(
        including_emulation=False
    )
    checks = [
        Check(
            "something is trained",
            count > 0,
            f"{count:,} of {total:,} stored numbers, "
            f"{', '.join(sorted(kinds))}",
            "pass peft_config to SFTTrainer, or unfreeze the model",
        ),
        Check(
            "the dtype suits the device",
            not (on_cpu and half)
            and (has_bf16 or not (args.bf16 or "bfloat16" in kinds)),
            f"{model.device.type}, bf16={args.bf16}, fp16={args.fp16}, "
            f"trained weights {', '.join(sorted(kinds))}",
            "on a CPU or a card without bf16 set bf16=False and cast the "
            "trained weights to float32 (TRL makes QLoRA adapters bf16)",
        ),
        Check(
            "packed rows stay apart",
            not args.packing
            or (
                args.packing_strategy == "bfd"
                and model.config._attn_implementation
                in ("sdpa", "eager", "flash_attention_2")
            ),
            f"packing={args.packing} ({args.packing_strategy}), attention "
            f"{model.config._attn_implementation}",
            'set packing_strategy="bfd", or packing=False',
        ),
    ]
    packed = [
        name
        for name, p in model.named_parameters()
        if getattr(
            getattr(p, "quant_state", None), "packing_format_for_cpu", False
        )
    ]
    checks.append(
        Check(
            "4-bit weights let gradients through",
            not packed,
            f"{len(packed)} layers repacked for inference on this CPU",
            "load the model again, and before training let only "
            "instructft.evaluate ask it: bitsandbytes repacks 4-bit weights "
            "in eval mode, and no gradient passes them any more",
        )
    )
    wanted = args.resume_from_checkpoint
    missing = lacks(wanted) if wanted else ""
    checks.append(
        Check(
            "the run resumes whole",
            not missing,
            missing or (f"from {wanted}" if wanted else "a new start"),
            "give the newest whole folder: checkpoints.newest(output_dir)",
        )
    )
    for name, config in getattr(model, "peft_config", {}).items():
        wanted = config.target_modules
        if not isinstance(wanted, (list, set, tuple)):
            continue
        missed = sorted(
            target
            for target in wanted
            if not any(
                f".{target}.lora_" in parameter
                for parameter, _ in model.named_parameters()
            )
        )
        checks.append(
            Check(
                "every LoRA target is hit",
                not missed,
                f"adapter {name!r}: "
                + (f"no layer is named {missed}" if missed else "all hit"),
                "spell target_modules as the model's layers are named, or "
                'write "all-linear"',
            )
        )
    return checks


def _check_memory(trainer) -> Check:
    """Compare what must be held at once with the memory there is.

    A floor: weights, and the gradients and optimizer's states of what is
    trained. What layers keep for the way back comes on top, and logits: how
    many of a batch's are kept at once is the loss function's own business.
    """
    import torch

    model, args = trainer.model, trainer.args
    weights = gradients = states = 0
    for p in model.parameters():
        weights += p.numel() * p.element_size()
        if p.requires_grad:
            gradients += p.numel() * p.element_size()
            states += p.numel() * _state_bytes(args.optim.value, p)
    needed = (weights + gradients + states) / 1e9
    there = memory_gb()
    if model.device.type == "cuda" and torch.cuda.is_available():
        card = torch.cuda.get_device_properties(model.device)
        there = card.total_memory / 1e9
    return Check(
        "memory may suffice",
        needed < there,
        f"at least {needed:.1f} GB of {there:.1f}: "
        f"weights {weights / 1e9:.2f}, gradients {gradients / 1e9:.2f}, "
        f"optimizer {states / 1e9:.2f}; activations and logits come on top",
        "load the model in 4 bit, train an adapter, or take an optimizer "
        'that keeps 8 bit, such as optim="paged_adamw_8bit"',
    )


def _state_bytes(optimizer: str, parameter) -> int:
    """Return an optimizer's bytes for a trained number."""
    if "8bit" in optimizer:
        return 2
    if "adam" in optimizer:
        return 2 * parameter.element_size()
    return 0
