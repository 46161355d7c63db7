"""Raw pixels to the tokens of an image tower in one pass. See README.md."""
