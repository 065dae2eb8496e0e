"""The gate before training: what would silently learn nothing.

Reads a built trainer, trains nothing. Each check gives one line; a red
one stops with the offending row and the remedy.
"""

from collections.abc import Iterator
from typing import NamedTuple

from instructft.formatting import token_ids
from instructft.masking import IGNORE, supervised


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
        *_check_tokens(trainer),
        *_check_model(trainer),
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


def _check_data(trainer, rows: int) -> list[Check]:
    args, tokenizer = trainer.args, trainer.processing_class
    stops = stop_ids(trainer)
    header = _answer_header(tokenizer)
    count, tokens, counted, empty, open_ended = 0, 0, 0, [], []
    cut, elsewhere = [], []
    for ids, marked in samples(trainer):
        answer = supervised(marked)
        # a line end after the end token may count too (prompt, completion)
        end = answer[-1:]
        if end and not tokenizer.decode(end).strip():
            end = answer[-2:-1]
        stopped = stops & set(end)
        tail = next(
            (i for i, m in enumerate(reversed(marked)) if m != IGNORE), 0
        )
        tokens += len(ids)
        counted += len(answer)
        if not answer:
            empty.append(tokenizer.decode(ids[-40:]))
        elif not stopped or _stops_early(marked, stops):
            open_ended.append(tokenizer.decode(ids[-40:]))
        if answer and not _starts_after(header, ids, marked):
            elsewhere.append(tokenizer.decode(ids[-40:]))
        full = args.max_length and len(ids) >= args.max_length
        if full and (not stopped or tail > 2):
            cut.append(tokenizer.decode(ids[-40:]))
        count += 1
    longer = f"raise max_length (now {args.max_length}) or shorten the rows"
    share = counted / tokens if tokens else 0
    return [
        Check(
            "every row arrives",
            count == rows,
            f"{count} of {rows} rows are in the training set",
            f"TRL drops rows whose answer is cut off: {longer}",
        ),
        Check(
            "no row is cut",
            not cut,
            f"{len(cut)} rows are cut at max_length" + _first(cut),
            longer,
        ),
        Check(
            "every row teaches",
            count > 0 and not empty,
            f"{len(empty)} rows without a token in the loss" + _first(empty),
            f"check the mask (assistant_only_loss); {longer}",
        ),
        Check(
            "the mask hides the prompt",
            0 < share < 1,
            f"{counted:,} of {tokens:,} tokens are in the loss ({share:.1%})",
            "set assistant_only_loss=True for rows of messages, or "
            "completion_only_loss=True for prompt and completion",
        ),
        Check(
            "every answer teaches to stop",
            not open_ended,
            f"{len(open_ended)} rows do not stop at the end, or stop before"
            + _first(open_ended),
            "put the end token inside the generation markers, let "
            "generation_config.eos_token_id hold it, and take it out of the "
            "rows' own text",
        ),
        Check(
            "answers start as in generation",
            not elsewhere,
            f"{len(elsewhere)} rows with an answer that does not start "
            "right after its header" + _first(elsewhere),
            "strip white space and control characters from the start of "
            "answers: they merge with the header's last token, or hide the "
            "answer from the loss",
        ),
    ]


def _answer_header(tokenizer) -> list[int]:
    """Return the ids that open an answer; [] where the template has none."""
    if not tokenizer.chat_template:
        return []
    asked = [{"role": "user", "content": "?"}]
    start = len(token_ids(tokenizer, asked))
    return token_ids(tokenizer, asked, answer_next=True)[start:]


def _spans(marked: list[int]) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each run of labels that count."""
    start = None
    for i, label in enumerate([*marked, IGNORE]):
        if label == IGNORE and start is not None:
            yield start, i
            start = None
        elif label != IGNORE and start is None:
            start = i


def _stops_early(marked: list[int], stops: set[int]) -> bool:
    """Say whether an answer has a second stop token: the first ends it."""
    return any(
        sum(label in stops for label in marked[start:end]) > 1
        for start, end in _spans(marked)
    )


def _starts_after(header: list[int], ids, marked) -> bool:
    """Say whether each answer follows a header, and the last header's does.

    TRL may hide one answer and all that follow, without a word.
    """
    starts = [start for start, _ in _spans(marked)]
    if not header or starts[0] == 0:
        return True  # a loss on everything has its own line
    size = len(header)
    headed = [
        i
        for i in range(size, len(ids) + 1)
        if list(ids[i - size : i]) == header
    ]
    return set(starts) <= set(headed) and starts[-1] == headed[-1]


def _first(texts: list[str]) -> str:
    return f", the first ends in {texts[0]!r}" if texts else ""


def _check_tokens(trainer) -> list[Check]:
    tokenizer, model = trainer.processing_class, trainer.model
    stops, pad = stop_ids(trainer), tokenizer.pad_token_id
    size = model.get_input_embeddings().weight.shape[0]
    return [
        Check(
            "pad is not the end token",
            pad is not None
            and pad not in stops
            and model.config.pad_token_id not in stops,
            f"pad {pad}, stop {sorted(stops)}, "
            f"model pad {model.config.pad_token_id}",
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
    ]


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
