"""What must hold of the histories that a session leaves. Pure but for reading their files."""
