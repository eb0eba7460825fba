"""The rules: frozen values in, values or errors out. No input or output, no clock, no randomness, no protocol buffers, no SQL."""
