"""The recipes of 2017, defects included: each in a module of its own."""
