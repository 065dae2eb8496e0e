"""Bytes and minutes of a run, forecast from a model's config alone.

A training step is rehearsed on two and on three layers of tensors without
data (torch's FakeTensorMode), and every storage counted while it lives, for
any model whose layers are alike. `machine.peak_memory_gb` measures beside it.
"""

import copy
import re
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import TYPE_CHECKING
from unittest import mock

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PretrainedConfig

METHODS = ("full", "lora", "qlora")
LOSSES = ("trl", "logits")
OPTIMIZERS = (
    *("adamw_torch", "adamw_torch_fused", "paged_adamw_32bit"),
    *("adamw_8bit", "paged_adamw_8bit"),
)
CARDS = {f"{size} GB": size for size in (8, 12, 16, 24, 48)}
# What a process holds before any model. On a CPU: Python with torch,
# transformers, trl, peft, datasets and bitsandbytes, measured here on Linux.
# On a card: the CUDA context, 287 MB where kernels are loaded when first
# used and 667 MB with all of them (pytorch/pytorch#86509); the larger
PROCESS = {"cpu": 510_000_000, "cuda": 666_632_192}
# What an allocator holds on to, as a share of what comes and goes in a step.
# glibc's: 0.1 to 0.4 in our runs, about 1 with checkpointing; hardly any if
# MALLOC_MMAP_THRESHOLD_=65536 stands in the environment. With 0.3, `total`
# came to 22 and 11 % less than runs of two steps with checkpointing took, and
# to 5 % less up to 7 % more without. CUDA's: 0.2 to 0.5,
# reserved and allocated memory in fms-acceleration's
# scripts/benchmarks/refs/a100_80gb.csv
ALLOCATOR = {"cpu": 0.3, "cuda": 0.4}
# Operations a second that training came to: torchtune's README, Llama 3.1
# 8B, 3,083 and 2,413 tokens a second, times `operations` of these runs
ACHIEVED = {"RTX 4090, LoRA": 1.54e14, "RTX 4090, QLoRA": 1.21e14}
COMING = ("activations", "logits", "transient")
PARTS = ("weights", "adapters", "gradients", "optimizer", *COMING)


@dataclass(frozen=True)
class Forecast:
    """Bytes of a training run at its fullest moment, by part.

    `paged` are those of the optimizer that may move to main memory, and
    `operations` the floating-point operations for a trained token: products
    and attention, forward, recomputed and backward.
    """

    parts: Mapping[str, int]
    moment: str
    paged: int
    operations: float

    @property
    def total(self) -> int:
        """Return the sum of all parts, in bytes."""
        return sum(self.parts.values())

    @property
    def allocated(self) -> int:
        """Return the tensors' bytes, as torch.cuda.max_memory_allocated."""
        return sum(self.parts[name] for name in PARTS)


def four_bit_bytes(rows: int, columns: int) -> int:
    """Return the bytes that bitsandbytes holds for a matrix in 4 bit.

    NF4 with double quantisation: two numbers in a byte, an 8-bit scale for
    each 64 numbers, a 32-bit scale for each 256 of those, an offset, and
    the tables of 16 and of 256 levels (QLoRA, section 3).

    >>> 8 * four_bit_bytes(4096, 4096) / 4096**2  # bits a number
    4.127473831176758
    """
    numbers = rows * columns
    scales = ceil(numbers / 64)
    floats = ceil(scales / 256) + 1 + 16 + 256
    return ceil(numbers / 2) + scales + 4 * floats


def optimizer_bytes(sizes: Sequence[int], optimizer: str, width: int) -> int:
    """Return the bytes of an optimizer's two states of each trained number.

    `sizes` are how many numbers each trained tensor has, `width` the bytes
    of one. torch's states have the tensor's own type; bitsandbytes' have 8
    bits and two 32-bit scales for each 256 numbers, but 32 bits in a tensor
    of fewer than 4,096 (bitsandbytes/optim/optimizer.py).

    >>> optimizer_bytes([4096, 4095], "adamw_8bit", 2)
    43128
    """
    if optimizer.startswith("adamw_torch"):
        return sum(2 * width * size + 4 for size in sizes)  # 4: its step
    if optimizer.endswith("32bit"):
        return sum(8 * size for size in sizes)
    tables = 2 * 4 * 256 if max(sizes) >= 4096 else 0
    return tables + sum(
        2 * size + 8 * ceil(size / 256) if size >= 4096 else 8 * size
        for size in sizes
    )


