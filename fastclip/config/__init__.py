"""Flags, and the frozen configuration they become. Imports nothing of the other rooms, and no torch."""
