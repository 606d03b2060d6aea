"""Checks of the histories that a session leaves. Pure except for reading their files."""
