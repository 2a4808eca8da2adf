"""`data guide`: parts of a published benchmark, their pages, and their folders in the data root. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgmrn.config import BenchmarkConfig
from mgmrn.data.published import PUBLISHED, PublishedSplits
from mgmrn.data.xlsa17 import lists_folder, word_vector_file
from mgmrn.errors import UserError

PROPOSED_SPLITS = (
    "https://www.mpi-inf.mpg.de/departments/computer-vision-and-machine-learning/research/"
    "zero-shot-learning/zero-shot-learning-the-good-the-bad-and-the-ugly"
)
WORD_VECTORS = "https://github.com/shiming-chen/TransZero"


@dataclass(frozen=True)
class Photographs:
    """Publication of a benchmark's pictures."""

    title: str
    page: str
    archive: str
    size: str
    terms: str
    folder: str
    """Folder below the data root into which the archive is unpacked."""
    holds: str
    """Folder below the data root that exists once the archive is unpacked."""


PHOTOGRAPHS: Mapping[str, Photographs] = {
    "CUB": Photographs(
        "Caltech-UCSD Birds-200-2011",
        "https://www.vision.caltech.edu/datasets/cub_200_2011/",
        "CUB_200_2011.tgz",
        "about 1.2 GB",
        "photographs of many owners, for research and teaching that is not commercial; do not pass them on",
        "CUB",
        "CUB/CUB_200_2011/images",
    ),
    "SUN": Photographs(
        "SUN Attribute Database",
        "https://cs.brown.edu/~gmpatter/sunattributes.html",
        "the images of the attribute database, not those of all of SUN",
        "several GB",
        "photographs of many owners, for research; see the page",
        "SUN",
        "SUN/images",
    ),
    "AWA2": Photographs(
        "Animals with Attributes 2",
        "https://cvml.ista.ac.at/AwA2/",
        "AwA2-data.zip",
        "about 13 GB",
        "each photograph has a free licence of its own, listed in the archive",
        "AWA2",
        "AWA2/Animals_with_Attributes2/JPEGImages",
    ),
}


@dataclass(frozen=True)
class Item:
    """One part of a benchmark."""

    what: str
    page: str
    size: str
    terms: str
    place: str
    """Path that must exist afterwards, relative to the data root."""
    hint: str
    there: bool


@dataclass(frozen=True)
class Guide:
    """All parts of a benchmark."""

    title: str
    splits: PublishedSplits
    items: tuple[Item, ...]
    verify: str
    """Command that lists what is still missing or wrong."""

    def to_json(self) -> dict[str, Any]:
        """Serialise to the object that `--json` prints."""
        from dataclasses import asdict

        return {**asdict(self), "splits": {**asdict(self.splits), "images": self.splits.images}}


def guide(benchmark: str, data_root: Path) -> Guide:
    """Parts of a benchmark, and which of them exist.

    Args:
        benchmark: cub, sun or awa2, in any case.
        data_root: folder of the benchmarks.

    Raises:
        UserError: for any other name.
    """
    name = benchmark.upper()
    if name not in PHOTOGRAPHS:
        hint = "one of cub, sun, awa2; `data make synthetic` draws one, `data import` takes a folder of your own"
        raise UserError(f"there is no guide to {benchmark}", "BENCHMARK", hint)
    config = BenchmarkConfig(name=name)
    photographs = PHOTOGRAPHS[name]
    lists, words = lists_folder(data_root, name), word_vector_file(data_root, config)
    items = (
        Item(
            f"photographs: {photographs.archive}",
            photographs.page,
            photographs.size,
            photographs.terms,
            photographs.holds,
            f"unpack into {photographs.folder}/",
            (data_root / photographs.holds).is_dir(),
        ),
        Item(
            f"Proposed Splits: {name}/res101.mat and {name}/att_splits.mat of xlsa17.zip",
            PROPOSED_SPLITS,
            "below 1 MB without the features, which are most of the archive and are not read",
            "as the data set; cite arXiv 1707.00600",
            str(lists.relative_to(data_root)),
            "take the version with the Proposed Splits",
            all((lists / file).is_file() for file in ("res101.mat", "att_splits.mat")),
        ),
        Item(
            f"word vectors: w2v/{name}_attribute.pkl",
            WORD_VECTORS,
            "below 1 MB",
            "MIT",
            str(words.relative_to(data_root)),
            "one row per attribute, a pickled numpy array",
            words.is_file(),
        ),
    )
    verify = f"python -m pipeline data verify {name.lower()} --data-root {data_root}"
    return Guide(photographs.title, PUBLISHED[name], items, verify)


def lines(guide: Guide) -> list[str]:
    """The guide as text."""
    splits = guide.splits
    text = [
        f"{guide.title}: {splits.images:,} pictures, {splits.seen} seen and {splits.unseen} unseen classes, "
        f"{splits.attributes} attributes; trainval / test_seen / test_unseen "
        f"{splits.trainval} / {splits.test_seen} / {splits.test_unseen}",
    ]
    for number, item in enumerate(guide.items, start=1):
        text += [
            "",
            f"{number}. {item.what}" + (" (is there)" if item.there else ""),
            f"   from   {item.page}",
            f"   size   {item.size}",
            f"   terms  {item.terms}",
            f"   to     {item.place} in the data root; {item.hint}",
        ]
    return [*text, "", f"then   {guide.verify}", f"       which knows the lists by their digest, {splits.digest[:12]}"]
