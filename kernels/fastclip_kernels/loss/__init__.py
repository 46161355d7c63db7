"""Contrastive losses; the formulas and their derivation are in README.md beside this file."""
