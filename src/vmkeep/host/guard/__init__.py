"""The guardian, and what makes a guest safe when vmkeep dies in the middle of an operation."""
