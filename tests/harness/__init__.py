"""What the tests, the bench and the demo share: a store, guests, and ways to run a script.

Nothing here imports the package under test: a fault in it must not hide itself. Standard library
only, so that the demo runs before anything is installed.
"""
