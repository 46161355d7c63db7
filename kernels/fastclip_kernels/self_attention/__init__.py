"""Attention over heads, by whichever flash attention the machine has; README.md beside this file."""
