"""The documentation site: its pages, and the extension of Sphinx that builds them."""
