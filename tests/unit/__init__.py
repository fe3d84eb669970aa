"""Tests of one part each, in the package's own order."""
