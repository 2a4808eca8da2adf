"""The page of the configs that come with the code: the note at the head of each."""

from __future__ import annotations

from itertools import takewhile

from tables import plain

from pipeline.config.files import CONFIGS, config_names

HEAD = """# Shipped configs

The note at the head of each file. A cost marked as an estimate was not measured. Measurements are in [results](../results.md) and
[benchmarks](../benchmarks.md). `DIR` is the data root. This page is made from the files.
"""
GROUPS = {
    "benchmark": "Benchmarks: what `data verify` takes, and what an experiment extends",
    "backbone": "Backbones of timm: what an experiment extends, after the benchmark's own",
    "experiment": "Experiments: what `train` takes",
    "search": "Searches: what `search` takes",
    "ablation": "Ablations: what `plan`, `ablate`, `compare` and `report` take",
}


def shipped_page() -> str:
    """Every group of files with its notes."""
    parts = [HEAD]
    for group, title in GROUPS.items():
        parts.append(f"## {title}\n")
        parts += [_section(group, name) for name in config_names(group)]
    return "\n".join(parts)


def _section(group: str, name: str) -> str:
    lines = (CONFIGS / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    note = [line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines)]
    commands = [line.removeprefix("Command: ") for line in note if line.startswith("Command: ")]
    text = "  \n".join(plain(line) for line in note if not line.startswith("Command: "))
    block = "".join(f"```sh\n{command}\n```\n" for command in commands)
    return f"### {group}/{name}\n\n{text}\n\n{block}"
