"""Trains and evaluates LoRA adapters on MLX, many trials in one pass over one frozen base model."""
