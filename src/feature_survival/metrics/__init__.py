"""What is measured on a cell: one file a question. A metric takes tensors and returns numbers; it reads no file."""
