"""The science of Mg-MRN: network, losses, protocol and data. Knows nothing of Ray, MLflow or Optuna."""
