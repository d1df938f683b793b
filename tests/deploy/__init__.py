"""Tests of what is deployed: the package, the Makefile, the image, the manifests."""
