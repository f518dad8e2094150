"""From a checkpoint to a decoder in memory with our attention in it, and what memory it leaves."""
