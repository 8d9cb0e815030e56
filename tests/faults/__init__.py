"""Fault drills: what is killed, starved, flipped or edited loses nothing and is named."""
