"""What is measured on a cell: one file a question. A metric takes tensors and returns numbers; it reads no file.

`stability` RQ1 · `survival` RQ2 · `transfer` RQ3 · `fragility` RQ4 · `causal`, `relevance` RQ5 · `language`,
`reconstruction` serve several.
"""

TRANSFERRED, RETRAINED = "dense model's", "retrained"  # SAEs on a compressed model, as tables name them
