"""Data in, picture out: each renderer takes dataclasses and makes text or JSON of them."""