def forecast(
    config: "PretrainedConfig",
    method: str,
    length: int,
    batch: int,
    *,
    lora: "LoraConfig | None" = None,
    dtype: str = "float32",
    adapter_dtype: str = "float32",
    autocast: str = "",
    optimizer: str = "adamw_torch",
    checkpointing: bool = False,
    accumulate: bool = False,
    packed: bool = True,
    loss: str = "trl",
    counted: float = 1.0,
    attention: str = "sdpa",
    device: str = "cpu",
    process: int | None = None,
    allocator: float | None = None,
) -> Forecast:
    """Forecast the memory of a training step, and its operations.

    `method` is "full", "lora" or "qlora" (the last two need `lora`), for
    `batch` rows of `length` tokens. `dtype` is that of the weights that are
    not in 4 bit, `autocast` that of a mixed precision, if any. `loss` is
    "trl" (SFTTrainer's: logits in tiles) or "logits" (all at once), for the
    share `counted` of the tokens that the loss counts; TRL on a CPU computes
    the others too. `accumulate`: earlier batches' gradients are kept
    meanwhile. `process` (bytes) and `allocator` (a share) stand in for
    PROCESS and ALLOCATOR of the `device`, "cpu" or "cuda". It takes a few
    seconds.

    `packed`: TRL lays the packs of a batch end to end, and SDPA, on a CPU
    and on a card, gets a mask: a byte for each pair of the batch's tokens,
    and in each layer a copy in the queries' dtype, kept for the way back but
    for `checkpointing`. 16 packs of 8,192 tokens: 17 GB, and 34 GB a copy
    in 16 bit. Not `packed`: rows of one length, which need none. (The
    collator in trl/trainer/sft_trainer.py, create_causal_mask in
    transformers/masking_utils.py, convert_boolean_attn_mask in torch's
    attention.cpp.)

    Held to 10 % of measured runs: the sum with `allocator=0`, where freed
    memory is given back, and `allocated` on cards. `total` with ALLOCATOR's
    share is a guess: see there.

    Raises ValueError for what is none of these, and for a model whose layers
    are not alike: two and three do not tell of the rest.
    """
    for name, value, known in [
        ("method", method, METHODS),
        ("loss", loss, LOSSES),
        ("optimizer", optimizer, OPTIMIZERS),
        ("device", device, tuple(PROCESS)),
    ]:
        if value not in known:
            raise ValueError(f"{name} is {value!r}: use one of {known}")
    if (method == "full") != (lora is None):
        raise ValueError(
            f"method {method!r} with lora={lora!r}: a LoraConfig goes with "
            '"lora" and "qlora", and none with "full"'
        )
    if length < 2 or batch < 1 or not 0 < counted <= 1:
        raise ValueError(
            f"length {length}, batch {batch}, counted {counted}: they are at "
            "least 2, at least 1, and more than 0 up to 1"
        )

    def rehearsed(layers: int) -> dict[str, Counter]:
        return _rehearsed(
            _model(config, layers, method, lora, dtype, attention),
            shape=(1, batch * length) if packed else (batch, length),
            packed=packed,
            adapter_dtype=adapter_dtype,
            autocast=autocast,
            optimizer=optimizer,
            checkpointing=checkpointing,
            accumulate=accumulate,
            loss=loss,
            counted=1.0 if (loss, device) == ("trl", "cpu") else counted,
            device=device,
        )

    depth = config.num_hidden_layers
    if depth > 2:
        _check_layers(config, dtype, attention)
    found = rehearsed(min(depth, 2))
    if depth > 2:
        # what is held at each moment is linear in the number of layers
        for moment, three in rehearsed(3).items():
            two = found[moment]
            for name in {*two, *three}:
                two[name] += (depth - 2) * (three[name] - two[name])
    facts = found.pop("facts")
    moment = max(found, key=lambda name: sum(found[name].values()))
    parts = {name: found[moment][name] for name in PARTS}
    share = ALLOCATOR[device] if allocator is None else allocator
    parts["mapped file"] = facts["mapped file"]
    parts["allocator"] = round(share * sum(parts[name] for name in COMING))
    parts["process"] = PROCESS[device] if process is None else process
    paged = optimizer.startswith("paged") and device == "cuda"
    return Forecast(
        parts,
        moment,
        paged=parts["optimizer"] if paged else 0,
        operations=facts["operations"] / (length * batch),
    )


