"""What a run would need and how long it would take, without the machines for it. Start in dry_run.py."""
