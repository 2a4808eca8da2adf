"""Default folders and databases, all under `.mgmrn/` of the working folder."""

from pathlib import Path

from pipeline.storage import StoragePath

HOME = Path(".mgmrn")
DATA_ROOT = HOME / "data"
STORAGE = StoragePath(str(HOME / "runs"))
CACHE = HOME / "cache"
REPORTS = HOME / "reports"
EXPLANATIONS = HOME / "explanations"
STUDY_STORAGE = f"sqlite:///{HOME / 'studies.db'}"
TRACKING_URI = f"sqlite:///{HOME / 'mlflow.db'}"
