"""What an answer says beside plain text: calls of tools and reasoning, in each model's own form."""
