"""Thresholds, fixed in advance whatever comes out."""

MAIN_TAU = 0.7  # the cosine at which a feature counts as found again; others are shown beside it
VIABLE = 1.25  # times its FVU on the dense model: the most an SAE may leave unexplained on a compressed one
KEPT, DAMAGED = 0.9, 0.5  # correlation of a feature's activations, dense against compressed: kept above, damaged below
