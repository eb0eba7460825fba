"""Other people's clients against the real service: Node, `buf curl`, the README's Python."""
