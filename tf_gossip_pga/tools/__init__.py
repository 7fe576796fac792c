"""Output files, memory estimates and the screen of the launcher."""
