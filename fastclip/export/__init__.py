"""From a checkpoint to a folder that open_clip or transformers opens, with a model card."""
