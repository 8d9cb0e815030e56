"""What is measured on a cell: one file a question. A metric takes tensors and returns numbers; it reads no file.

`stability` RQ1 · `survival` RQ2 · `transfer` RQ3 · `fragility` RQ4 · `causal`, `relevance` RQ5 · `language`,
`reconstruction` serve several.
"""

# Fixed in advance, whatever comes out.
VIABLE = 1.25  # times its FVU on the dense model: the most an SAE may leave unexplained on a compressed one
KEPT, DAMAGED = 0.9, 0.5  # correlation of a feature's activations, dense against compressed: kept above, damaged below

TRANSFERRED, RETRAINED = "dense model's", "retrained"  # SAEs on a compressed model, as tables name them
