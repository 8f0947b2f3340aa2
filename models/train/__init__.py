"""How troupe-small-chat is made: data makers, tokenizer, model, training, export."""
