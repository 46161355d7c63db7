"""Which parameters decay, which optimiser updates them, at which learning rate, and when an update is refused."""
