"""Small, real stand-ins shared by the tests."""
