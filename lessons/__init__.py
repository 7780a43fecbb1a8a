"""Scripts to run and articles to read."""
