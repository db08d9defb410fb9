"""A module that offers nothing."""
