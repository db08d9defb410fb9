"""What ``pytest --pyargs attnkit_contracts`` collects."""
