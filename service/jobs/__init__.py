"""Durable batch jobs: files of requests, answered in the background, each exactly once even after crashes."""
