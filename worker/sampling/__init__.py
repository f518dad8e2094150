"""The next tokens of a batch: edits of the logits, filters, draw, logprobs, beam search."""
