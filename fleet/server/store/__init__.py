"""Questions to and changes of the database, one noun a module; each function works inside the caller's transaction."""
