"""From a configuration to a finished run: set-up, the loop, the step, checkpoints and logs."""
