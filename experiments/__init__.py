"""Programs behind the pages of docs/."""
