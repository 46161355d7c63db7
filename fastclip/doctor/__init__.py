"""`fastclip doctor`: is this machine set up for the given flags, and what will each part use?"""
