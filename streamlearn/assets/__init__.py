"""Data that ships: the warm checkpoint of the tiny towers."""
