"""Hydra, Optuna and MLflow around `lora_core`: the command line, the search, its worker and its tracking."""
