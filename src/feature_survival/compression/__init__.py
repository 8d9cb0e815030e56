"""Compression methods: scores and masks are pure functions on tensors; `calibrate` walks over the blocks."""