def fits(
    forecast: Forecast, sizes: Mapping[str, float], head_room: float = 0.1
) -> list[dict]:
    """Say where a run fits: a row for each name and size in GB (10^9).

    "yes" leaves `head_room` (a share of the size) free; "paged" does once a
    paged optimizer's states are in main memory; "tight" does not, or only
    fits if the allocator gives back all that it holds on to. A card of 24
    GB counts as 24 * 10^9 bytes, a little less than most have. For a CPU:
    `{"this machine": machine.memory_gb()}`.
    """
    rows = []
    for name, size in sizes.items():
        room = size * 1e9
        verdict = "no"
        if forecast.total <= (1 - head_room) * room:
            verdict = "yes"
        elif (
            forecast.paged
            and forecast.total - forecast.paged <= (1 - head_room) * room
        ):
            verdict = "paged"
        elif forecast.total - forecast.parts["allocator"] <= room:
            verdict = "tight"
        full = f"{forecast.total / room:.0%}"
        rows.append({"where": name, "fits": verdict, "full": full})
    return rows


def minutes(forecast: Forecast, tokens: int, achieved: float) -> float:
    """Return the minutes that `tokens` take, padding and passes included.

    `achieved` is what the machine comes to, in operations a second:
    ACHIEVED has published ones, and a short run of your own gives its
    tokens a second times `forecast.operations`.
    """
    return tokens * forecast.operations / achieved / 60


# The rehearsal


def _check_layers(config, dtype: str, attention: str) -> None:
    """Raise ValueError where a model is not its first layers, repeated."""
    depth, name = config.num_hidden_layers, type(config).__name__
    for field in ("layer_types", "mlp_layer_types"):
        if len(kinds := {*(getattr(config, field, None) or ())}) > 1:
            raise ValueError(
                f"{name}'s {field} are {', '.join(sorted(kinds))}: only "
                "models whose layers are alike can be forecast"
            )
    two, three, every = (
        {
            part: parameter.numel()
            for part, parameter in _model(
                config, layers, "full", None, dtype, attention
            ).named_parameters()
        }
        for layers in (2, 3, depth)
    )
    a, b, found = (sum(each.values()) for each in (two, three, every))
    wanted = a + (depth - 2) * (b - a)
    if found == wanted:
        return
    layers: dict[int, dict[str, int]] = {}
    for part, size in every.items():
        if at := re.search(r"\.(\d+)\.", part):
            layers.setdefault(int(at[1]), {})[part[at.end() :]] = size
    why = "what is outside its layers depends on their number"
    for i, parts in layers.items():
        if other := parts.items() ^ layers[0].items():
            why = f"layers 0 and {i} differ in {min(other)[0]}"
            break
    raise ValueError(
        f"{name} has {found:,} numbers, and {wanted:,} if its layers were "
        f"alike: {why}; only models whose layers are alike can be forecast"
    )


