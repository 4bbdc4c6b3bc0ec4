"""The integrations, each with the framework that it is for."""
