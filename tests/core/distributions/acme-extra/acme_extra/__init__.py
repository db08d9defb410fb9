"""Extensions: one that works, and three that are wrong in one way each."""
