"""What each metric means: the footnotes."""

from reports.answer import MARGIN
from reports.seeds import RULE

FOOTNOTES = {
    "best_val_loss": "Lowest validation loss after step 0, in nats per token: the loss of the checkpoint "
    "that is kept, and the value a trial is ranked by. For the base model: its loss at step 0.",
    "final_val_loss": "Validation loss after the trial's last step.",
    "validation loss": "Mean cross-entropy (natural logarithm) over all tokens of the validation rows that "
    "count in the loss.",
    "perplexity": "exp(best_val_loss).",
    "gain": "Loss of the reference row minus the trial's best_val_loss (in the answer, minus its mean over seeds where "
    "there is one); in percent, of the reference's loss. Above 0 is better. Base: the model before any training. "
    "Default: the default configuration, trained too.",
    "mean over seeds": "Mean best_val_loss of a trial and its repeats, which differ from it in initial weights, "
    "dropout and the order of the data. Among the trials that were trained again the lowest mean wins; one of which "
    "a repeat failed comes after the others. A trial's own loss is part of the mean and chose it, so the mean is a "
    "little too low. The adapter kept is the trial's own.",
    "noise": "With the same seed two trials see the data in the same order, which moves both losses alike. A lead is "
    f"therefore the mean of the differences seed by seed, ± half of the {RULE}; it is larger than the noise where it "
    "exceeds that. A trial's own seed is one of the pairs.",
    "test_loss": "Loss over all rows of the test set, of the checkpoint that is kept. It is computed once, at the end, "
    "and decides nothing.",
    "scale_ratio": "α/r, the LoRA scale divided by the rank; without adapters (train_type=full) it means nothing.",
    "multiplier": "The number that multiplies B·A, where there are adapters.",
    "steps": "Optimizer steps done. A pruned trial was stopped early because it was behind.",
    "trainable_params": "Numbers that training changes: those of the adapter, or with train_type=full the model's own "
    "weights in the blocks that are trained.",
    "adapter_mb": "Size of adapters.safetensors, in millions of bytes.",
    "train_seconds": "Seconds in training steps, without evaluation.",
    "tokens_per_second": "Tokens that count in the loss, per second in training steps. Trials that share a "
    "batch share its time.",
    "peak_memory_gb": "Highest memory of the process that trained the trial, shared by all trials in it.",
    "a small difference": f"{100 * MARGIN:g} % of the loss, where no noise is known. It tells which trials are hardly "
    "worse than the winner, whether a curve still falls or rises again, and which ranks are as good.",
    "trade-off": "A trial is on the line if every other one with a loss as low costs more, and every other one as "
    "cheap has a higher loss.",
    "importance": "Share of a setting in telling the best trials from the others, whatever the direction.",
}
