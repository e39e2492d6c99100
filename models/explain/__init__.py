"""Reasons: evidence, grammar, prompt, generator, checker and the template that stands in for them."""
