"""Texts made from texts: triplets to train on, by rules or by a language model behind an endpoint."""
