"""The only training and evaluation loops of the project, and what they write down."""
