"""Drills: load, one fault, a recovery clock and a checker. `docs/drills.md` tells how to run one and how to add one."""
