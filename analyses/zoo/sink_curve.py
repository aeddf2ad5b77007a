"""What the training curve records: held-out loss, attention to key 0, norm of position 0."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

EARLY = 32


def attention_and_norms(
    model: PreTrainedModel, tokens: torch.Tensor
) -> tuple[float, list[torch.Tensor], list[torch.Tensor]]:
    """Return the loss (nats per token), attention weights and residuals entering each block.

    Attention is computed in float32 by the plain ("eager") path, and the model is then set back.
    """
    before, training = model.config._attn_implementation, model.training
    model.set_attn_implementation("eager")
    model.eval()
    with torch.no_grad():
        seen = model(tokens, labels=tokens, output_attentions=True, output_hidden_states=True)
    model.set_attn_implementation(before)
    model.train(training)
    return float(seen.loss), list(seen.attentions), list(seen.hidden_states[:-1])


def sink_row(model: PreTrainedModel, tokens: torch.Tensor) -> dict[str, float]:
    """Return one row of the training curve, measured on held-out sequences.

    ``sink_LxHy`` is the attention of layer x, head y to key 0, averaged over sequences and over the
    queries that may see key 0, the first one excepted (its attention is 1 by construction).
    ``early_LxHy`` is the same over queries 1 to 31 alone, so that it compares a sliding window of
    32 with the rest. ``norm_ratio_Lx`` is the norm of position 0 entering block x over the mean
    norm of the other positions.
    """
    loss, attentions, residuals = attention_and_norms(model, tokens)
    window = getattr(model.config, "sliding_window", None) or tokens.shape[1]
    row = {"held_out_loss": loss}
    columns = [layer[:, :, 1:, 0].mean(0) for layer in attentions]
    for prefix, last in (("sink", window - 1), ("early", min(EARLY, tokens.shape[1]) - 1)):
        for index, column in enumerate(columns):
            for head, value in enumerate(column[:, :last].mean(1).tolist()):
                row[f"{prefix}_L{index}H{head}"] = value
    for index, residual in enumerate(residuals):
        norms = residual.norm(dim=-1)
        row[f"norm_ratio_L{index}"] = float(norms[:, 0].mean() / norms[:, 1:].mean())
    row["sink_max"] = max(value for name, value in row.items() if name.startswith("sink_L"))
    row["early_max"] = max(value for name, value in row.items() if name.startswith("early_L"))
    return row
