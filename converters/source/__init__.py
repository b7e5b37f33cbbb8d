"""What the user gave: the project, its code, and the model in any form that is taken."""
