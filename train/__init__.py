"""Training: tokenizer, encoder, decoder, core."""
