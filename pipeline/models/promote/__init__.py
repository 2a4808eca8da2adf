"""From a trained run to a registered model: who may be promoted, against whom, and under which alias."""
