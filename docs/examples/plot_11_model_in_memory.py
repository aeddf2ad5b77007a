"""
Patch a model in memory, and see what changes
=============================================

``load_model`` takes a model of transformers as a notebook has it. Here what one layer's attention
writes is cut to a quarter, and the same windows of text are captured before and after.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import posprobe

ZOO = Path("../../data/zoo")
folder = Path(tempfile.mkdtemp())
own = AutoModelForCausalLM.from_pretrained(ZOO / "rope-0", dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(ZOO / "tokenizer")
design = {"design": "shifted", "n": 12, "length": 64, "window": 16, "text": "english"}


def split(name):
    """Capture the model as it is now, and split its position effects."""
    model = posprobe.load_model(own, tokenizer=tokenizer, name=name)
    with posprobe.capture(model, folder / f"{name}.h5", progress=False, **design) as store:
        return posprobe.decompose(store).by_layer


before = split("whole")
with torch.no_grad():
    own.model.layers[0].self_attn.o_proj.weight *= 0.25
after = split("patched")

# %%
# A patch that cut layer 0 off altogether would be refused: posprobe proves at load that the scores
# of each layer move the logits.

fig, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
for place, (table, label, colour) in enumerate(
    ((before, "as trained", "#d55e00"), (after, "layer 0 writes a quarter", "grey"))
):
    errors = (table["V_R"] - table["V_R_low"], table["V_R_high"] - table["V_R"])
    ax.bar(table["layer"] + 0.4 * place, table["V_R"], 0.35, yerr=errors, color=colour, label=label)
ax.set_xticks(before["layer"] + 0.2, before["layer"])
ax.set(xlabel="layer", ylabel="residual channel V_R (squared nats)")
ax.legend()

# %%
# The model itself is as it was: posprobe takes its attention for the time of a pass, and gives it
# back.

print(own.config._attn_implementation, own.training)
