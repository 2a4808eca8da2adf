"""Training steps at the paper's size: images per second and peak memory against the released mathematics written out plainly.

variant     mathematics                                    computed
reference   released, three passes a batch                 plainly, as in tests/reference; float32
sequential  released, three passes a batch                 ours; the same updates (tests/golden/test_released.py)
joint       released, the summed gradient                  ours, one pass
default     `cub` at the released levels, backbone trained ours, one pass
recomputed  the same                                       ours, blocks of the backbone run again in the backward pass
slim        as default at D = 512 (`cub-slim`)             ours, one pass

On a GPU torch computes the convolutions of `reference` with TF32 operands, those of `reference float32` in float32. Ours run at the precision
of their training; joint, default and slim run compiled too, by adding ` compiled` to the name.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure
from mgmrn.config import ExperimentConfig, MgMRNConfig
from mgmrn.device import usual_device
from mgmrn.engine import Batch, build_trainer, train_epoch
from mgmrn.errors import UserError
from mgmrn.model.network import build_model
from pipeline.config.compose import load_experiment
from pipeline.console import say
from tests.reference.released import ReleasedNetwork, Settings, level_loss, make_optimiser, sequential_step

REFERENCES = ("reference float32", "reference")
COMPILED = " compiled"
ON_CPU = ("reference", "sequential", "joint", "default", "recomputed", "slim")
ON_GPU = ("reference float32", *ON_CPU, f"joint{COMPILED}", f"default{COMPILED}", f"slim{COMPILED}")
ATTRIBUTES, WORD_LENGTH, SEEN_CLASSES = 312, 300, 150
"""Of CUB."""
RATE = 1e-9
"""Learning rate at which an untrained network stays finite over any number of steps on one batch."""
WARM_UPS = 3
"""Untimed steps: compilation, a step that shows what memory is needed, the recording of CUDA graphs."""

Step = Callable[[int], None]
"""Makes a number of training steps and drops the gradients: the variants of one process share its memory."""


class StepSize(NamedTuple):
    """Side of the images in pixels, images of a step, D of the released mathematics (`default` and `slim` have their own), backbone."""

    images: int
    batch: int
    width: int
    backbone: str


def main() -> None:
    """Times the variants in alternating rounds."""
    parser = measure.parser_of(__doc__, rounds=5)
    parser.add_argument("--variants", metavar="A,B", help="compared variants; without it, all that fit the device")
    parser.add_argument("--size", type=int, help="side of the images; without it, 448 on a GPU, else 224")
    parser.add_argument("--batch", type=int, help="images of a step; without it, 16 on a GPU, else 4")
    parser.add_argument("--width", type=int, default=2048, help="D of the released mathematics (%(default)s)")
    parser.add_argument("--backbone", default="resnet101", help="torchvision ResNet (%(default)s)")
    parser.add_argument("--profile", action="store_true", help="print torch.profiler's table of a step of each variant")
    arguments = parser.parse_args()
    device = usual_device()
    on_gpu = device.type == "cuda"
    variants = arguments.variants.split(",") if arguments.variants else ON_GPU if on_gpu else ON_CPU
    size = StepSize(
        arguments.size or (448 if on_gpu else 224),
        arguments.batch or (16 if on_gpu else 4),
        arguments.width,
        arguments.backbone,
    )
    torch.backends.cudnn.benchmark = True
    operations = {name: count_operations(make_step(name.removesuffix(COMPILED), size, device)) for name in variants}
    steps, memory = {}, {}
    for name in variants:
        steps[name], memory[name] = prepare_on_gpu(name, size) if on_gpu else prepare_on_cpu(name, size)
        say(f"{name} is ready: {operations[name] / 1e12:.4g} TFLOP a step")
    # The host runs ahead of a GPU until it asks for a figure, as it does within an epoch.
    together = 4 if on_gpu else 1
    works = {name: lambda step=step: finish(step, together, device) for name, step in steps.items()}
    rounds = measure.alternate_seconds(works, arguments.rounds)
    seconds = {name: [s / together for s in found] for name, found in rounds.items()}
    if arguments.profile:
        for name, step in steps.items():
            say(f"\n{name}, one step, by torch.profiler:\n{profiled(step, device)}")
    results, memory_ratios = compare(seconds, memory, operations, size.batch)
    threads = torch.get_num_threads()
    where = torch.cuda.get_device_name(device) if on_gpu else "CPU"
    measure.show("step", results, "torch torchvision", memory_ratios, **size._asdict(), device=where, threads=threads)


def compare(
    seconds: dict[str, list[float]], memory: dict[str, float], operations: dict[str, int], batch: int
) -> tuple[list[measure.Timing], dict[str, float]]:
    """All figures, and the ratios of peak memory (MiB) to each reference that was measured; seconds and operations of a step."""
    ours = [name for name in seconds if name not in REFERENCES]
    pairs = [(name, reference) for reference in REFERENCES if reference in seconds for name in ours]
    results = [measure.ratio(f"{name} / {other}, images/s", seconds[other], seconds[name]) for name, other in pairs]
    for name, found in seconds.items():
        results += [
            measure.spread(f"{name}: step", found, "s"),
            measure.spread(f"{name}: images", [batch / s for s in found], "1/s"),
            measure.spread(f"{name}: achieved", [operations[name] / s / 1e9 for s in found], "GFLOP/s"),
            measure.spread(f"{name}: peak memory", [memory[name]], "MiB"),
        ]
    return results, {f"{a} / {b}, peak memory": memory[a] / memory[b] for a, b in pairs}


def finish(step: Step, number: int, device: torch.device) -> None:
    """Makes some steps and waits until the device has done them."""
    step(number)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def count_operations(step: Step) -> int:
    """Floating-point operations of a step's products and convolutions, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step(1)
    return counter.get_total_flops()


