"""Tools for shards before they are trained on: `fastclip data check` and `fastclip data pack`."""
