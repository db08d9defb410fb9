"""The built-in variants and hosts; each enters through the door that strangers use."""
