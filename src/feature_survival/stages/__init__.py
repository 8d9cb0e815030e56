"""One file a stage: the only place where params, artifacts and computation meet."""
