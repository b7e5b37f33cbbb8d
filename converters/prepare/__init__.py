"""What a build starts from: the project, the user's code and data, and the source in canonical form."""