def _model(config, layers: int, method: str, lora, dtype: str, attention: str):
    """Return a model of few layers without data, some in 4 bit."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    depth, config = config.num_hidden_layers, copy.deepcopy(config)
    for name, value in list(vars(config).items()):  # such as layer_types
        if isinstance(value, list) and len(value) == depth:
            setattr(config, name, value[:layers])
    config.num_hidden_layers = layers
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
        )
        head = model.get_output_embeddings()
        # as transformers' replace_with_bnb_linear, which knows GPT-2's too
        four_bit = _four_bit_linear()
        for name, module in [*model.named_modules()] * (method == "qlora"):
            if type(module) is torch.nn.Linear and module is not head:
                module.__class__ = four_bit
            elif isinstance(module, Conv1D):
                made = four_bit(
                    *module.weight.shape, dtype=module.weight.dtype
                )
                model.set_submodule(name, made)
        if method == "full":
            return model
        # PEFT writes the names it found into the config it is given
        return get_peft_model(model, copy.deepcopy(lora))


@cache
def _four_bit_linear() -> type:
    """Return a linear layer that holds what one in 4 bit does.

    Forward and backward each make the whole matrix anew, and nothing but
    the packed one is kept (bitsandbytes' MatMul4Bit).
    """
    import torch

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, shape):
            ctx.shape = shape
            return x @ torch.empty(shape, dtype=x.dtype).t()

        @staticmethod
        def backward(ctx, gradient):
            return gradient @ torch.empty(
                ctx.shape, dtype=gradient.dtype
            ), None

    class FourBitLinear(torch.nn.Linear):
        def forward(self, x):
            shape = (self.out_features, self.in_features)
            y = Product.apply(x.to(self.made_in), shape)
            y = y if self.bias is None else y + self.bias
            return y.to(x.dtype)

    return FourBitLinear


def _ledger():
    """Return a mode that keeps book of every storage while it lives."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    aten = torch.ops.aten
    # what the registry lacks costs what these cost
    same = {
        aten.addmm_: aten.addmm,
        aten._scaled_dot_product_flash_attention_for_cpu: (
            aten._scaled_dot_product_flash_attention
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            aten._scaled_dot_product_flash_attention_backward
        ),
    }

    class Ledger(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.live, self.now, self.series = {}, Counter(), []
            self.operations, self.kind = 0, "weights"

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            packet = same.get(func._overloadpacket, func._overloadpacket)
            if packet in flop_registry:
                self.operations += flop_registry[packet](
                    *args, **(kwargs or {}), out_val=out
                )
            for each in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(each, torch.Tensor):
                    self.enter(each)
            self.series.append(self.now.copy())
            return out

        def enter(self, tensor, kind: str = ""):
            """Book a tensor's storage, or book it anew under a kind."""
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self.live:
                if kind:
                    self.now[self.live[key][1]] -= self.live[key][0]
                    self.now[kind] += self.live[key][0]
                    self.live[key][1] = kind
                return
            # gradients are off in backward, but for what it recomputes
            kind = kind or self.kind
            if kind == "activations" and not torch.is_grad_enabled():
                kind = "transient"
            gone = weakref.ref(storage, lambda _: self.leave(key))
            self.live[key] = [storage.nbytes(), kind, gone]
            self.now[kind] += storage.nbytes()

        def leave(self, key):
            size, kind, _ = self.live.pop(key)
            self.now[kind] -= size

    return Ledger()


def _without_data(model, adapter_dtype: str) -> int:
    """Lay tensors without data into a model; return what is mapped.

    The last is the bytes of the matrices that were read to be put in 4 bit.
    """
    import torch

    adapters = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if "lora_" in name
    }
    made, mapped = {}, 0
    for module in model.modules():
        packed = isinstance(module, _four_bit_linear())
        for name, old in module._parameters.items():
            if old is None:
                continue
            shape, dtype = old.shape, old.dtype
            if packed and name == "weight":
                module.made_in = dtype
                mapped += old.numel() * old.element_size()
                shape, dtype = four_bit_bytes(*old.shape), torch.uint8
            elif id(old) in adapters:
                dtype = getattr(torch, adapter_dtype)
            if id(old) not in made:  # else it is tied
                made[id(old)] = torch.nn.Parameter(
                    torch.empty(shape, dtype=dtype), old.requires_grad
                )
            module._parameters[name] = made[id(old)]
        for name, old in module._buffers.items():
            if old is not None:
                module._buffers[name] = torch.empty(old.shape, dtype=old.dtype)
    return mapped


def _summed_loss(hidden, model, loss: str):
    """Return the loss of hidden states, tokens by width, as TRL has it."""
    import torch
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    head = model.get_output_embeddings()
    targets = torch.zeros(len(hidden), dtype=torch.long)
    if loss == "logits":
        return torch.nn.functional.cross_entropy(
            head(hidden).float(), targets, reduction="sum"
        )
    found = ChunkedLogProbFunction.apply(
        *(hidden, head.weight, head.bias, targets, 1.0),
        _CHUNKED_LOGPROB_CHUNK_SIZE,
        getattr(model.config, "final_logit_softcapping", None),
        1.0,
        ("log_probs", "entropy", "is_top1"),
    )
    return -found[0].sum()


def _rehearsed(
    model,
    shape: tuple[int, int],
    packed: bool,
    adapter_dtype: str,
    autocast: str,
    optimizer: str,
    checkpointing: bool,
    accumulate: bool,
    loss: str,
    counted: float,
    device: str,
) -> dict[str, Counter]:
    """Return what is held at the fullest of each stretch of a step."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import masking_utils
    from trl.kernels import chunked_logprob

    model.train()
    if checkpointing:
        model.activation_checkpointing_enable(
            {"use_reentrant": False, "preserve_rng_state": False}
        )
    base = getattr(model, "get_base_model", lambda: model)()
    ledger, tokens = _ledger(), shape[0] * shape[1]
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        stack.enter_context(ledger)
        # of tensors without data transformers cannot tell that each row is
        # one text, and would lay a mask over it
        stack.enter_context(
            mock.patch.object(
                masking_utils, "find_packed_sequence_indices", lambda _: None
            )
        )
        if device == "cuda":  # there a kernel folds a tile where it lies
            for name, stand_in in [
                ("_forward_tile", lambda *_, **__: None),
                ("_backward_tile", lambda *_, **__: None),
                ("_addmm_fp32", lambda _, one, other: one @ other),
            ]:
                stack.enter_context(
                    mock.patch.object(chunked_logprob, name, stand_in)
                )
        mapped = _without_data(model, adapter_dtype)
        trained = [p for p in model.parameters() if p.requires_grad]
        width = trained[0].element_size()
        sizes = [parameter.numel() for parameter in trained]
        for parameter in trained if base is not model else ():
            ledger.enter(parameter, "adapters")
        ledger.kind = "optimizer"
        states = torch.empty(
            optimizer_bytes(sizes, optimizer, width), dtype=torch.uint8
        )
        ledger.kind = "gradients"
        for parameter in trained:
            if accumulate:
                parameter.grad = torch.empty_like(parameter)
            parameter.register_post_accumulate_grad_hook(
                lambda p: ledger.enter(p.grad, "gradients")
            )
        ledger.kind = "activations"
        batch = {"input_ids": torch.zeros(shape, dtype=torch.long)}
        if packed:  # rows in a pack see themselves alone
            batch["attention_mask"] = torch.ones(
                (1, 1, tokens, tokens), dtype=torch.bool
            )
            batch["position_ids"] = batch["input_ids"]
        # what CUDA's autocast casts is rehearsed by the CPU's rules
        with torch.autocast(
            "cpu", getattr(torch, autocast or "bfloat16"), bool(autocast)
        ):
            if checkpointing and base is not model:
                model.enable_input_require_grads()
            hidden = base.base_model(
                **batch, use_cache=False
            ).last_hidden_state.flatten(0, 1)
            hidden = hidden[: ceil(counted * (tokens - 1))]
            ledger.kind, marks = "logits", []

            def layers_begin(_):
                marks.append(len(ledger.series))
                ledger.kind = "activations"

            hidden.register_hook(layers_begin)
            total = _summed_loss(hidden, base, loss)
        del hidden
        total.backward()
        at_rest = ledger.now.copy()
        del states
    series, at = ledger.series, marks[0]
    layer = (len(series) - at) // base.config.num_hidden_layers
    largest = width * (sum(sizes) if device == "cuda" else 2 * max(sizes))
    at_rest["transient"] = largest if optimizer == "adamw_torch" else 0

    def fullest(stretch):
        return max(stretch, key=lambda now: sum(now.values()))

    return {
        "forward and loss": fullest(series[:at]),
        "backward, last layer": fullest(series[at : at + layer]),
        "backward, first layer": fullest(series[-layer:]),
        "optimizer step": Counter(
            {k: at_rest[k] for k in (*PARTS[:4], "transient")}
        ),
        "facts": Counter(
            {
                "operations": ledger.operations,
                "mapped file": mapped if device == "cpu" else 0,
            }
        ),
    }
