"""Compression methods, in import order: `forms` a weight is stored in, `scores`, `masks`, `quantize`, `lowrank` and
`sparsegpt` on tensors, `methods` behind one interface, `calibrate` the walk over blocks, `condition` on disk.
"""
