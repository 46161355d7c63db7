"""A trained model in use: zero-shot classification, and features of many pictures or texts."""
