"""The science of Mg-MRN: network, losses, protocol and data. Imports neither Ray nor MLflow nor Optuna."""
