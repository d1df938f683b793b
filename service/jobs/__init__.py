"""Durable batch jobs: files of requests, answered in the background, through any number of crashes exactly once."""
