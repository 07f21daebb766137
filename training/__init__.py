"""The recipe of the bundled model, see README.md. Not part of the installed package."""
