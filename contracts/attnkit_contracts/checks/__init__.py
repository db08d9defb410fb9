"""The checks, a module for each kind; `attnkit_contracts.catalogue` puts them in order."""