def profiled(step: Step, device: torch.device) -> str:
    """Table of the operators and kernels that take most of a step."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        finish(step, 1, device)
    order = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return seen.key_averages().table(sort_by=order, row_limit=15, max_name_column_width=60)


def prepare_on_gpu(variant: str, size: StepSize) -> tuple[Step, float]:
    """A variant that is warm, and its peak memory in MiB: what torch allocates above what others hold."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step = make_step(variant, size, torch.device("cuda"))
    step(WARM_UPS)
    return step, (torch.cuda.max_memory_allocated() - before) / 2**20


def prepare_on_cpu(variant: str, size: StepSize) -> tuple[Step, float]:
    """A variant that is warm, and the peak of resident memory in MiB of a new process that makes two steps of it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        peak = processes.submit(peak_memory_of_process, variant, size).result()
    step = make_step(variant, size, torch.device("cpu"))
    step(1)
    return step, peak


def peak_memory_of_process(variant: str, size: StepSize) -> float:
    """Peak of this process in MiB after two steps; the second has the optimiser's state besides."""
    make_step(variant, size, torch.device("cpu"))(2)
    # Not getrusage: its maximum is inherited from the parent process.
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 2**10


def make_step(variant: str, size: StepSize, device: torch.device) -> Step:
    """The steps of a variant. Raises UserError for an unknown one, or a backbone that the reference does not have."""
    if variant not in ON_GPU:
        raise UserError(f"there is no variant '{variant}'", "--variants", f"choose from {', '.join(ON_GPU)}")
    return plain_step(variant, size, device) if variant in REFERENCES else our_step(variant, size, device)


def our_step(variant: str, size: StepSize, device: torch.device) -> Step:
    """Steps of a variant of ours."""
    config = config_of(variant, size)
    images, targets, classes, words = draw(size)
    torch.manual_seed(0)
    network = build_model(config.model, words)
    trainer = build_trainer(network, classes, config, global_batch=size.batch, steps_per_epoch=1, device=device)
    batch = Batch(images, targets, np.arange(size.batch)).to(device)

    def step(number: int) -> None:
        train_epoch(trainer, [batch] * number)
        trainer.optimiser.zero_grad(set_to_none=True)

    return step


def config_of(variant: str, size: StepSize) -> ExperimentConfig:
    """The experiment that a variant of ours trains."""
    changes = [
        "model.backbone.weights=none",
        "model.backbone.trainable=all",
        "model.backbone.trainable_stages=[]",
        f"model.backbone.name={size.backbone}",
        f"benchmark.images.size={size.images}",
        f"schedule.compile={str(variant.endswith(COMPILED)).lower()}",
        "schedule.learning_rate=constant",
        f"optimiser.head_lr={RATE}",
        f"optimiser.backbone_lr={RATE}",
    ]
    name = variant.removesuffix(COMPILED)
    if name in ("sequential", "joint"):
        changes += [f"schedule.order={name}", f"model.width={size.width}"]
        changes += [f"model.decoder.attention_width={max(1, size.width // 2)}"]
    elif name != "slim":
        changes += ["model.levels=[c3, c4, c5]", f"model.backbone.recompute={str(name == 'recomputed').lower()}"]
    bases = {"sequential": "cub-released", "joint": "cub-released", "slim": "cub-slim"}
    return load_experiment(bases.get(name, "cub"), changes).config


def plain_step(variant: str, size: StepSize, device: torch.device) -> Step:
    """Steps of a reference."""
    if not size.backbone.startswith("resnet"):
        raise UserError(
            f"the reference has no backbone {size.backbone}", "--backbone", "use a ResNet, or other --variants"
        )
    images, targets, classes, words = (x.to(device) for x in draw(size))
    torch.manual_seed(0)
    model = config_of("sequential", size).model
    assert isinstance(model, MgMRNConfig)
    network = ReleasedNetwork(model, words).to(device).train()
    settings = Settings(lr=RATE)
    optimiser = make_optimiser(network, settings)
    loss_of = partial(level_loss, targets=targets, class_attributes=classes, settings=settings)
    cudnn = torch.backends.cudnn
    tf32 = variant == "reference" and cudnn.allow_tf32

    def step(number: int) -> None:
        with cudnn.flags(enabled=True, benchmark=cudnn.benchmark, allow_tf32=tf32):
            for _ in range(number):
                sequential_step(network, optimiser, images, loss_of)
        optimiser.zero_grad(set_to_none=True)

    return step


def draw(size: StepSize) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images `B 3 H W`, targets `B`, class attributes `U S` and word vectors `S E`."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size.batch, 3, size.images, size.images, generator=generator)
    targets = torch.randint(SEEN_CLASSES, (size.batch,), generator=generator)
    classes = torch.rand(SEEN_CLASSES, ATTRIBUTES, generator=generator)
    return images, targets, classes, torch.randn(ATTRIBUTES, WORD_LENGTH, generator=generator)


if __name__ == "__main__":
    measure.run_script(main)
