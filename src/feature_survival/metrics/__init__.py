"""What is measured on a cell: one file a question. A metric takes tensors and returns numbers; it reads no file.

`stability` RQ1 · `survival` RQ2 · `transfer` RQ3 · `fragility` RQ4 · `causal`, `relevance` RQ5 · `language`,
`reconstruction` serve several. Study B: `variants` of an SAE; what they mean by `probing`, `absorption` and
`disentanglement`, on `attributes` told by `probes`, gathered in `meaning`.
"""

TRANSFERRED, RETRAINED = "dense model's", "retrained"  # SAEs on a compressed model, as tables name them

# Study B, as its tables name them: where an SAE on a compressed model comes from, and what of it is pruned by what.
PRETRAINED, PRUNED = "pretrained", "pruned"
STANDARD = "standard"  # the SAE of section `sae`, beside those of `variants.redundancy`
RELEASED = "released"  # one that others published: of other width, budget and L0
BOTH, ENCODER, DECODER = "both", "encoder", "decoder"
PARTS = (BOTH, ENCODER, DECODER)
SAE_SCORES = ("magnitude", "wanda")
