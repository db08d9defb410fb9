"""Extensions: one that works, and four that are wrong in one way each."""
