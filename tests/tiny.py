"""A data set of a few small pictures in the xlsa17 layout, and a network with few parameters."""

import pickle
from pathlib import Path

import numpy as np
from PIL import Image

from mgmrn.config import DecoderConfig, GranularityConfig, MgMRNConfig, RegionConfig
from mgmrn.makers.xlsa17_writer import write_images_list, write_splits

CLASSES, PER_CLASS, ATTRIBUTES, WORD_LENGTH = 9, 6, 7, 5
SEEN, VAL, UNSEEN = (0, 2, 3, 5, 6, 8), (2, 8), (1, 4, 7)
"""Classes by number: the order of seen and unseen ones is mixed, as in the real files."""


def lists() -> dict[str, np.ndarray]:
    """Image lists: of every seen class the first four images are for training, the last two for test."""
    images = np.arange(CLASSES * PER_CLASS).reshape(CLASSES, PER_CLASS)
    trainval = images[list(SEEN), :4].ravel()
    val = images[list(VAL), :4].ravel()
    return {
        "trainval_loc": trainval,
        "train_loc": np.setdiff1d(trainval, val),
        "val_loc": val,
        "test_seen_loc": images[list(SEEN), 4:].ravel(),
        "test_unseen_loc": images[list(UNSEEN)].ravel(),
    }


def write_benchmark(root: Path, name: str = "TINY", *, size: int = 40, pictures: bool = True, **changed) -> Path:
    """Write the data set; `changed` replaces image lists or `word_vectors`."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), PER_CLASS)
    names = [f"{9 - c:03d}.Class_{c}" for c in range(CLASSES)]
    files = [f"images/{names[c]}/{i}.png" for i, c in enumerate(labels)]
    folder = root / "xlsa17" / "data" / name
    write_images_list(folder, [f"/home/other/{name}/{file}" for file in files], labels)
    attributes = rng.random((ATTRIBUTES, CLASSES)) + 0.1
    word_vectors = changed.pop("word_vectors", rng.normal(size=(ATTRIBUTES, WORD_LENGTH)))
    write_splits(folder, names, attributes / np.linalg.norm(attributes, axis=0), attributes, lists() | changed)
    (root / "w2v").mkdir(exist_ok=True)
    (root / "w2v" / f"{name}_attribute.pkl").write_bytes(pickle.dumps(word_vectors))
    for file, label in zip(files if pictures else [], labels, strict=False):
        path = root / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = np.array([label * 25, 255 - label * 25, 128])
        pixels = np.clip(colour + rng.normal(0, 20, (size, size, 3)), 0, 255).astype(np.uint8)
        pixels[:, : size // 4] = 255 - pixels[:, : size // 4]
        Image.fromarray(pixels).save(path)
    return root


def small_network(
    *, width=8, regions="regions", attention_width=8, temperature="none", reduce="strided", **settings
) -> MgMRNConfig:
    """The network with few channels; `settings` are further fields of its config."""
    return MgMRNConfig(
        width=width,
        regions=RegionConfig(mode=regions, count=3, reduced_width=8),
        granularity=GranularityConfig(group_norm_groups=4, reduce=reduce),
        decoder=DecoderConfig(attention_width=attention_width, temperature=temperature),
        **settings,
    )
