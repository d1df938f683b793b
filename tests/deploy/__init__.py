"""Tests of the package, the Makefile, the image and the manifests."""
