"""Flags, and the frozen configuration they become. Imports no other room, and no torch."""
