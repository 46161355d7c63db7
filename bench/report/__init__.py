"""From the JSON of one or several runs of `pytest bench/` to one page."""
