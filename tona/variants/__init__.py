"""Smaller and faster forms of a model, each measured on data that it was not made with.

Runs on the author's machine, with the extra `variants`.
"""
