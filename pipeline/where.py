"""Places where runs are executed, tracked and stored."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from pipeline import places
from pipeline.storage import StoragePath


@dataclass(frozen=True)
class Where:
    """Cluster, resources, tracking store and folders of a launch; shared by `train`, `search`, `ablate` and `reproduce`."""

    tracking_uri: str = places.TRACKING_URI
    data_root: Path = places.DATA_ROOT
    storage: StoragePath = places.STORAGE
    """Folder of checkpoints and spools, which all hosts see."""
    address: str | None = None
    """Ray cluster; None starts Ray on this machine."""
    cpus_per_worker: int | None = None
    """CPUs of each worker; None shares the CPUs of the hosts evenly."""
    gpus_per_worker: float | None = None
    """GPUs of each worker, below 1 the part of one that it shares; None gives one where the cluster has one for every worker, a part where
    more runs at once were asked for than there are GPUs, else none."""
    wait_for_hosts: float | None = None
    """Seconds for which a launch waits for hosts that have room for its workers, while the cluster grows; None refuses it at once."""

    def absolute(self) -> Self:
        return replace(self, data_root=Path(os.path.realpath(self.data_root)), storage=self.storage.absolute())
